"""The waiting requests of all pools, kept in order: a step costs by the requests that come, go or change their rank.

A rank is looked up when a request joins, and again when the order is told to (`look_again`) or at a time that was
known then. Where it may change at any time it is looked up again from time to time (`renew`). A step looks at
RENEWED_PER_STEP of them all. A request whose program has come before the seniority goes by its own number, before all
that have a rank.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import NamedTuple

from tokencake_sglang.core.spatial.programs import Program
from tokencake_sglang.core.spatial.views import Waiting

RENEWED_PER_STEP = 16  # ranks that are looked up again in one step

#: Whether by its program's age; its affinity; that age, its priority, its urgency (two), its own age, its id. The
#: smaller goes first.
Rank = tuple[int, int, int, int, int, float, int, str]
Pool = tuple[str, str]  # tenant, class
YOUNGER = (1,)  # the smallest rank by a program's age


class Ranked(NamedTuple):
    rank: Rank
    may_change: bool = False  # at any time, without anybody telling
    changes_at: float = math.inf  # besides; told of the first time only


@dataclass
class Entry:
    waiting: Waiting
    number: int  # of its arrival
    program: Program
    joined_at: float
    pool: Pool
    runs: bool = False
    charged: float | None = None  # to its pool, at its admission
    new_tokens: int = 0
    rank: Rank | None = None  # its place in the line of its pool; None: it is in none


class Line:
    """One pool's waiting requests, in the order of their ranks."""

    def __init__(self) -> None:
        self.rids: list[str] = []
        self._ranks: list[Rank] = []

    def add(self, rank: Rank) -> None:
        at = bisect_left(self._ranks, rank)
        self._ranks.insert(at, rank)
        self.rids.insert(at, rank[-1])

    def remove(self, rank: Rank) -> None:
        at = self.place_of(rank)
        del self._ranks[at], self.rids[at]

    def place_of(self, rank: Rank) -> int:
        at = bisect_left(self._ranks, rank)
        assert self._ranks[at] == rank
        return at

    def oldest(self) -> list[str]:
        """Of the requests that go by their programs' age, the first of each affinity: there, its program has come
        first."""
        found, at = [], bisect_left(self._ranks, YOUNGER)
        while at < len(self.rids):
            found.append(self.rids[at])
            at = bisect_left(self._ranks, (1, self._ranks[at][1] + 1))
        return found


class WaitingOrder:
    """`rank(now, entry)` gives an entry's rank by its program's age."""

    def __init__(self, rank: Callable[[float, Entry], Ranked]) -> None:
        self._rank = rank
        self._lines: dict[Pool, Line] = {}
        self._entries: dict[str, Entry] = {}  # of the lines
        self._new: dict[str, Entry] = {}
        self._changing: dict[str, Entry] = {}  # those whose rank may change
        self._to_renew: deque[str] = deque()  # of those, in this round
        self._to_look_at: deque[str] = deque()  # first
        self._later: list[tuple[float, str]] = []  # a heap of those that are to be looked at from some time on
        self._orders: list[int] = []  # of the programs that those in the lines are of, ascending
        self._came: list[Entry] = []  # those that the last `place` has put into a line first
        self._have_moved = False  # and whether it has moved others

    def __len__(self) -> int:
        return len(self._entries) + len(self._new)

    def add(self, entry: Entry) -> None:
        """It waits from now on; it has its place after the next `place`."""
        self.remove(entry)
        self._new[entry.waiting.rid] = entry

    def remove(self, entry: Entry) -> None:
        """It waits no longer (or never did)."""
        rid = entry.waiting.rid
        self._new.pop(rid, None)
        if entry.rank is None:
            return
        self._lines[entry.pool].remove(entry.rank)
        if not self._lines[entry.pool].rids:
            del self._lines[entry.pool]
        entry.rank = None
        del self._entries[rid], self._orders[bisect_left(self._orders, entry.program.order)]
        self._changing.pop(rid, None)

    def look_again(self, entry: Entry) -> None:
        """Its rank may be another now."""
        rid, told = entry.waiting.rid, self._to_look_at
        if entry.rank is not None and not (told and told[-1] == rid):  # KV goes piece by piece
            told.append(rid)

    def renew(self) -> None:
        """Look up again all ranks that may have changed, over the next steps."""
        if not self._to_renew:
            self._to_renew = deque(self._changing)

    @property
    def is_renewing(self) -> bool:
        return bool(self._to_renew or self._to_look_at)

    def place(self, now: float, oldest: float) -> bool:
        """Put those that have come and those that have changed into their places; programs that came before `oldest`
        have passed the seniority. Whether any rank is another than before."""
        self._came, moved = list(self._new.values()), False
        for entry in self._came:
            ranked = self._look_up(now, entry, oldest)
            self._put(entry, ranked.rank)
            if ranked.changes_at < math.inf:
                heappush(self._later, (ranked.changes_at, entry.waiting.rid))
            insort(self._orders, entry.program.order)
            self._entries[entry.waiting.rid] = entry
        self._new.clear()
        for known in self._due(now):
            moved |= self._move(known, self._look_up(now, known, oldest).rank)
        for line in self._lines.values():
            while due := [e for e in map(self._entries.__getitem__, line.oldest()) if e.program.arrived_at < oldest]:
                for entry in due:
                    moved |= self._move(entry, _by_its_own_age(entry))
        self._have_moved = moved
        return moved or bool(self._came)

    @property
    def num_placed(self) -> int:
        return len(self._entries)

    def arrivals(self) -> list[tuple[int, str]] | None:
        """Right after `place`, where all it has done was to put new ones among those of one pool: the place and the id
        of each, ascending. None: more has changed."""
        if self._have_moved or len(self._lines) != 1:
            return None
        (line,) = self._lines.values()
        return sorted([(line.place_of(entry.rank), entry.waiting.rid) for entry in self._came])

    def lines(self) -> dict[Pool, list[str]]:
        """All that have their places, in order, by pool; lists not to be changed."""
        return {pool: line.rids for pool, line in self._lines.items()}

    def of(self, rids: Sequence[str]) -> tuple[dict[Pool, list[str]], list[str]]:
        """The ones of `rids` that wait, in order, by pool (lists not to be changed); the others as they stand."""
        if len(rids) == len(self._entries) and self._entries.keys() >= set(rids):
            return self.lines(), []
        here = set(rids)
        lines = {pool: [rid for rid in line.rids if rid in here] for pool, line in self._lines.items()}
        others = [rid for rid in rids if rid not in self._entries]
        return {pool: found for pool, found in lines.items() if found}, others

    def before(self, order: int) -> int:
        """How many of those that have their places are of older programs than the one of that number."""
        return bisect_left(self._orders, order)

    def _due(self, now: float) -> Iterator[Entry]:
        while self._later and self._later[0][0] <= now:
            self._to_look_at.append(heappop(self._later)[-1])
        for _ in range(RENEWED_PER_STEP):
            due = self._to_look_at or self._to_renew
            if not due:
                return
            entry = self._entries.get(due.popleft())
            if entry is not None:
                yield entry

    def _look_up(self, now: float, entry: Entry, oldest: float) -> Ranked:
        if entry.program.arrived_at < oldest:
            return Ranked(_by_its_own_age(entry))
        ranked = self._rank(now, entry)
        if ranked.may_change:
            self._changing[entry.waiting.rid] = entry
        return ranked

    def _move(self, entry: Entry, rank: Rank) -> bool:
        if rank == entry.rank:
            return False
        assert entry.rank is not None
        self._lines[entry.pool].remove(entry.rank)
        self._put(entry, rank)
        if rank < YOUNGER:
            self._changing.pop(entry.waiting.rid, None)
        return True

    def _put(self, entry: Entry, rank: Rank) -> None:
        entry.rank = rank
        self._lines.setdefault(entry.pool, Line()).add(rank)


def _by_its_own_age(entry: Entry) -> Rank:
    return 0, 0, 0, 0, 0, 0.0, entry.number, entry.waiting.rid
