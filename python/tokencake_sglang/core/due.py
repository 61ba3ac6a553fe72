"""Which agents are decided about in a step: those that something has happened to, and those whose time has come.

What is decided again about an agent with a request is when its turn comes, which can wait for a while; of a thousand
such agents a step takes a few, those whose time came first.
"""

from __future__ import annotations

from itertools import islice

from tokencake_sglang.core.agents import Agent, AgentTable
from tokencake_sglang.core.timers import Timers

DECISIONS_PER_STEP = 64
IN_QUEUE_PER_STEP = 4  # agents with requests whose time has come


class Due:
    """Of the agents of one table; those that are gone are left out."""

    def __init__(self, agents: AgentTable) -> None:
        self._agents = agents
        self._now: dict[str, None] = {}
        self._timers, self._in_queue = Timers(agents), Timers(agents)

    def __len__(self) -> int:
        return len(self._now)

    @property
    def timers(self) -> int:
        """That lie in the heaps, replaced ones among them."""
        return len(self._timers) + len(self._in_queue)

    def mark(self, agent: Agent) -> None:
        """Decide about it in the next step."""
        self._now[agent.key] = None

    def drop(self, key: str) -> None:
        self._now.pop(key, None)

    def look_again(self, agent: Agent, at: float | None) -> None:
        """Decide about it at that time; None: at its next event. Replaces what was set before."""
        timers = self._in_queue if agent.rids else self._timers
        timers.set(agent, at)

    def look_by(self, agent: Agent, at: float) -> None:
        """Decide about it at that time, if it is not to be earlier."""
        self.look_again(agent, at if agent.wake_at is None else min(agent.wake_at, at))

    def next_at(self, now: float) -> float | None:
        """When the next agent is due: `now` if one is already, None if none waits for time to pass."""
        if self._now:
            return now
        return min((at for at in (self._timers.next_at, self._in_queue.next_at) if at is not None), default=None)

    def take(self, now: float) -> list[Agent]:
        """Those that are due, the first first, boundedly many; the others stay."""
        self._now |= dict.fromkeys(self._timers.take_due(now) + self._in_queue.take_due(now, IN_QUEUE_PER_STEP))
        if not self._now:
            return []
        keys = list(islice(self._now, DECISIONS_PER_STEP))
        for key in keys:
            del self._now[key]
        return [agent for agent in map(self._agents.get, keys) if agent is not None]
