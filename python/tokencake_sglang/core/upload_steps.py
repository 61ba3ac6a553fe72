"""The part of a controller's step that starts uploads, after the decisions have said which are wanted."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokencake_sglang.core.agents import Agent
from tokencake_sglang.core.plan import Decision
from tokencake_sglang.core.uploads import STARTS_PER_STEP, UploadQueue

if TYPE_CHECKING:
    from tokencake_sglang.core.controller import Controller


class UploadSteps:
    """Wishes of one controller's agents, and the pieces that go on next."""

    def __init__(self, controller: Controller) -> None:
        self.controller = controller
        self.queue = UploadQueue()

    def note(self, agent: Agent, decision: Decision) -> None:
        """The newest decision says whether the agent's KV is wanted back."""
        if decision.wish is None:
            self.queue.drop(agent.key)
        else:
            self.queue.want(self.controller.now, agent.key, decision.wish)

    def start(self) -> None:
        """Start the most urgent pieces, boundedly many."""
        controller = self.controller
        for _ in range(STARTS_PER_STEP if self.queue.any_to_start(controller.now) else 0):
            pool = controller.mechanism.pool()
            piece = self.queue.next(controller.now, pool)
            if piece is None:
                return
            agent = controller.agents.get(piece[0])
            decision = Decision(piece[1], "it is the most urgent upload")
            outcome = controller.carry_out(agent, decision, controller.view(agent), pool)
            self.queue.answered(controller.now, agent.key, outcome)
