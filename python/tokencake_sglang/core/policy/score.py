"""`score`: the gate that the published code ships instead of Algorithm 1, with its weights, and no timed upload.

Blocks are the published 16 tokens, steps become seconds. It needs no memory: the back-off after a rejection is the
time at which it looks again, and when an agent was offloaded last comes with its view.
"""

from __future__ import annotations

from dataclasses import dataclass

from tokencake_sglang.core.plan import Decision, Offload
from tokencake_sglang.core.policy.published import PublishedPolicy, remaining_s, return_is_near_at, transfer_s
from tokencake_sglang.core.types import AgentView, PoolView, StallView, WaitingView

BLOCK_TOKENS = 16
STEP_S = 0.05
BACKOFF_S = 8 * STEP_S
CHURN_S = 4 * STEP_S
THRESHOLD = 1.0
LOW_USAGE = 0.60
EMERGENCY_USAGE = 0.85
PROTECTED_IMPORTANCE = 8.0


@dataclass(frozen=True)
class Case:
    """The figures that gates and terms are made of: seconds, blocks, shares of the device."""

    stall_s: float  # D
    transfer_s: float  # T
    blocks: int  # B
    usage: float
    free: int
    waiting_demand: int  # of all waiting requests seen
    fit_demand: int  # of the one that fits, 0 without one
    waiting: int
    host_free_tokens: int
    host_needed_tokens: int
    importance: float
    near_completion: bool
    churn_blocks: int  # of its last offload, 0 if that was not just now
    churned: bool

    @property
    def margin_s(self) -> float:
        return self.stall_s - self.transfer_s

    @property
    def upload_safe(self) -> bool:
        return self.stall_s >= 2 * self.transfer_s

    @property
    def emergency(self) -> bool:
        return (
            self.usage >= EMERGENCY_USAGE and self.margin_s >= max(4 * self.transfer_s, 5.0) and self.waiting > 0)

    def refusal(self) -> str | None:
        """The first of the gates 3 to 8 that is shut, as a reason; None when all are open."""
        if self.waiting == 0:
            return "nobody waits"
        if self.fit_demand == 0:
            return "no waiting request fits into the memory"
        if self.host_free_tokens < self.host_needed_tokens:
            return "the host has no room"
        if self.margin_s <= 0:
            return "the copies take as long as the tool"
        if self.margin_s < max(0.05, 2 * self.transfer_s) and not self.emergency:
            return "the copies take too much of the stall"
        if self.usage < LOW_USAGE and (self.waiting_demand <= self.free or self.fit_demand < self.blocks):
            return "the device has room"
        if self.importance >= PROTECTED_IMPORTANCE and (
                self.near_completion or self.margin_s < max(0.5, 8 * self.transfer_s) or not self.upload_safe):
            return "it is too important"
        return None

    def terms(self) -> tuple[tuple[str, float], ...]:
        """The score by terms; penalties are negative."""
        churn = 1.5 * self.churned + min(4.0, max(0, self.churn_blocks - 64) / 8)
        return (
            ("stall", min(6.0, self.margin_s / max(0.25, self.transfer_s))),
            ("pressure", max(0.0, (self.usage - LOW_USAGE) * 6)
             + min(2.0, self.waiting_demand / (self.blocks + 1))),
            ("fit", min(2.0, self.fit_demand / max(1, self.blocks))),
            ("upload_safety", 1.0 if self.upload_safe else -1.0),
            ("cpu", 1.0 if self.host_free_tokens >= self.host_needed_tokens else -4.0),
            ("importance", 0.0 - 0.35 * self.importance),
            ("near_completion", 0.0 - 2.0 * self.near_completion),
            ("churn", 0.0 - churn),
        )


class ScorePolicy(PublishedPolicy):
    def _stalled(self, now: float, agent: AgentView, stall: StallView, pool: PoolView) -> Decision:
        release_at = return_is_near_at(agent, stall, pool)
        if agent.move is not None:
            return Decision(None, "a move is under way", wake_at=release_at if now < release_at else None)
        if now >= release_at:
            return self._release(agent, "the return is near: the cache loads on demand")
        if agent.footprint.path_tokens == 0:
            return Decision(None, "it has no prefix to use again", wake_at=release_at)
        if agent.footprint.unshared_device_tokens < self.config.min_offload_tokens:
            return Decision(None, "too little unshared KV on the device", wake_at=release_at)
        again = min(release_at, now + BACKOFF_S)
        case = self.case(now, agent, stall, pool)
        refusal = case.refusal()
        if refusal is not None:
            return Decision(None, refusal, again, (("usage", case.usage), ("margin_s", case.margin_s)))
        terms = case.terms()
        score = sum(value for _, value in terms)
        terms = (("score", score), *terms)
        if score < THRESHOLD:
            return Decision(None, "the score is too low", again, terms)
        reason = "the score is high enough, in an emergency" if case.emergency else "the score is high enough"
        return Decision(Offload(release_at), reason, release_at, terms)

    def case(self, now: float, agent: AgentView, stall: StallView, pool: PoolView) -> Case:
        footprint = agent.footprint
        blocks, free = _blocks(footprint.unshared_device_tokens), (pool.device_free + pool.device_dead) // BLOCK_TOKENS
        demands = [_demand(one) for one in pool.waiting]
        fitting = [demand for demand in demands if demand <= free + blocks]
        fit = max(fitting, default=0) if self.config.score_selection == "best_fit" else next(iter(fitting), 0)
        best = self.config.score_selection == "best_fit"
        fit = max(fitting, default=0) if best else next(iter(fitting), 0)
        churned = agent.offloaded_at is not None and now - agent.offloaded_at <= CHURN_S
        return Case(
            stall_s=remaining_s(now, stall), transfer_s=transfer_s(agent, pool), blocks=blocks, usage=pool.usage,
            free=free, waiting_demand=sum(demands), fit_demand=fit,
            waiting=len(demands), host_free_tokens=pool.host_free,
            host_needed_tokens=footprint.unshared_device_tokens - footprint.backed_up_tokens,
            importance=min(10.0, max(0.0, agent.importance)), near_completion=agent.near_completion,
            churn_blocks=_blocks(agent.offloaded_tokens) if churned else 0, churned=churned)

    def _returned(self, now: float, agent: AgentView, returned_at: float, pool: PoolView) -> Decision:
        return self._release(agent, "the tool has returned: the cache loads on demand")


def _blocks(tokens: int) -> int:
    return -(-tokens // BLOCK_TOKENS)


def _demand(one: WaitingView) -> int:
    """Blocks that a waiting request needs: its missing prompt, at the least one for what it generates."""
    return max(1, _blocks(one.missing_tokens))
