"""The waiting queue in the order of the spatial scheduler; programs at the door are passed over.

Sits behind calls of SGLang's scheduler (patches 0005, 0006) and translates: requests into values, answers into places.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from tokencake_sglang.core.controller import Controller
from tokencake_sglang.core.hints import RequestHints
from tokencake_sglang.core.spatial import Demand, SpatialScheduler, Waiting
from tokencake_sglang.core.spatial.ledger import SHARED
from tokencake_sglang.core.types import TENANT, AgentIdentity
from tokencake_sglang.engine.cache import TokenCakeHiRadixCache, agent_key
from tokencake_sglang.engine.growth import OutputEnds
from tokencake_sglang.engine.owners import ANONYMOUS
from tokencake_sglang.engine.pools import DevicePools
from tokencake_sglang.engine.pools_state import MEMORY, memory_report, waiting_reasons
from tokencake_sglang.engine.queue_order import QueueOrder
from tokencake_sglang.engine.requests import count_on_device, growth_tokens, held, runs_any, tokens_so_far

INVERSIONS_KEPT = 64  # for the live state


class ProgramQueue:
    """One scheduler's queue. `now` is the controller's time; everything else comes from the queue and the cache."""

    def __init__(self, scheduler: Any, cache: TokenCakeHiRadixCache, controller: Controller) -> None:
        self.scheduler = scheduler
        self.cache = cache
        self.controller = controller
        self.spatial = SpatialScheduler(controller.config)
        self.tells_tenants = bool(controller.config.tenant_header)  # else whoever names one would gain by it
        self.spatial.place = controller.runs.place
        self.spatial.lost = lambda agent: cache.owners.lost.get(agent, 0)
        self.program_of: dict[str, str] = {ANONYMOUS: SHARED}  # agent -> its program
        self.device = DevicePools(scheduler, cache, controller, self.spatial, self.program_of, self._state)
        self.pools = self.device.pools
        self._line = QueueOrder()
        self.output_ends = OutputEnds(self.spatial.most_expected)
        self._at_the_door: dict[str, None] = {}  # requests that were counted there
        self._inversions: deque[dict[str, Any]] = deque(maxlen=INVERSIONS_KEPT)
        controller.queue_wait_s = self._wait_s
        controller.on_agent_gone = self.agent_ended
        cache.owners.program_of = lambda key: self.program_of.get(key, key)
        cache.owners.on_lost_changed = lambda key: self.spatial.kv_lost_changed(self.program_of.get(key, key))

    def request_added(self, req: Any, identity: AgentIdentity | None, hints: RequestHints) -> None:
        program = ""
        if identity is not None:
            program = self.program_of.setdefault(identity.key, self.controller.agents.program_of(identity))
        waiting = Waiting(
            rid=req.rid, program=program, agent=agent_key(req), kind=(identity.agent_type or "") if identity else "",
            application=(identity.graph_id or "") if identity else "",
            prompt_tokens=tokens_so_far(req), max_new_tokens=growth_tokens(req),
            tenant=(req.agent_metadata or {}).get(TENANT, "") if self.tells_tenants else "",
            expected_tokens=hints.expected_output_tokens, priority=hints.priority)
        self.spatial.request_added(self.controller.now, waiting, self._state)
        self.output_ends.pop(req.rid, None)
        self._line.joined(req)
        self.device.request_added(waiting)

    def request_ended(self, req: Any) -> None:
        self.spatial.request_ended(self.controller.now, req.rid, len(req.output_ids))
        self.output_ends.clear()  # a length was learnt
        self.pools.request_ended(req.rid)
        self._line.left(req)
        self._at_the_door.pop(req.rid, None)

    def agent_ended(self, key: str) -> None:
        program = self.program_of.pop(key, None)
        self.pools.agent_ended(key)
        if program is not None:
            self.spatial.agent_ended(self.controller.now, program, key)

    def order(self, queue: list[Any]) -> None:
        """Sort the queue in place and decide who waits at the door."""
        now = self.controller.now
        if self.spatial.num_requests > len(queue) + count_on_device(self.scheduler):
            self._forget_vanished()
        if self.spatial.follow(now):
            self._line.sort(queue, self.spatial)
        self.spatial.admit(now, self._demand(), self._state)
        self.device.step()

    def holds_back(self, req: Any) -> bool:
        if not self.spatial.holds_back(req.rid):
            return self.device.passes_over(req)
        if req.rid not in self._at_the_door:
            self._at_the_door[req.rid] = None
            self.controller.counters["denied_by_door"] += 1
        return True

    def would_hold_back(self, req: Any) -> bool:
        """The same as a question, at any time: nothing is counted, and no room is taken for the request."""
        return self.spatial.holds_back(req.rid) or self.pools.would_pass_over(self.controller.now, req.rid)

    def admitted(self, reqs: list[Any]) -> None:
        for req in reqs:
            self.spatial.request_admitted(self.controller.now, req.rid, req.extend_range.length)
            self.pools.request_admitted(req.rid)
            self._line.left(req)
        inversions = self.spatial.critical_inversions([req.rid for req in reqs])
        self.controller.counters["critical_inversions"] += len(inversions)
        self._inversions.extend(
            {"at": self.controller.now, **one._asdict(), "reason": self.pools.denial(one.passed) or MEMORY}
            for one in inversions)

    def report(self, most: int) -> dict[str, Any]:
        """For the live state: up to `most` programs that have requests, the oldest first, as many waiting requests, and
        the pools' service."""
        spatial, ledger = self.spatial, self.cache.owners.ledger
        reasons = waiting_reasons(self.scheduler.waiting_queue, spatial, self.pools)
        busy = sorted((p for p in spatial.programs if p.rids), key=lambda p: p.order)[:most]
        return {
            "programs": [{
                "program": p.name, "arrived_at": p.arrived_at, "requests": len(p.rids),
                "waiting": spatial.waits(p.rids), "kv_tokens": ledger.held(p.name),
                "at_the_door": p.name in spatial.held_back, "queue_wait_s": spatial.wait_s(p.name)} for p in busy],
            "waiting": [{"rid": rid, "program": program, "path_s": path_s, "reason": reasons.get(rid)}
                        for rid, program, path_s in spatial.waiting(most)],
            "memory": memory_report(self.device, most),
            "pools": [{"tenant": tenant, "class": kind, "service": service}
                      for (tenant, kind), service in sorted(spatial.shares.times().items())],
            "shared_kv_tokens": ledger.held(SHARED), "owned_kv_tokens": ledger.total,
            "admissions_per_s": spatial.pace.per_s,
            "critical_inversions": list(self._inversions)[::-1],
        }

    def _forget_vanished(self) -> None:
        """Requests that were aborted in the queue: nobody tells of them."""
        live = {req.rid for req in held(self.scheduler)}
        for rid in [rid for rid in self.spatial.rids() if rid not in live]:
            self.spatial.request_ended(self.controller.now, rid)
            self.pools.request_ended(rid)
            self._at_the_door.pop(rid, None)

    def _wait_s(self, key: str) -> float:
        """Seconds until a request of the agent has its turn; 0 while one runs and none waits."""
        agent = self.controller.agents.get(key)
        if agent is not None and agent.rids and not self.spatial.waits(agent.rids):
            return 0.0
        return self.spatial.wait_s(self.program_of.get(key, key))

    def _state(self, key: str) -> tuple[bool, float] | None:
        agent = self.controller.agents.get(key)
        return None if agent is None else (agent.calls.waits_for_tools, agent.last_seen)

    def _demand(self) -> Demand:
        scheduler, host = self.scheduler, self.cache.token_to_kv_pool_host
        ledger = self.cache.owners.ledger
        return Demand(
            scheduler.max_total_num_tokens + host.size, ledger.accounts, ledger.total, runs_any(scheduler),
            beside=(scheduler.chunked_prefill_size or 0) if scheduler.is_mixed_chunk else 0)
