"""Small frozen values shared by the policy side and the engine side. Tokens are KV slots, times are seconds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tokencake_sglang.core.costs import Costs
from tokencake_sglang.core.forecast import Forecast
from tokencake_sglang.core.values import value

# In a request's metadata, set by the server: whose it is, where tenants are told apart.
TENANT = "tenant"
# In a request's metadata, set by the server: the calls that it ends, joined by this; not there: all of its agent's.
ENDS_CALLS, CALLS_JOINED_BY = "ends_calls", "\n"
PREFILL = "prefill"  # the purpose of a request that generates nothing and says nothing of its agent's tools
IDENTITY_FIELDS = ("app_id", "graph_id", "node_id", "agent_type", "agent_id", "lifecycle_id")


@dataclass(frozen=True)
class AgentIdentity:
    """Who sent a request. `key` names the agent: its `agent_id`, else the `lifecycle_id` of the one call."""

    app_id: str | None = None
    graph_id: str | None = None
    node_id: str | None = None
    agent_type: str | None = None
    agent_id: str | None = None
    lifecycle_id: str | None = None
    program_id: str | None = None  # of a request whose `app_id` is not one run of a program; the server sets it
    parent_agent_id: str | None = None  # the agent that it works for
    purpose: str | None = None  # PREFILL: of one request, not of its agent

    @property
    def program(self) -> str:
        """The run of a program that the request belongs to: all of one `app_id`, unless said otherwise."""
        return self.program_id or self.app_id or self.key

    @property
    def key(self) -> str:
        return self.agent_id or self.lifecycle_id or ""

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str] | None) -> AgentIdentity | None:
        """The identity in a request's metadata; None when it names no agent. Unknown fields are ignored."""
        if not metadata:
            return None
        names = (*IDENTITY_FIELDS, "program_id", "parent_agent_id", "purpose")
        known = {name: metadata[name] for name in names if isinstance(metadata.get(name), str)}
        identity = cls(**known)
        return identity if identity.key else None


@value
class Footprint:
    """The KV an agent owns, in tokens. A token may be on the device and on the host at the same time."""

    device_tokens: int = 0
    host_tokens: int = 0
    unshared_device_tokens: int = 0  # on the device, owned by nobody else: what an offload frees
    restore_tokens: int = 0  # missing on the device along its latest path: what an upload brings back
    path_tokens: int = 0  # length of its latest path, on whichever tier
    backed_up_tokens: int = 0  # of the unshared ones on the device, those with a host copy: they leave without a copy
    landing_tokens: int = 0  # on the device by the books, but still on their way to it outside a batch

    @property
    def held_tokens(self) -> int:
        """On the tier that holds more of them."""
        return max(self.device_tokens, self.host_tokens)


@value
class WaitingView:
    """A request that waits for admission."""

    key: str  # its agent, "" without identity
    total_tokens: int  # its prompt and the most that it may generate
    missing_tokens: int  # of its prompt, what its agent has not on the device
    growth_tokens: int = 0  # the most that it may generate


@value
class PoolView:
    """Memory and demand as the scheduler sees them in this step, in tokens. Demand that was not asked for is None."""

    device_total: int
    device_free: int
    device_evictable: int
    device_dead: int  # evictable KV whose owners have all ended; nobody loses when it goes
    host_total: int
    host_free: int
    waiting_requests: int
    waiting_head_tokens: int | None  # device tokens that the first waiting requests need
    running_requests: int
    loads_in_flight: int
    load_slots: int
    waiting: tuple[WaitingView, ...] = ()  # the first requests of the queue, in its order, for a policy that asks
    growth_tokens: int | None = 0  # the most that running requests may still generate
    admission_tokens: int | None = 0  # free and evictable tokens without which SGLang refuses the first waiting request
    costs: Costs = Costs()

    @property
    def usage(self) -> float:
        """Share of the device pool that holds KV which somebody may want again (paper section 4: pool usage)."""
        return 1.0 - min(1.0, (self.device_free + self.device_dead) / max(1, self.device_total))

    @property
    def wanted_tokens(self) -> int:
        """Device tokens that the head of the queue waits for, as far as it is looked at."""
        return max(self.waiting_head_tokens, self.admission_tokens)


@value
class StallView:
    """The tool calls an agent waits for, taken together."""

    kind: str
    started_at: float
    predicted_end: float  # by the point forecast
    open_calls: int
    forecast: Forecast | None = None  # of the return, as of now; None without a forecaster


@value
class AgentView:
    """What a policy may know of one agent. `active`: a request of it waits or runs."""

    key: str
    agent_type: str | None
    active: bool
    stall: StallView | None
    returned_at: float | None  # when its last stall ended, if no request has come since
    move: str | None  # "offload", "backup" or "upload" while one is under way; "demotion": an offload that a client
    # asked for, which is not taken back
    lease_until: float | None
    footprint: Footprint
    importance: float = 0.0  # 0 to 10, by its place in the application's graph; 0 where no graph is known
    near_completion: bool = False  # whether little of the application is left after it
    queue_wait_s: float = 0.0  # how long a request of it waits for admission, as the queue is
    offloaded_at: float | None = None  # when its last offload ended, whatever came after it
    offloaded_tokens: int = 0  # how many tokens that one took off the device
    idle_since: float | None = None  # when its last request ended
    used_until: float | None = None  # until then its client expects its KV to be used again, as its last request said
