"""The agents the server knows: who they are, what they wait for, which requests they have. Bounded."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field

from tokencake_sglang.core.config import TokenCakeConfig
from tokencake_sglang.core.forecast import Forecaster, make_forecaster
from tokencake_sglang.core.stalls import CallTable, Reply
from tokencake_sglang.core.types import AgentIdentity

LIFECYCLES_KEPT = 64
ENDED_KEPT = 4096


@dataclass
class Agent:
    identity: AgentIdentity  # as its last request told
    calls: CallTable
    last_seen: float
    key: str = field(init=False)  # of any of its identities
    rids: dict[str, None] = field(default_factory=dict)  # requests that were added and have not ended
    lifecycles: dict[str, None] = field(default_factory=dict)
    returned_at: float | None = None
    move: str | None = None
    move_is_asked: bool = False  # a client asked for the move that is under way
    lease_until: float | None = None
    upload_ready: bool = False  # all that was missing in this stall has landed, and the tool is still out
    late_counted: bool = False  # its uploads of this stall count as late
    wake_at: float | None = None
    offloaded_at: float | None = None
    offloaded_tokens: int = 0
    generation: int = 0
    requests: int = 0
    tells_calls: bool = False  # its client reports tool calls, so that none is inferred
    program: str = ""
    idle_since: float | None = None  # when its last request ended
    cache_ttl_s: float | None = None  # of its last request: how long after it the KV is expected to be used

    def __post_init__(self) -> None:
        self.key = self.identity.key

    @property
    def used_until(self) -> float | None:
        """Until then its client expects its KV to be used again."""
        if self.idle_since is None or self.cache_ttl_s is None or self.rids:
            return None
        return self.idle_since + self.cache_ttl_s

    @property
    def state(self) -> str:
        if self.rids:
            return "active"
        return "stalled" if self.calls.open else "idle"


class AgentTable:
    """Agents by key, least recently seen first; remembers which have ended so that repeats are known."""

    def __init__(self, config: TokenCakeConfig, forecaster: Forecaster | None = None) -> None:
        self.config = config
        self.forecaster = forecaster or make_forecaster(config)
        self.agents: OrderedDict[str, Agent] = OrderedDict()
        self.by_lifecycle: dict[str, str] = {}
        self.programs: dict[str, dict[str, None]] = {}  # program -> its agents
        self.ended: OrderedDict[str, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self.agents)

    def __iter__(self) -> Iterator[Agent]:
        return iter(self.agents.values())

    def get(self, key: str) -> Agent | None:
        return self.agents.get(key)

    def find(self, agent_id: str | None, lifecycle_id: str | None) -> Agent | None:
        """The agent that an event names: by its id, else by the id of one of its calls to the model."""
        if agent_id is not None:
            return self.agents.get(agent_id)
        key = self.by_lifecycle.get(lifecycle_id or "", lifecycle_id or "")
        return self.agents.get(key)

    def unknown(self, event: str, agent_id: str | None, lifecycle_id: str | None) -> Reply:
        """The answer to an event about an agent that is not known (any more)."""
        name = agent_id or lifecycle_id
        if not self.has_ended(agent_id, lifecycle_id):
            return Reply(404, "unknown_agent", (
                f"No request of agent {name!r} has been seen. Send the request with this id in its `tokencake`"
                f" object first; ids are forgotten after {self.config.agent_idle_s:g} s of silence."))
        if event in ("agent_finished", "program_finished"):
            return Reply(200, "duplicate", f"Agent {name!r} had ended before; nothing changed.")
        if event in ("stall_finished", "stage_finished"):
            return Reply(200, "late_finish", f"Agent {name!r} has ended already.")
        return Reply(409, "conflict", (
            f"Agent {name!r} has ended; a stall cannot start after that. Its next request makes it known again."))

    def has_ended(self, agent_id: str | None, lifecycle_id: str | None) -> bool:
        return (agent_id or lifecycle_id or "") in self.ended

    def see(self, now: float, identity: AgentIdentity) -> Agent:
        """Know this agent from now on (or again) and remember the request's lifecycle id."""
        agent = self.agents.get(identity.key)
        if agent is None:
            agent = Agent(identity, CallTable(), now, program=self.program_of(identity))
            self.agents[identity.key] = agent
            self.programs.setdefault(agent.program, {})[agent.key] = None
            self.ended.pop(identity.key, None)
        agent.identity = identity
        self.touch(agent, now)
        if identity.lifecycle_id is not None:
            self.ended.pop(identity.lifecycle_id, None)
            self._remember_lifecycle(agent, identity.lifecycle_id)
        return agent

    def program_of(self, identity: AgentIdentity) -> str:
        """The program of a known agent; of a new one its parent's, if that is known, else what it says itself."""
        known = self.agents.get(identity.key) or self.agents.get(identity.parent_agent_id or "")
        return identity.program if known is None else known.program

    def touch(self, agent: Agent, now: float) -> None:
        agent.last_seen = now
        self.agents.move_to_end(agent.key)

    def remove(self, key: str, *, ended: bool) -> Agent | None:
        agent = self.agents.pop(key, None)
        if agent is None:
            return None
        self.programs[agent.program].pop(key)
        if not self.programs[agent.program]:
            del self.programs[agent.program]
        for lifecycle_id in agent.lifecycles:
            if self.by_lifecycle.get(lifecycle_id) == key:
                del self.by_lifecycle[lifecycle_id]
        if ended:
            for name in (key, *agent.lifecycles):
                self.ended[name] = None
            while len(self.ended) > ENDED_KEPT:
                self.ended.popitem(last=False)
        return agent

    def stale(self, now: float) -> Agent | None:
        """The agent to forget next: idle for too long, or the oldest when there are too many; else None."""
        if not self.agents:
            return None
        oldest = next(iter(self.agents.values()))
        if len(self.agents) > self.config.max_agents:
            return oldest
        if now - oldest.last_seen < self.config.agent_idle_s:
            return None
        stall = oldest.calls.view(now, self.forecaster, oldest.identity.agent_type)
        quiet_since = max(oldest.last_seen, stall.predicted_end) if stall else oldest.last_seen
        quiet_since = max(quiet_since, (oldest.used_until or 0.0) - self.config.agent_idle_s)
        if oldest.move is not None or now - quiet_since < self.config.agent_idle_s:
            self.touch(oldest, oldest.last_seen)
            return None
        return oldest

    def _remember_lifecycle(self, agent: Agent, lifecycle_id: str) -> None:
        agent.lifecycles[lifecycle_id] = None
        self.by_lifecycle[lifecycle_id] = agent.key
        while len(agent.lifecycles) > LIFECYCLES_KEPT:
            old = next(iter(agent.lifecycles))
            del agent.lifecycles[old]
            if self.by_lifecycle.get(old) == agent.key:
                del self.by_lifecycle[old]
