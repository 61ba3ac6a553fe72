"""`paper`: Algorithm 1 of the paper. Offload when a waiting request can be served while the tool runs.

Shipped code differs from it; see `score`. What the paper leaves open is filled in as docs/policies.md says.
"""

from __future__ import annotations

from tokencake_sglang.core.costs import Costs
from tokencake_sglang.core.plan import Decision, Offload, Upload
from tokencake_sglang.core.policy.eager import RETRY_S, host_lease_end
from tokencake_sglang.core.policy.published import PublishedPolicy, remaining_s, return_is_near_at, transfer_s
from tokencake_sglang.core.types import AgentView, PoolView, StallView, WaitingView
from tokencake_sglang.core.uploads import MIN_UPLOAD_TOKENS

RECHECK_S = 0.25  # the paper asks in every scheduling cycle


def throughput(costs: Costs) -> float:
    """v_throughput: tokens per second that the server serves. The paper does not say how it is measured; here it is
    the rate of prefill, which leaves out how slowly tokens are generated."""
    return 1.0 / max(costs.prefill_token_s, 1e-9)


def best_fit(waiting: tuple[WaitingView, ...], capacity: float) -> WaitingView | None:
    """The waiting request with the most tokens that are not more than `capacity`; of equals the first."""
    fitting = [one for one in waiting if one.total_tokens <= capacity]
    return max(fitting, key=lambda one: one.total_tokens, default=None)


class PaperPolicy(PublishedPolicy):
    def _stalled(self, now: float, agent: AgentView, stall: StallView, pool: PoolView) -> Decision:
        upload_at = return_is_near_at(agent, stall, pool)
        lease_end = stall.predicted_end + self.config.lease_s
        if now >= lease_end:
            return self._late(now, agent)
        if agent.move is not None:
            return Decision(None, "a move is under way", wake_at=upload_at if now < upload_at else lease_end)
        if now < upload_at:
            return self._algorithm_1(now, agent, stall, pool, upload_at)
        if agent.footprint.restore_tokens >= MIN_UPLOAD_TOKENS:
            return self._upload(now, pool, lease_end, "the tool is about to return")
        return Decision(None, "ready for the return", wake_at=lease_end)

    def _algorithm_1(
            self, now: float, agent: AgentView, stall: StallView, pool: PoolView, upload_at: float) -> Decision:
        if agent.footprint.unshared_device_tokens < self.config.min_offload_tokens:
            return Decision(None, "too little unshared KV on the device", wake_at=upload_at)
        left, transfer = remaining_s(now, stall), transfer_s(agent, pool)
        terms = (("remaining_s", left), ("transfer_s", transfer))
        if left <= transfer:
            return Decision(None, "the copies take as long as the tool", upload_at, terms)
        capacity = (left - transfer) * throughput(pool.costs)
        terms += (("capacity_tokens", capacity),)
        again = min(upload_at, now + RECHECK_S)
        if not pool.waiting:
            return Decision(None, "nobody waits", again, terms)
        found = best_fit(pool.waiting, capacity)
        if found is None:
            return Decision(None, "no waiting request can be served meanwhile", again, terms)
        terms += (("fit_tokens", float(found.total_tokens)),)
        return Decision(
            Offload(host_lease_end(agent)), "a waiting request can be served meanwhile", upload_at, terms)

    def _late(self, now: float, agent: AgentView) -> Decision:
        """What came back too early is ordinary cache now; what is on the host keeps its copy for a while."""
        if agent.move is not None:
            return Decision(None, "a move is under way")
        host_end = host_lease_end(agent)
        if agent.footprint.restore_tokens >= MIN_UPLOAD_TOKENS and now < host_end:
            return Decision(None, "the tool is late", wake_at=host_end)
        return self._release(agent, "the tool is late: its KV is ordinary cache")

    def _returned(self, now: float, agent: AgentView, returned_at: float, pool: PoolView) -> Decision:
        lease_end = returned_at + self.config.lease_s
        if now >= lease_end:
            return self._release(agent, "no request came after the return")
        if agent.move is None and agent.footprint.restore_tokens >= MIN_UPLOAD_TOKENS:
            return self._upload(now, pool, lease_end, "the tool has returned")
        return Decision(None, "ready for its next request", wake_at=lease_end)

    def _upload(self, now: float, pool: PoolView, lease_until: float, reason: str) -> Decision:
        room = pool.device_free + pool.device_dead - pool.waiting_head_tokens
        if room <= 0 or pool.loads_in_flight >= pool.load_slots:
            return Decision(None, "no room to upload into yet", wake_at=now + RETRY_S)
        return Decision(Upload(room, lease_until), reason, wake_at=now + RETRY_S)
