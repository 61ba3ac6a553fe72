"""What the two published rules share: the length and the cost of a stall, and the course of an agent around them."""

from __future__ import annotations

import abc

from tokencake_sglang.core.config import TokenCakeConfig
from tokencake_sglang.core.plan import CancelOffload, Decision, Release
from tokencake_sglang.core.types import AgentView, PoolView, StallView

LEAD_MIN_S = 0.1  # published code: lead = max(0.1 s, 1.25 x the copy)
LEAD_FACTOR = 1.25


def remaining_s(now: float, stall: StallView) -> float:
    """T_fc less what has passed: seconds until the tool is expected back. Negative when it is late."""
    if stall.forecast is None:
        return stall.predicted_end - now
    return stall.forecast.expected_s - (now - stall.started_at)


def transfer_s(agent: AgentView, pool: PoolView) -> float:
    """T_transfer: seconds to move the unshared tokens on the device to the host and back (paper section 4.2)."""
    tokens = agent.footprint.unshared_device_tokens
    return pool.costs.offload_s(tokens) + pool.costs.upload_s(tokens)


def return_is_near_at(agent: AgentView, stall: StallView, pool: PoolView) -> float:
    """The predicted end less the time that the copy back takes, of what has left the device or might."""
    tokens = agent.footprint.restore_tokens + agent.footprint.unshared_device_tokens
    return stall.predicted_end - max(LEAD_MIN_S, LEAD_FACTOR * pool.costs.upload_s(tokens))


class PublishedPolicy(abc.ABC):
    """Answers for an agent that does not wait for a tool; the subclasses answer for one that does."""

    reads_waiting = True

    def __init__(self, config: TokenCakeConfig) -> None:
        self.config = config

    def decide(self, now: float, agent: AgentView, pool: PoolView) -> Decision:
        if agent.active:
            if agent.move == "offload":
                return Decision(CancelOffload(), "its next request is here")
            return Decision(None, "it is being served")
        if agent.stall is not None:
            return self._stalled(now, agent, agent.stall, pool)
        if agent.move == "offload":
            return Decision(CancelOffload(), "the tool returned during the copy", wake_at=now)
        if agent.returned_at is None:
            return self._release(agent, "its request has been served")
        return self._returned(now, agent, agent.returned_at, pool)

    @abc.abstractmethod
    def _stalled(self, now: float, agent: AgentView, stall: StallView, pool: PoolView) -> Decision:
        """What to do while the tool is out."""

    @abc.abstractmethod
    def _returned(self, now: float, agent: AgentView, returned_at: float, pool: PoolView) -> Decision:
        """What to do until the agent's next request comes."""

    def _release(self, agent: AgentView, reason: str) -> Decision:
        return Decision(Release() if agent.lease_until is not None else None, reason)
