"""`cost`: KV leaves when memory is wanted, what is worth least first, and is back before its agent where there is room.

Device memory has no price while it lies free, so nothing moves on a quiet server. When it is short, victims are chosen
by what a token is worth: the seconds that it takes to get it back over the seconds until it is used (engine/worth.py).
This policy says when that will be, has copies made in time on the host, and wishes for uploads (core/uploads.py).
"""

from __future__ import annotations

from tokencake_sglang.core.config import TokenCakeConfig
from tokencake_sglang.core.plan import Action, Backup, CancelOffload, Decision, UploadWish
from tokencake_sglang.core.types import AgentView, PoolView, StallView
from tokencake_sglang.core.uploads import MIN_UPLOAD_TOKENS

USE_LEVEL = 0.5  # quantile of the return at which the KV of a stalled agent is taken to be used again
UPLOAD_LEVEL = 0.05  # quantile of the return before which its KV should be back
LEAD_SLACK_S = 0.15  # before that return it should be back: copies begin and end with a step, room has to come free
PLAN_AHEAD_S = 5.0  # before its copy would have to begin, an upload is planned together with others on the link
RETURN_GAP_S = 5.0  # from a tool's return to the agent's next request, at the most
REPLAN_SHARE = 0.5  # of the time that is left, until an agent is looked at again
REPLAN_MIN_S = 0.25
SHORT_WAIT_S = 1.0  # in the queue: a decision hardly changes with waits that are no longer
SHORT_SHARE = 0.2  # free device memory below this share of the pool is short


class CostPolicy:
    reads_waiting = reads_demand = False
    follows_kv = True

    def __init__(self, config: TokenCakeConfig) -> None:
        self.config = config

    def decide(self, now: float, agent: AgentView, pool: PoolView) -> Decision:
        if agent.active:
            return self._active(now, agent)
        if agent.stall is not None:
            return self._stalled(now, agent, agent.stall, pool)
        if agent.returned_at is not None and now < agent.returned_at + RETURN_GAP_S:
            use_at = now + agent.queue_wait_s
            wish = self._wish(agent, pool, use_at - lead_s(agent, pool))
            return Decision(None, "ready for its next request", next_use=use_at,
                            wake_at=agent.returned_at + RETURN_GAP_S, wish=wish)
        if agent.used_until is not None and now < agent.used_until:
            return self._within_ttl(now, agent, pool)
        return Decision(self._backup(agent, pool), "nobody knows when it comes again")

    def _active(self, now: float, agent: AgentView) -> Decision:
        """KV that it has is used when its turn comes, which may move away while it waits: others go before it."""
        cancel = CancelOffload() if agent.move == "offload" else None
        wait = agent.queue_wait_s
        wake = now + max(SHORT_WAIT_S, REPLAN_SHARE * wait) if wait > 0 and agent.footprint.held_tokens else None
        return Decision(cancel, "it is being served", next_use=now + wait, wake_at=wake)

    def _within_ttl(self, now: float, agent: AgentView, pool: PoolView) -> Decision:
        """Its client has said until when it expects to come again. As KV without a word, it is taken to rest as long
        as it has rested; yet not beyond the middle of what is left."""
        rest = min(now - agent.idle_since, USE_LEVEL * (agent.used_until - now))
        wake = now + max(REPLAN_MIN_S, REPLAN_SHARE * rest)
        return Decision(self._backup(agent, pool), "its client expects to come again", next_use=now + rest,
                        wake_at=min(wake, agent.used_until))

    def _stalled(self, now: float, agent: AgentView, stall: StallView, pool: PoolView) -> Decision:
        left = self._left_s(now, stall, USE_LEVEL) + agent.queue_wait_s
        if not agent.footprint.held_tokens:
            return Decision(None, "it waits for a tool and has no KV", next_use=now + left)
        early = self._left_s(now, stall, UPLOAD_LEVEL) + agent.queue_wait_s
        half_way = now + max(REPLAN_MIN_S, REPLAN_SHARE * left)
        start_by = now + early - lead_s(agent, pool)
        if self.config.upload in ("timer", "hybrid") and start_by <= now:
            return Decision(None, "it is about to return", next_use=now + left, wake_at=half_way,
                            wish=self._wish(agent, pool, start_by))
        wish, look_at, backup = None, start_by, self._backup(agent, pool)
        if agent.footprint.restore_tokens < MIN_UPLOAD_TOKENS:
            look_at = now + early + REPLAN_MIN_S
        elif self.config.upload in ("at-stall", "hybrid"):
            wish = self._wish(agent, pool, start_by, is_due=False)
        elif self.config.upload == "timer" and start_by <= now + PLAN_AHEAD_S:
            wish = self._wish(agent, pool, start_by)
        else:
            look_at = start_by - PLAN_AHEAD_S
        if look_at <= now or wish is not None or self._may_change(agent):
            look_at = half_way if look_at <= now else min(half_way, look_at)
        return Decision(backup, "it waits for a tool", next_use=now + left, wake_at=look_at, wish=wish)

    def _may_change(self, agent: AgentView) -> bool:
        """Whether the decision may, long before the call's return is likely: with a move, with memory for KV without a
        copy, or with the queue. For KV that begins to leave the device it is asked again anyway."""
        return agent.move is not None or self._has_no_copy(agent) or agent.queue_wait_s > SHORT_WAIT_S

    def _left_s(self, now: float, stall: StallView, level: float) -> float:
        """Seconds until the agent has returned with probability `level`."""
        if stall.forecast is not None:
            return stall.forecast.quantile(level)
        if now < stall.predicted_end:
            return stall.predicted_end - now
        return now - stall.started_at  # a call that is late is expected to last as long again

    def _backup(self, agent: AgentView, pool: PoolView) -> Action | None:
        """Copies on the host for KV that may have to leave the device."""
        if agent.move is not None or not self._has_no_copy(agent):
            return None
        return Backup() if _is_short(pool) else None

    def _has_no_copy(self, agent: AgentView) -> bool:
        """Whether enough of its KV is on the device only."""
        kv = agent.footprint
        return kv.unshared_device_tokens - kv.backed_up_tokens >= self.config.min_offload_tokens

    def _wish(self, agent: AgentView, pool: PoolView, start_by: float, is_due: bool = True) -> UploadWish | None:
        """What is missing should come back, as far as nobody waits for that memory."""
        missing = agent.footprint.restore_tokens
        if self.config.upload == "none" or agent.move not in (None, "upload") or missing < MIN_UPLOAD_TOKENS:
            return None
        return UploadWish(missing, start_by, is_due, agent.importance, copy_s(agent, pool))


def copy_s(agent: AgentView, pool: PoolView) -> float:
    """How long the copy of what an agent misses lasts, alone on the link and without a pause."""
    return pool.costs.upload_s(agent.footprint.restore_tokens)


def lead_s(agent: AgentView, pool: PoolView) -> float:
    """How long before its agent is back an upload has to begin at the latest."""
    return copy_s(agent, pool) + LEAD_SLACK_S


def _is_short(pool: PoolView) -> bool:
    return pool.device_free + pool.device_dead < SHORT_SHARE * pool.device_total
