"""When programs arrive: as a Poisson process, evenly spaced, or in closed loops."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tokencake_sglang.emulator.workloads.parameters import Parameter, choice, number, whole

PROCESSES = ("poisson", "even", "closed")


def parameters(qps: float, arrival: str = "poisson", lanes: int = 8, ramp_s: float = 0.0) -> dict[str, Parameter]:
    """The parameters every workload with arrivals has, with that workload's defaults."""
    return {
        "arrival": choice(arrival, "how programs arrive", *PROCESSES),
        "qps": number(qps, "programs per second (poisson, even)", above=True),
        "lanes": whole(lanes, "closed: how many programs are active at a time"),
        "pause_s": number(0.0, "closed: time between two programs of a lane"),
        "ramp_s": number(ramp_s, "closed: the lanes start evenly spaced over this time"),
    }


@dataclass(frozen=True)
class Arrival:
    """`arrival_s` and `lane` as `Program` has them."""

    arrival_s: float
    lane: int | None = None


def arrivals(count: int, seed: str, values: Mapping[str, Any]) -> list[Arrival]:
    """Arrivals of `count` programs. With one seed, another rate stretches the same Poisson pattern."""
    if values["arrival"] == "closed":
        return [in_lane(index % values["lanes"], index // values["lanes"], values) for index in range(count)]
    if values["arrival"] == "even":
        return [Arrival(index / values["qps"]) for index in range(count)]
    rng = random.Random(f"{seed}/arrivals")
    times, unit = [], 0.0
    for _ in range(count):
        unit += rng.expovariate(1.0)
        times.append(Arrival(unit / values["qps"]))
    return times


def in_lane(lane: int, position: int, values: Mapping[str, Any]) -> Arrival:
    """The program at `position` of a closed loop: the first starts with the ramp, the others after the pause."""
    if position:
        return Arrival(float(values["pause_s"]), lane)
    return Arrival(values["ramp_s"] * lane / values["lanes"], lane)
