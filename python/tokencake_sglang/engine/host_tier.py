"""HiRadixCache whose host pool gives up what is worth least, and second copies before only ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

from sglang.srt.disaggregation.kv_events import StorageMedium
from sglang.srt.mem_cache.hiradix_cache import HiRadixCache

from tokencake_sglang.engine.owners import ANONYMOUS, RANK_DEAD, RANK_ORDINARY, OwnerIndex, owners_of
from tokencake_sglang.engine.victims import VictimQueue
from tokencake_sglang.engine.worth import Worth


class HostTier(HiRadixCache):
    """The host half of TokenCakeHiRadixCache, which makes the attributes declared here."""

    owners: OwnerIndex
    worth: Worth
    host_victims: VictimQueue
    held_nodes: Callable[[], Iterable[Any]]  # end nodes of the running requests' cached prefixes

    def evict_host(self, num_tokens: int, below: float = math.inf) -> None:
        """As HiRadixCache's, with the victims of the queue: dead KV, then copies of what running requests hold on the
        device, then the KV that is worth least, as long as that is less than `below`."""
        evicted = 0
        while evicted < num_tokens and (node := self.host_victims.next()) is not None:
            if self.owners.rank(node) != RANK_DEAD:
                if evicted < num_tokens:
                    evicted += self._drop_duplicates(num_tokens - evicted)
                if evicted >= num_tokens:
                    return
                if below < math.inf and not self._is_worth_less(node, self.worth.on_host, below):
                    return
            evicted += self._drop_from_host(node)
        if evicted < num_tokens:
            self._drop_duplicates(num_tokens - evicted)

    def make_host_room(self, num_tokens: int, below: float) -> bool:
        """Whether the host has room for `num_tokens`, after what is worth less than `below` has made some."""
        missing = num_tokens - self.token_to_kv_pool_host.available_size()
        if missing > 0:
            self.evict_host(missing, below)
        return self.token_to_kv_pool_host.available_size() >= num_tokens

    def _drop_duplicates(self, num_tokens: int) -> int:
        """Give up host copies of KV that running requests hold on the device, leaf side first."""
        dropped = 0
        for node in self.held_nodes():
            if self._is_being_loaded(node):  # the copy to the device still reads them
                continue
            while node.parent is not None and dropped < num_tokens and _has_one_owner(node):
                if node.host_value is not None:
                    if not self._is_spare_copy(node):
                        break
                    self._record_remove_event(node, medium=StorageMedium.CPU)
                    dropped += self.cache_controller.evict_host(node.host_value)
                    node.host_value = None
                node = node.parent
            if dropped >= num_tokens:
                break
        return dropped

    def _is_being_loaded(self, node: Any) -> bool:
        """Whether a load of `node` or of what is above it has not landed."""
        while self.ongoing_load_back and node.parent is not None:
            if node.id in self.ongoing_load_back:
                return True
            node = node.parent
        return False

    def write_backup(self, node: Any, write_back: bool = False) -> int:
        """As HiRadixCache's; room for the copy is not made from the copy that it continues."""
        parent = node.parent
        parent.protect_host()
        try:
            return super().write_backup(node, write_back)
        finally:
            parent.release_host()

    def _is_spare_copy(self, node: Any) -> bool:
        return (node.value is not None and node.lock_ref > 0 and node.host_ref_counter == 0
                and node.write_through_pending_id is None
                and not any(child.backuped for child in node.children.values()))

    def _drop_from_host(self, node: Any) -> int:
        self._record_remove_event(node, medium=StorageMedium.CPU)
        tokens = self.cache_controller.evict_host(node.host_value)
        node.parent.children.pop(node.key.child_key(self.page_size))
        self.evictable_host_leaves.discard(node)
        self._update_host_leaf_status(node.parent)
        self.on_node_removed(node)
        return tokens

    def _is_worth_less(self, node: Any, worth: Callable[[Any], float], below: float) -> bool:
        rank = self.owners.rank(node)
        return rank == RANK_DEAD or (rank == RANK_ORDINARY and worth(node) < below)


def _has_one_owner(node: Any) -> bool:
    owners = owners_of(node)
    return len(owners) == 1 and ANONYMOUS not in owners


def is_free_on_host(node: Any) -> bool:
    """Whether nothing reads or writes the node's host copy."""
    return node.evicted and node.host_ref_counter == 0
