"""Critical inversions: a request is admitted while one of its program with a longer path to the end waits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import islice
from typing import NamedTuple

from tokencake_sglang.core.spatial.views import Place
from tokencake_sglang.core.spatial.waiting_order import Entry

SIBLINGS_SEEN = 256  # of a program, to find one that should have gone first


class Inversion(NamedTuple):
    """`rid` was admitted, `passed` of the same program waits; with their paths in seconds."""

    program: str
    rid: str
    path_s: float
    passed: str
    passed_path_s: float


def inversion(entry: Entry, entries: Mapping[str, Entry], place: Callable[[str], Place | None]) -> Inversion | None:
    """Of a request that is admitted: which one of its program it passes, the first to be found. What its client
    prefers, and what nobody waits for, is no inversion."""
    mine = place(entry.waiting.rid)
    if mine is None:
        return None
    for rid in islice(entry.program.rids, SIBLINGS_SEEN):
        other = entries.get(rid)
        its = place(rid) if other is not None and not other.runs else None
        if its is not None and _rank(other, its) > _rank(entry, mine):
            return Inversion(entry.program.name, entry.waiting.rid, mine.path_s, rid, its.path_s)
    return None


def _rank(entry: Entry, place: Place) -> tuple[int, bool, float]:
    return entry.waiting.priority, place.is_urgent, place.path_s
