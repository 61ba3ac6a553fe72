"""What a node's KV is worth: seconds to get a token of it back, over the seconds until somebody wants it.

When its owners are expected again comes from the policy (`OwnerIndex.next_use`); of KV without such an owner it is
taken that it will rest as long as it has rested, and of what its agents have left behind longer, by how seldom such
branches were read again. Time is the controller's, equal on every rank.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tokencake_sglang.core.costs import Costs
from tokencake_sglang.engine.owners import MANY_OWNERS, RANK_DEAD, RANK_PROTECTED, OwnerIndex, owners_of, path_end
from tokencake_sglang.engine.victims import DEAD, EXPECTED, LEFT, ORDINARY, PROTECTED, RECALLED, Place

SOON_S = 0.05  # uses that are nearer than this count alike

Node = Any  # sglang.srt.mem_cache.radix_cache.TreeNode


class Worth:
    """`inner()` is SGLang's eviction strategy (--radix-eviction-policy), which orders all that has no expectation."""

    def __init__(self, owners: OwnerIndex, inner: Callable[[], Any]) -> None:
        self.owners = owners
        self.inner = inner
        self.now: Callable[[], float] = lambda: 0.0
        self.costs: Callable[[], Costs] = Costs
        self.is_recalled: Callable[[Node], bool] = lambda node: False  # its pool has borrowed, and is to give it back
        self._resting_since: float | None = None

    def joined(self, node: Node) -> None:
        """`node` has become a leaf of the device: nobody uses it from now on."""
        node.rested_since = self.now() if self._resting_since is None else self._resting_since

    @contextmanager
    def resting_since(self, child: Node) -> Iterator[None]:
        """A parent that becomes a leaf because `child` leaves has rested as long as that."""
        self._resting_since = getattr(child, "rested_since", None)
        try:
            yield
        finally:
            self._resting_since = None

    def device_place(self, node: Node) -> Place:
        lane, key = self._place(node, self.on_device)
        if lane in (LEFT, ORDINARY, EXPECTED) and self.is_recalled(node):
            return RECALLED, self.on_device(node)
        return lane, key

    def host_place(self, node: Node) -> Place:
        return self._place(node, self.on_host)

    def on_device(self, node: Node) -> float:
        """Of a token on the device: without a host copy it would have to be computed again."""
        costs = self.costs()
        lost = costs.upload_token_s if node.backuped else costs.recompute_token_s(len(node.key), _start(node))
        return lost / self._wait_s(node)

    def on_host(self, node: Node) -> float:
        """Of a token on the host only."""
        return self.costs().recompute_token_s(len(node.key), _start(node)) / self._wait_s(node)

    def expected(self, node: Node) -> float | None:
        """When the first of the owners that the policy expects is expected; None if it expects none. An owner whose
        latest path goes elsewhere does not count."""
        times, owners = self.owners.next_use, owners_of(node)
        if not times or not owners:
            return None
        if len(owners) > MANY_OWNERS:
            return self.now()
        found = [times[key] for key, is_latest in owners.items() if is_latest and key in times]
        return min(found) if found else None

    def _place(self, node: Node, worth: Callable[[Node], float]) -> Place:
        rank = self.owners.rank(node)
        if rank == RANK_DEAD:
            return DEAD, self.inner().get_priority(node)
        if rank == RANK_PROTECTED:
            return PROTECTED, self.inner().get_priority(node)
        if self.expected(node) is not None:
            return EXPECTED, worth(node)
        if self._is_left_behind(node):
            return LEFT, self.inner().get_priority(node)
        return ORDINARY, self.inner().get_priority(node)

    def _wait_s(self, node: Node) -> float:
        at, now = self.expected(node), self.now()
        if at is not None:
            return max(SOON_S, at - now)
        rest = max(SOON_S, now - getattr(node, "rested_since", now))
        return rest / self.owners.return_share if self._is_left_behind(node) else rest

    def _is_left_behind(self, node: Node) -> bool:
        return bool(self.owners.next_use) and self.owners.is_left_behind(node)


def _start(node: Node) -> int:
    """Tokens above the node."""
    return path_end(node) - len(node.key)
