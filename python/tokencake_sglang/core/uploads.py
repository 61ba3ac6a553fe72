"""Which wanted uploads go on next, in pieces that let more urgent work pass.

Agents that are about to return compete for the link and for room. The one whose copy has to begin first goes first;
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

MIN_UPLOAD_TOKENS = 10  # SGLang loads back nothing shorter (HiRadixCache.load_back_threshold)
CHUNK_S = 0.25  # seconds of the link that one piece takes, at the most
LEAST_SHARE = 0.25  # of a piece: with room for less, nothing is copied
CRITICAL_S = 1.0  # the agent on the critical path of its program goes before one whose copy begins so much earlier
AGEING = 0.5  # having waited for a second counts as a copy that begins so many seconds earlier
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
        return self.wish.start_by + AGEING * self.since - CRITICAL_S * self.wish.importance / 10


class UploadQueue:
    """Wanted uploads by urgency, those that are due before those that only fill free memory."""

    def __init__(self) -> None:
        self._waiting: dict[str, _Waiting] = {}
        self._heaps: dict[bool, list[tuple[float, int, str]]] = {True: [], False: []}  # by `is_due`
        self._resting: list[tuple[float, int, str]] = []  # declined, until that time
        self._in_flight: dict[str, int] = {}  # agent -> tokens of its piece
        self._number = 0

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def next_at(self) -> float | None:
        """When a declined upload is tried again; None: none is."""
        return self._resting[0][0] if self._resting else None

    def want(self, now: float, key: str, wish: UploadWish) -> None:
        """The agent's wish from now on; it keeps the time since which it has waited."""
        known = self._waiting.get(key)
        self._number += 1
        self._waiting[key] = _Waiting(wish, now if known is None else known.since, self._number)
        if key not in self._in_flight:
            self._push(key)

    def drop(self, key: str) -> None:
        """Nothing more of it is copied; what is under way lands."""
        self._waiting.pop(key, None)
        if not self._waiting:  # nothing that is left over wakes anybody
            self._resting.clear()
            self._heaps = {True: [], False: []}

    def ended(self, key: str) -> None:
        """An upload of the agent has landed: one of its pieces, or another."""
        if self._in_flight.pop(key, None) is not None and key in self._waiting:
            self._push(key)

    def clear(self) -> None:
        self._waiting.clear()
        self._in_flight.clear()
        self._resting.clear()
        for heap in self._heaps.values():
            heap.clear()

    def next(self, now: float, pool: PoolView) -> tuple[str, Upload] | None:
        """The agent and the piece to start now; None while the link is busy or there is no room for the most urgent."""
        self._end_rests(now)
        chunk = chunk_tokens(pool.costs)
        if not self._waiting or pool.loads_in_flight >= pool.load_slots or sum(self._in_flight.values()) >= chunk:
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
            self._in_flight[key] = outcome.tokens
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
