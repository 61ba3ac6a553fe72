"""Which leaf of the tree is given up next, on each tier, without looking at all of them.

SGLang ranks every evictable leaf anew at each eviction. Here each leaf is put into a heap once, when it becomes one; a
place that has risen since (its KV was used again, its next use has come nearer) is found out when it comes to the top.
A place that falls must be told: `push` again, else it counts only once the leaf is looked at. So an eviction costs by
the leaves it takes, not by those that there are.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any

LANES = DEAD, RECALLED, LEFT, ORDINARY, EXPECTED, PROTECTED = range(6)
NEARLY = 1.02  # a worth that has risen by less than this keeps its place
STALE_SLACK = 1024

Node = Any  # sglang.srt.mem_cache.radix_cache.TreeNode
Place = tuple[int, Any]  # lane, key in it: the smallest goes first


class Leaves(set):
    """Stands for one of SGLang's sets of evictable leaves and tells of every leaf that joins it."""

    def __init__(self, joined: Callable[[Node], None]) -> None:
        super().__init__()
        self._joined = joined

    def add(self, node: Node) -> None:
        super().add(node)
        self._joined(node)


class VictimQueue:
    """The leaves of one tier in the order in which they are given up.

    `place(node)` gives lane and key. Dead KV goes first, then what its pool has borrowed, protected last; between the
    least recently used of the leaves that were left behind, that of the ordinary ones, and the expected one that is
    worth least, the one with the smallest `worth(node)` goes. Equal on every rank as long as both are.
    """

    def __init__(self, place: Callable[[Node], Place], worth: Callable[[Node], float],
                 joined: Callable[[Node], None] = lambda node: None,
                 usable: Callable[[Node], bool] = lambda node: True) -> None:
        self.leaves = Leaves(self._on_joined)
        self._place, self._worth, self._joined, self._usable = place, worth, joined, usable
        self._lanes: tuple[list[tuple[Any, int, Node]], ...] = tuple([] for _ in LANES)
        self._valid: dict[int, int] = {}  # node id -> the number of its only valid entry
        self._pushed = 0

    def _on_joined(self, node: Node) -> None:
        self._joined(node)
        self.push(node)

    def push(self, node: Node) -> None:
        """`node` has become a leaf, or its place may have fallen."""
        lane, key = self._place(node)
        self._pushed += 1
        self._valid[node.id] = self._pushed
        heap = self._lanes[lane]
        heapq.heappush(heap, (key, self._pushed, node))
        if len(heap) > 2 * len(self.leaves) + STALE_SLACK:
            self._drop_stale(heap)

    def clear(self) -> None:
        self.leaves.clear()
        self._valid.clear()
        for heap in self._lanes:
            heap.clear()

    def next(self) -> Node | None:
        """The leaf to give up next; it stays in the queue until it leaves SGLang's set. Those that `usable` refuses
        (they are in use now) keep their places."""
        node, refused = self._first(), []
        while node is not None and not self._usable(node):
            refused.append(node)
            self._valid.pop(node.id)
            node = self._first()
        for one in refused:
            self.push(one)
        return node

    def _first(self) -> Node | None:
        return self._look() or self._look()  # again: places that had fallen untold are right now

    def _look(self) -> Node | None:
        first = self._head(DEAD) or self._head(RECALLED)
        if first is not None:
            return first
        heads = [node for node in map(self._head, (ORDINARY, LEFT, EXPECTED)) if node is not None]
        return min(heads, key=self._worth) if heads else self._head(PROTECTED)

    def _head(self, lane: int) -> Node | None:
        heap = self._lanes[lane]
        while heap:
            key, number, node = heap[0]
            if self._valid.get(node.id) != number or node not in self.leaves:
                heapq.heappop(heap)
                if self._valid.get(node.id) == number:
                    del self._valid[node.id]
                continue
            place = self._place(node)
            if place[0] == lane and not _risen(lane, key, place[1]):
                return node
            heapq.heappop(heap)
            self.push(node)
        return None

    def _drop_stale(self, heap: list[tuple[Any, int, Node]]) -> None:
        heap[:] = [entry for entry in heap if self._valid.get(entry[2].id) == entry[1] and entry[2] in self.leaves]
        heapq.heapify(heap)
        if len(self._valid) > 2 * len(self.leaves) + STALE_SLACK:
            kept = {node.id for node in self.leaves}
            self._valid = {i: number for i, number in self._valid.items() if i in kept}


def _risen(lane: int, before: Any, now: Any) -> bool:
    return now > before * NEARLY if lane in (RECALLED, EXPECTED) else now > before
