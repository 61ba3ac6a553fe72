"""When which agent is due, on a heap. An agent has one timer: setting it again replaces what was set before."""

from __future__ import annotations

import heapq
import math

from tokencake_sglang.core.agents import Agent, AgentTable

TIMER_SLACK = 1024  # replaced timers that may lie in the heap, beside four for each agent


class Timers:
    """Timers of the agents of one table; those of agents that are gone count for nothing."""

    def __init__(self, agents: AgentTable) -> None:
        self._agents = agents
        self._heap: list[tuple[float, int, str, int]] = []
        self._number = 0

    def __len__(self) -> int:
        return len(self._heap)

    @property
    def next_at(self) -> float | None:
        """When the next timer ends, as of the last `take_due`."""
        return self._heap[0][0] if self._heap else None

    def set(self, agent: Agent, wake_at: float | None) -> None:
        """The agent is due at that time; None: at its next event."""
        agent.generation += 1
        agent.wake_at = wake_at
        if wake_at is not None:
            self._number += 1
            heapq.heappush(self._heap, (wake_at, self._number, agent.key, agent.generation))
        if len(self._heap) > 4 * len(self._agents) + TIMER_SLACK:
            self._heap = [timer for timer in self._heap if self._is_live(timer)]
            heapq.heapify(self._heap)

    def take_due(self, now: float, most: float = math.inf) -> list[str]:
        """Agents whose timers have ended, in the order of their ends, `most` of them."""
        due: list[str] = []
        while self._heap and len(due) < most and (self._heap[0][0] <= now or not self._is_live(self._heap[0])):
            timer = heapq.heappop(self._heap)
            if self._is_live(timer):
                due.append(timer[2])
        return due

    def _is_live(self, timer: tuple[float, int, str, int]) -> bool:
        """Whether its agent still waits for this timer (there was no later decision)."""
        agent = self._agents.get(timer[2])
        return agent is not None and agent.generation == timer[3]
