"""Which wanted uploads go on next, in pieces that let more urgent work pass.

Agents that are about to return compete for the link and for room. Copies begin as late as lets all of them be back in
time (core/upload_plan.py); of those that have to go on, the one that is to be back first goes first;
importance brings it forward, and so does having waited. Each piece is one copy, so between pieces an upload stops by
itself when the queue wants the memory, when a more urgent one comes, or when its agent does not want it any more.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass

from tokencake_sglang.core.costs import Costs
from tokencake_sglang.core.plan import Outcome, Upload, UploadWish
from tokencake_sglang.core.types import PoolView
from tokencake_sglang.core.upload_plan import LinkPlan, Overrun

MIN_UPLOAD_TOKENS = 10  # SGLang loads back nothing shorter (HiRadixCache.load_back_threshold)
CHUNK_S = 0.25  # seconds of the link that one piece takes, at the most
LEAST_SHARE = 0.25  # of a piece: with room for less, nothing is copied
CRITICAL_S = 1.0  # the agent on the critical path of its program goes before one that is to be back so much earlier
AGEING = 0.5  # having waited for a second counts as being wanted back so many seconds earlier
SPARE_SHARE = 0.2  # of the pool stays free of uploads that are not due
STARTS_PER_STEP = 8
UPLOAD_RETRY_S = 0.05


@dataclass
class _Waiting:
    wish: UploadWish
    since: float
    number: int

    @property
    def place(self) -> float:
        """The smallest goes first. Does not change with time, so that it may lie in a heap."""
        return self.wish.ready_by + AGEING * self.since - CRITICAL_S * self.wish.importance / 10


class UploadQueue:
    """Wanted uploads by urgency, those that are due before those that only fill free memory."""

    def __init__(self) -> None:
        self._waiting: dict[str, _Waiting] = {}
        self._heaps: dict[bool, list[tuple[float, int, str]]] = {True: [], False: []}  # by `is_due`
        self._resting: list[tuple[float, int, str]] = []  # declined, until that time
        self._in_flight: dict[str, tuple[int, float]] = {}  # agent -> tokens of its piece, when it should have landed
        self._overrun = Overrun()
        self._costs = Costs()  # as `next` was told last
        self._plan = LinkPlan()  # of those that are due; one that waits for its time is in no heap
        self._number = 0

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def next_at(self) -> float | None:
        """When a declined upload is tried again, or one has to begin; None: none waits for a time."""
        times = self._resting[0][0] if self._resting else None, self._plan.next_at
        return min((at for at in times if at is not None), default=None)

    def want(self, now: float, key: str, wish: UploadWish) -> None:
        """The agent's wish from now on; it keeps the time since which it has waited."""
        known = self._waiting.get(key)
        self._number += 1
        self._waiting[key] = _Waiting(wish, now if known is None else known.since, self._number)
        if wish.is_due:
            pieces = math.ceil(wish.tokens / chunk_tokens(self._costs))
            seconds = wish.copy_s + pieces * self._overrun.mean_s if wish.copy_s > 0 else 0.0
            self._plan.set(key, wish.ready_by, seconds, is_held=now < wish.ready_by - seconds and wish.copy_s > 0)
        else:
            self._plan.remove(key)
        if key not in self._in_flight:
            self._push(key)

    def drop(self, key: str) -> None:
        """Nothing more of it is copied; what is under way lands."""
        self._waiting.pop(key, None)
        self._plan.remove(key)
        if not self._waiting:  # nothing that is left over wakes anybody
            self._resting.clear()
            self._heaps = {True: [], False: []}

    def ended(self, now: float, key: str) -> None:
        """An upload of the agent has landed: one of its pieces, or another."""
        piece = self._in_flight.pop(key, None)
        if piece is None:
            return
        self._overrun.observe(now - piece[1])
        if key in self._waiting:
            self._push(key)

    def clear(self) -> None:
        self._waiting.clear()
        self._in_flight.clear()
        self._resting.clear()
        self._plan.clear()
        for heap in self._heaps.values():
            heap.clear()

    def any_to_start(self, now: float) -> bool:
        """Whether any may start now, if the link is free and there is room."""
        self._end_rests(now)
        for key in self._plan.take_due(now):
            if key not in self._in_flight:
                self._push(key)
        return self._first(True) is not None or self._first(False) is not None

    def next(self, now: float, pool: PoolView) -> tuple[str, Upload] | None:
        """The agent and the piece to start now; None while the link is busy or there is no room for the most urgent."""
        self._costs, chunk = pool.costs, chunk_tokens(pool.costs)
        in_flight = sum(tokens for tokens, _ in self._in_flight.values())
        if not self.any_to_start(now) or pool.loads_in_flight >= pool.load_slots or in_flight >= chunk:
            return None
        for is_due in (True, False):
            key = self._first(is_due)
            if key is None:
                continue
            missing = self._waiting[key].wish.tokens
            piece = even_piece(missing, chunk)
            least = min(piece, max(MIN_UPLOAD_TOKENS, int(LEAST_SHARE * chunk)))
            room = room_for(pool, is_due)
            if room >= least:
                return key, Upload(min(piece, room), None, displaces=is_due, min_tokens=least)
        return None

    def answered(self, now: float, key: str, outcome: Outcome) -> None:
        """What came of the piece that `next` gave."""
        heapq.heappop(self._heaps[self._waiting[key].wish.is_due])
        if outcome.accepted:
            self._in_flight[key] = outcome.tokens, now + self._costs.upload_s(outcome.tokens)
        else:
            heapq.heappush(self._resting, (now + UPLOAD_RETRY_S, self._waiting[key].number, key))

    def _end_rests(self, now: float) -> None:
        while self._resting and (self._resting[0][0] <= now or not self._is_valid(*self._resting[0][1:])):
            _, number, key = heapq.heappop(self._resting)
            if self._is_valid(number, key):
                self._push(key)

    def _first(self, is_due: bool) -> str | None:
        heap = self._heaps[is_due]
        while heap:
            _, number, key = heap[0]
            if self._is_valid(number, key):
                return key
            heapq.heappop(heap)
        return None

    def _is_valid(self, number: int, key: str) -> bool:
        return key in self._waiting and self._waiting[key].number == number

    def _push(self, key: str) -> None:
        """Into its heap, unless it waits for its time."""
        if self._plan.holds(key):
            return
        mine = self._waiting[key]
        heap = self._heaps[mine.wish.is_due]
        heapq.heappush(heap, (mine.place, mine.number, key))
        if len(heap) > 2 * len(self._waiting) + 64:
            heap[:] = [entry for entry in heap if self._is_valid(*entry[1:])]
            heapq.heapify(heap)


def chunk_tokens(costs: Costs) -> int:
    """Tokens whose copy takes CHUNK_S."""
    return max(MIN_UPLOAD_TOKENS, int((CHUNK_S - costs.upload_base_s) / max(costs.upload_token_s, 1e-9)))


def even_piece(tokens: int, chunk: int) -> int:
    """The length of the first of the fewest equal pieces that are no longer than `chunk`."""
    return math.ceil(tokens / max(1, math.ceil(tokens / chunk)))


def room_for(pool: PoolView, is_due: bool) -> int:
    """Device tokens that an upload may take: never those that the head of the queue waits for. What is not due leaves
    a share of the pool free as well."""
    if is_due:
        return pool.device_free + pool.device_evictable - pool.wanted_tokens
    return int(pool.device_free + pool.device_dead - pool.wanted_tokens - SPARE_SHARE * pool.device_total)
