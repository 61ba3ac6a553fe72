"""The scheduler's waiting queue, put in order by what has changed since the last time.

Requests come, go and are admitted one by one, while hundreds stay where they are. What the queue should be is known
from the last time and from what was told since. Where SGLang's queue is that, only those that have come are put into
their places; where it is not (requests were aborted in it, and nobody tells of those), it is sorted anew.
"""

from __future__ import annotations

from typing import Any

from tokencake_sglang.core.spatial import SpatialScheduler


class QueueOrder:
    """Follows one queue. Sorting moves requests, and never adds or loses one, whatever was told."""

    def __init__(self) -> None:
        self._waiting: dict[str, Any] = {}  # as far as was told
        self._queue: list[Any] = []  # the same in the order in which they should stand

    def joined(self, req: Any) -> None:
        """`req` stands at the end of the queue now."""
        self._waiting[req.rid] = req
        self._queue.append(req)

    def left(self, req: Any) -> None:
        """It was admitted or has ended, and may have left the queue before."""
        if self._waiting.get(req.rid) is req:
            del self._waiting[req.rid]
            self._queue.remove(req)

    def sort(self, queue: list[Any], spatial: SpatialScheduler) -> None:
        """In place; to be called where `spatial.follow` has said that the order may have changed."""
        if not self._is_as_told(queue, spatial) or not self._follow(queue, spatial):
            self._sort_anew(queue, spatial)
        self._queue = queue.copy()

    def _is_as_told(self, queue: list[Any], spatial: SpatialScheduler) -> bool:
        return queue == self._queue and len(queue) == len(self._waiting) == spatial.num_placed

    def _follow(self, queue: list[Any], spatial: SpatialScheduler) -> bool:
        """False, and the queue as it was: others wait than `spatial` knows."""
        arrivals = spatial.arrivals()
        if arrivals is None:
            try:
                queue[:] = [self._waiting[rid] for rid in spatial.order_of_all()]
            except KeyError:
                return False
            return True
        first = len(queue) - len(arrivals)
        came = {req.rid: req for req in queue[first:]}
        if came.keys() != {rid for _, rid in arrivals}:
            return False
        del queue[first:]
        for place, rid in arrivals:
            queue.insert(place, came[rid])
        return True

    def _sort_anew(self, queue: list[Any], spatial: SpatialScheduler) -> None:
        before = [req.rid for req in queue]
        by_rid = dict(zip(before, queue, strict=True))
        rids = spatial.order_of(before)
        if len(by_rid) == len(queue):
            queue[:] = map(by_rid.__getitem__, rids)
        self._waiting = by_rid
