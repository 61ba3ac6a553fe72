"""What one emulated run is: a workload, a device, and one configuration of the server and its clients.

Plain values that survive JSON, so a run can be started in another process and repeated from its report.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class WorkloadSpec:
    """Name and parameters of a workload (`workloads.build`): the same spec and seed give equal programs."""

    name: str
    seed: int = 1
    params: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Configuration:
    """A server set-up under test.

    `server_args`: SGLang's ServerArgs fields beside the common ones. `tokencake`: settings of TokenCakeConfig, or
    None for stock. `routing_key`: clients send their program's id as SGLang's routing key. `priority`: "none", or
    "program_age" (clients send a priority by the arrival of their program, oldest first). `bound`: "clairvoyant"
    replaces victim choice and order by ones that know the future. `host_ratio`: host KV pool over device KV pool,
    None: as the run says.
    """

    name: str
    server_args: dict[str, Any] = field(default_factory=dict)
    tokencake: dict[str, Any] | None = None
    routing_key: bool = False
    priority: str = "none"
    bound: str = ""
    host_ratio: float | None = None


@dataclass(frozen=True)
class RunSpec:
    """One run. `pool_tokens`: device KV pool (None: the profile's). `profile`: an id of the shipped profiles or a
    path of a profile file (`profile.load_profile`). `overlap`: SGLang's overlap loop (its default) or the normal
    one. `oracle`: check every KV read. `event_log`: path of the log of all events. `samples`: KV samples, at least
    that many and at most twice. `measure_from_s`: real step times are measured from this virtual second on.
    """

    workload: WorkloadSpec
    configuration: Configuration
    profile: str = "qwen2.5-14b@a100-80gb"
    pool_tokens: int | None = None
    host_ratio: float = 2.0
    overlap: bool = True
    oracle: bool = True
    event_log: str = ""
    samples: int = 200
    measure_from_s: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> RunSpec:
        values = dict(values)
        values["workload"] = WorkloadSpec(**values["workload"])
        values["configuration"] = Configuration(**values["configuration"])
        return cls(**values)
