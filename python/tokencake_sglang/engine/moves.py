"""Carries out the controller's decisions on the cache: offloads, uploads, leases. It never decides."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from tokencake_sglang.core.costs import Costs
from tokencake_sglang.core.plan import (
    Action,
    Backup,
    CancelOffload,
    MoveDone,
    Offload,
    Outcome,
    Release,
    Retain,
    Upload,
)
from tokencake_sglang.core.types import Footprint, PoolView, WaitingView
from tokencake_sglang.engine.cache import TokenCakeHiRadixCache, agent_key
from tokencake_sglang.engine.growth import Growth
from tokencake_sglang.engine.offloads import Offloads
from tokencake_sglang.engine.requests import LiveRequests, growth_tokens, tokens_so_far
from tokencake_sglang.engine.uploads import Uploads

WAITING_HEAD = 8  # waiting requests whose demand an upload must leave room for
NO_DEMAND = {"waiting_head_tokens": None, "growth_tokens": None, "admission_tokens": None}
WAITING_VIEWED = 64  # waiting requests that a policy sees which asks for them (`reads_waiting`)


class KvMover:
    """The controller's Mechanism on one scheduler's cache. Equal on every tensor-parallel rank."""

    def __init__(self, cache: TokenCakeHiRadixCache, scheduler: Any) -> None:
        self.cache = cache
        self.scheduler = scheduler
        self.done: list[MoveDone] = []
        self.offloads = Offloads(cache, self.done)
        self.uploads = Uploads(cache, scheduler, self.done)
        self.waiting_viewed = 0  # waiting requests whose views a policy wants
        self.would_hold_back: Callable[[Any], bool] = lambda req: False  # whether a waiting request may not go yet
        self.growth = Growth(scheduler)  # as the admission counts it
        self.costs = Costs()  # as rank 0 told it last
        self._pool: PoolView | None = None

    # -- what the controller may know -----------------------------------------------------------------------

    def footprint(self, key: str) -> Footprint:
        footprint = self.cache.owners.footprint(key)
        landing = self.uploads.landing_tokens(key)
        return replace(footprint, landing_tokens=landing) if landing else footprint

    def pool(self, demand: bool = True) -> PoolView:
        """Measured once a step, and again after each move that was started in it."""
        if self._pool is None or (demand and self._pool.waiting_head_tokens is None):
            self._pool = self._measure(self.waiting_viewed) if demand else PoolView(**self._memory(), **NO_DEMAND)
        return self._pool

    def measure_pool(self) -> PoolView:
        """As of now, with the first waiting requests."""
        return self._measure(max(WAITING_HEAD, self.waiting_viewed))

    def _measure(self, viewed: int) -> PoolView:
        waiting = self.scheduler.waiting_queue
        running = self.scheduler.running_batch.reqs
        head = [req for req in waiting[:WAITING_HEAD] if not self.would_hold_back(req)]
        missing = [self._missing_tokens(req) for req in head]
        return PoolView(
            **self._memory(),
            waiting_head_tokens=sum(missing),
            waiting=tuple([self._waiting_view(req) for req in waiting[:viewed]]),
            admission_tokens=self._admission_tokens(head[0], missing[0], running) if head else 0,
            growth_tokens=sum(map(growth_tokens, running)),
        )

    def _memory(self) -> dict[str, Any]:
        """What costs little to know."""
        cache, host = self.cache, self.cache.token_to_kv_pool_host
        total = self.scheduler.max_total_num_tokens
        return dict(
            device_total=total,
            device_free=cache.token_to_kv_pool_allocator.available_size(),
            device_evictable=cache.evictable_size(),
            device_dead=cache.owners.dead_evictable_tokens(total),
            host_total=host.size,
            host_free=host.available_size(),
            waiting_requests=len(self.scheduler.waiting_queue),
            running_requests=len(self.scheduler.running_batch.reqs),
            loads_in_flight=cache.loads_in_flight(),
            load_slots=self.uploads.slots,
            costs=self.costs,
        )

    def live_rids(self) -> LiveRequests:
        return LiveRequests(self.scheduler)

    # -- decisions ------------------------------------------------------------------------------------------

    def execute(self, key: str, action: Action) -> Outcome:
        self._pool = None
        if isinstance(action, (Offload, Backup, Upload)) and (
                key in self.offloads.under_way or key in self.uploads.under_way):
            return Outcome(False, reason="a move is under way")
        if isinstance(action, Offload):
            return self.offloads.start(key, protect=action.lease_until is not None)
        if isinstance(action, Backup):
            return self.offloads.start_backup(key)
        if isinstance(action, Upload):
            return self.uploads.start(key, action)
        if isinstance(action, CancelOffload):
            return self.offloads.cancel(key)
        if isinstance(action, Retain):
            self.cache.owners.protected[key] = None
            return Outcome(True)
        assert isinstance(action, Release)
        self.cache.owners.unprotect(key)
        return Outcome(True)

    def expect(self, key: str, at: float | None) -> None:
        self.cache.owners.expect(key, at)

    def take_completions(self) -> list[MoveDone]:
        """Push on what is under way and hand over what has ended since the last call."""
        self._pool = None
        for key in list(self.offloads.under_way):
            self.offloads.go_on(key)
        self.uploads.collect()
        done = self.done[:]
        self.done.clear()
        return done

    def forget(self, key: str) -> None:
        self.offloads.forget(key)
        self.cache.owners.forget(key)

    def reset(self) -> None:
        """The tree was flushed: every node handle is dead."""
        self.offloads.reset()
        self.uploads.reset()

    def moves_in_flight(self) -> list[dict[str, Any]]:
        return self.offloads.report() + self.uploads.report()

    def _admission_tokens(self, head: Any, missing: int, running: list[Any]) -> int:
        """What SGLang wants to find free or evictable when it admits that request, of whose prompt so many tokens are
        missing (PrefillAdder.add_one_req)."""
        return int(self.growth.wanted(head, running)) + missing + self.cache.page_size + 1

    def _missing_tokens(self, req: Any) -> int:
        """Of its prompt, what its agent has not on the device."""
        return max(0, tokens_so_far(req) - self.cache.owners.device_tokens(agent_key(req)))

    def _waiting_view(self, req: Any) -> WaitingView:
        growth = growth_tokens(req)
        return WaitingView(agent_key(req), tokens_so_far(req) + growth, self._missing_tokens(req), growth)
