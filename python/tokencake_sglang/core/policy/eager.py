"""`eager`: offload every stall longer than a floor, upload at the predicted return minus a lead.

The plain policy: it asks neither whether anybody needs the memory nor what the move costs. An upload takes
only memory that is free or dead and that the head of the queue does not wait for, so it cannot hurt others.
"""

from __future__ import annotations

from tokencake_sglang.core.config import TokenCakeConfig
from tokencake_sglang.core.plan import CancelOffload, Decision, Offload, Release, Upload
from tokencake_sglang.core.types import AgentView, PoolView
from tokencake_sglang.core.uploads import MIN_UPLOAD_TOKENS

RETRY_S = 0.05
LATE_RETRY_S = 1.0
HOST_LEASE_MIN_S = 60.0
HOST_LEASE_MAX_S = 3600.0


class EagerPolicy:
    reads_waiting = False

    def __init__(self, config: TokenCakeConfig) -> None:
        self.config = config

    def decide(self, now: float, agent: AgentView, pool: PoolView) -> Decision:
        if agent.active:
            return self._in_use(agent)
        if agent.stall is None:
            return self._returned(now, agent, pool)
        upload_at = agent.stall.predicted_end - self.config.upload_lead_s
        lease_end = agent.stall.predicted_end + self.config.lease_s
        if now < upload_at:
            return self._early_in_stall(now, agent, upload_at)
        if now < lease_end:
            return self._return_is_near(agent, pool, now, lease_end)
        return self._late(now, agent)

    def _in_use(self, agent: AgentView) -> Decision:
        if agent.move == "offload":
            return Decision(CancelOffload(), "its next request is here")
        return Decision(None, "it is being served")

    def _returned(self, now: float, agent: AgentView, pool: PoolView) -> Decision:
        if agent.move == "offload":
            return Decision(CancelOffload(), "the tool returned during the copy", wake_at=now)
        if agent.returned_at is None:
            return self._end_lease(agent, "its request has been served")
        lease_end = agent.returned_at + self.config.lease_s
        if now >= lease_end:
            return self._end_lease(agent, "no request came after the return")
        if agent.move is None and agent.footprint.restore_tokens >= MIN_UPLOAD_TOKENS:
            return self._upload(agent, pool, now, lease_end, "the tool has returned")
        return Decision(None, "ready for its next request", wake_at=lease_end)

    def _end_lease(self, agent: AgentView, reason: str) -> Decision:
        return Decision(Release() if agent.lease_until is not None else None, reason)

    def _early_in_stall(self, now: float, agent: AgentView, upload_at: float) -> Decision:
        if agent.move is not None:
            return Decision(None, "a move is under way", wake_at=upload_at)
        if agent.stall.predicted_end - agent.stall.started_at < self.config.stall_floor_s:
            return Decision(None, "the stall is shorter than the floor", wake_at=upload_at)
        if agent.footprint.unshared_device_tokens < self.config.min_offload_tokens:
            return Decision(None, "too little unshared KV on the device", wake_at=upload_at)
        return Decision(Offload(host_lease_end(agent)), "the stall is longer than the floor", wake_at=upload_at)

    def _return_is_near(self, agent: AgentView, pool: PoolView, now: float, lease_end: float) -> Decision:
        if agent.move is None and agent.footprint.restore_tokens >= MIN_UPLOAD_TOKENS:
            return self._upload(agent, pool, now, lease_end, "the tool is about to return")
        return Decision(None, "ready for the return", wake_at=lease_end)

    def _late(self, now: float, agent: AgentView) -> Decision:
        if agent.move is not None:
            return Decision(None, "a move is under way")
        host_end = host_lease_end(agent)
        if agent.footprint.unshared_device_tokens >= self.config.min_offload_tokens:
            return Decision(Offload(host_end), "the tool is late: the memory goes back", wake_at=now + LATE_RETRY_S)
        if now >= host_end:
            return self._end_lease(agent, "the tool is too late to keep its KV before others")
        return Decision(None, "the tool is late", wake_at=host_end)

    def _upload(self, agent: AgentView, pool: PoolView, now: float, lease_until: float, reason: str) -> Decision:
        room = pool.device_free + pool.device_dead - pool.waiting_head_tokens
        if room <= 0 or pool.loads_in_flight >= pool.load_slots:
            return Decision(None, "no room to upload into yet", wake_at=now + RETRY_S)
        return Decision(Upload(room, lease_until), reason, wake_at=now + RETRY_S)


def host_lease_end(agent: AgentView) -> float:
    """When a stalled agent's host copy loses its protection: clamp(4 D, 60, 3600) s after the call started."""
    length = agent.stall.predicted_end - agent.stall.started_at
    return agent.stall.started_at + min(max(4 * length, HOST_LEASE_MIN_S), HOST_LEASE_MAX_S)
