"""HiRadixCache whose nodes know their owners and whose loads may start outside a prefill batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

from sglang.srt.disaggregation.kv_events import StorageMedium
from sglang.srt.mem_cache.base_prefix_cache import MatchPrefixParams, MatchResult
from sglang.srt.mem_cache.hiradix_cache import HiRadixCache

from tokencake_sglang.core.config import TokenCakeConfig
from tokencake_sglang.core.types import AgentIdentity
from tokencake_sglang.engine.load_slots import WideLayerDoneCounter
from tokencake_sglang.engine.owners import ANONYMOUS, RANK_DEAD, RANK_ORDINARY, OwnerIndex, owners_of
from tokencake_sglang.engine.victims import VictimQueue
from tokencake_sglang.engine.worth import Worth

HOST_FULL_SHARE = 0.05  # a host pool with less free than this is full
NO_LOAD = (0, -1)


def agent_key(req: Any) -> str:
    """The key of the agent that sent this request; ANONYMOUS without identity. Kept on the request."""
    key = getattr(req, "tokencake_key", None)
    if key is None:
        identity = AgentIdentity.from_metadata(getattr(req, "agent_metadata", None))
        key = req.tokencake_key = identity.key if identity else ANONYMOUS
    return key


class TokenCakeHiRadixCache(HiRadixCache):
    """Adds to HiRadixCache: owner tags, victims by worth, uploads that later batches wait for, a step call.

    `on_step` runs once per scheduler iteration after SGLang has collected the finished copies and before the
    next batch is built; `on_backups_landed` when nodes that a copy to the host had locked are free again;
    `on_request_finished(req)` when a request has left the device, and `on_request_ended(key, rid)` if it was an
    agent's; `on_reset` after a flush.
    """

    def __init__(self, params: Any, server_args: Any, config: TokenCakeConfig) -> None:
        self.owners = OwnerIndex()
        self.worth = Worth(self.owners, lambda: self.eviction_strategy)
        self.device_victims = VictimQueue(self.worth.device_place, self.worth.on_device, joined=self.worth.joined)
        self.host_victims = VictimQueue(self.worth.host_place, self.worth.on_host, usable=_is_free_on_host)
        self.on_step: Callable[[], None] = lambda: None
        self.on_reset: Callable[[], None] = lambda: None
        self.on_backups_landed: Callable[[], None] = lambda: None
        self.held_nodes: Callable[[], Iterable[Any]] = tuple  # end nodes of the running requests' cached prefixes
        self.on_request_ended: Callable[[str, str], None] = lambda key, rid: None
        self.on_request_finished: Callable[[Any], None] = lambda req: None
        self._inserting = ANONYMOUS
        self._is_unfinished = False
        self.writes_on_decision = config.write_policy == "tokencake"
        self._step = 0
        self._last_free_step = -1
        # A load that was started outside a batch: its number, and the slot of its events. The later, the larger.
        self.uploading: dict[int, tuple[int, int]] = {}  # by the ids of its nodes
        self._started_early: dict[int, tuple[int, int]] = {}  # end nodes of loads that a batch had queued
        self._loads_started = 0
        self._match_met = NO_LOAD  # the newest load that the batch being built has met
        super().__init__(params, server_args)
        self.evictable_leaves = self.device_victims.leaves
        self.evictable_host_leaves = self.host_victims.leaves
        self.owners.on_lowered = self._on_lowered
        controller = self.cache_controller
        controller.layer_done_counter = WideLayerDoneCounter(controller.layer_num, config.load_slots)
        controller.mem_pool_device.register_layer_transfer_counter(controller.layer_done_counter)

    # -- owners follow the tree -----------------------------------------------------------------------------

    def on_node_inserted(self, node: Any) -> None:
        self.owners.tag_path(node, self._inserting)

    def on_node_split(self, new_node: Any, child: Any) -> None:
        self.owners.on_split(new_node, child)
        if child.id in self.uploading:
            self.uploading[new_node.id] = self.uploading[child.id]

    def on_node_removed(self, node: Any) -> None:
        self.owners.on_removed(node)

    def cache_unfinished_req(self, req: Any, *args: Any, **kwargs: Any) -> None:
        waited_for, met = req.last_node, self._match_met
        self._last_free_step = self._step
        self._inserting, self._is_unfinished = agent_key(req), True
        try:
            super().cache_unfinished_req(req, *args, **kwargs)
        finally:
            self._inserting, self._is_unfinished = ANONYMOUS, False
        self._match_met = met  # the match in there is not one for the batch being built
        if self.uploading and self._newest_load(req.last_node, waited_for) > NO_LOAD:
            # The tree's slots, still being filled, replaced those that the request had computed itself. Its
            # next pass may not carry an event slot, so it is waited for here; a rare case.
            self.cache_controller.ack_load_queue[-1].finish_event.synchronize()

    def cache_finished_req(self, req: Any, *args: Any, **kwargs: Any) -> None:
        self._last_free_step = self._step
        self._inserting = agent_key(req)
        try:
            super().cache_finished_req(req, *args, **kwargs)
        finally:
            self._inserting = ANONYMOUS
        if req.finished():
            self.on_request_finished(req)
        if agent_key(req) != ANONYMOUS and req.finished():
            self.on_request_ended(agent_key(req), req.rid)

    def reset(self) -> None:
        super().reset()
        self.device_victims.clear()
        self.host_victims.clear()
        self.owners.clear()
        self.uploading.clear()
        self._started_early.clear()
        self._match_met = NO_LOAD
        self.on_reset()

    # -- victims --------------------------------------------------------------------------------------------

    def _inc_hit_count(self, node: Any, chunked: bool = False) -> None:
        """A full host gets copies of an agent's KV when its request ends, not while the device holds it anyway; with
        the write policy "tokencake" only a decision asks for them."""
        if self._inserting != ANONYMOUS:
            chunked = chunked or self.writes_on_decision or (self._is_unfinished and self._host_is_full())
        super()._inc_hit_count(node, chunked)

    def _host_is_full(self) -> bool:
        host = self.token_to_kv_pool_host
        return host.available_size() < HOST_FULL_SHARE * host.size

    def _on_lowered(self, node: Any) -> None:
        """What `node` is worth may have fallen."""
        if node in self.evictable_leaves:
            self.device_victims.push(node)
        elif node in self.evictable_host_leaves:
            self.host_victims.push(node)

    def _evict_write_through(self, num_tokens: int) -> int:
        """As HiRadixCache's, with the victims of the queue: what has a host copy leaves the device, the rest goes."""
        evicted = self._evict_from_device(num_tokens)
        if evicted < num_tokens and self.cache_controller.ack_write_queue:
            self._await_backups()
            evicted += self._evict_from_device(num_tokens - evicted)
        return evicted

    def _await_backups(self) -> None:
        """Nothing else is left to give up: wait for the copies to the host that hold memory. SGLang would retract what
        decodes, and abort the last request, because the KV of those that have just ended is still being copied."""
        self.writing_check(finish_count=len(self.cache_controller.ack_write_queue))

    def _evict_from_device(self, num_tokens: int) -> int:
        evicted = 0
        while evicted < num_tokens and (node := self.device_victims.next()) is not None:
            evicted += self._give_up(node)
        return evicted

    def displace(self, num_tokens: int, below: float) -> int:
        """Take at least `num_tokens` off the device, of KV worth less than `below`; fewer where there is no more. KV
        that lives and has no host copy stays: it would have to be computed again, for a copy that comes sooner."""
        evicted = 0
        while evicted < num_tokens and (node := self.device_victims.next()) is not None:
            if not self._is_worth_less(node, self.worth.on_device, below):
                break
            if not node.backuped and self.owners.rank(node) != RANK_DEAD:
                break
            evicted += self._give_up(node)
        return evicted

    def _is_worth_less(self, node: Any, worth: Callable[[Any], float], below: float) -> bool:
        rank = self.owners.rank(node)
        return rank == RANK_DEAD or (rank == RANK_ORDINARY and worth(node) < below)

    def _give_up(self, node: Any) -> int:
        with self.worth.resting_since(node):  # its parent, a leaf from now on, was not used after it
            return self._evict_backuped(node) if node.backuped else self._evict_regular(node)

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

    # -- the step, and loads outside a batch ----------------------------------------------------------------

    def check_hicache_events(self) -> None:
        self._step += 1
        pending = len(self.ongoing_write_through)
        super().check_hicache_events()
        if len(self.ongoing_write_through) < pending:
            self.on_backups_landed()
        self.on_step()

    def match_prefix(self, params: MatchPrefixParams) -> MatchResult:
        result = super().match_prefix(params)
        if self.uploading:
            self._match_met = max(self._match_met, self._newest_load(result.last_device_node))
        return result

    def ready_to_load_host_cache(self) -> int:
        """The event slot that the batch being built must wait for, or -1.

        A batch that matched KV still on its way waits for the newest load that it met: copies run in order on one
        stream, so that covers all earlier ones; those that were started later are not waited for.
        """
        producer = super().ready_to_load_host_cache()
        met, self._match_met = self._match_met, NO_LOAD
        for node_id in [i for i in self._started_early if i not in self.ongoing_load_back]:
            del self._started_early[node_id]
        return producer if producer != -1 else max(met, *self._started_early.values(), NO_LOAD)[1]

    def start_loading_now(self, chain: list[Any]) -> tuple[int, int]:
        """Start the queued loads outside a batch, that of the nodes `chain` among them. Loads that a batch had queued
        go along, and every batch waits for those from now on. Returns what `landed` is told at the end."""
        self._loads_started += 1
        queued = [i for operation in self.cache_controller.load_queue for i in operation.node_ids]
        load = self._loads_started, self.cache_controller.start_loading()
        self.uploading.update((node.id, load) for node in chain)
        self._started_early.update((i, load) for i in queued if i != chain[-1].id)
        return load

    def landed(self, load: tuple[int, int]) -> None:
        """An upload has been acknowledged: nobody waits for it any more."""
        self.uploading = {i: its_load for i, its_load in self.uploading.items() if its_load != load}

    def cut(self, node: Any, tokens: int) -> Any:
        """Cut the first `tokens` (whole pages) of a node off as one of its own, and return that."""
        return self._split_node(node.key, node, tokens)

    def freed_under_pass(self) -> bool:
        """Whether the results handled last freed slots while the pass launched before that may still use them."""
        return self._last_free_step >= self._step - 1

    def loads_in_flight(self) -> int:
        """Loads started and not yet acknowledged on all ranks (equal on every rank)."""
        return len(self.cache_controller.ack_load_queue)

    def _newest_load(self, node: Any, above: Any = None) -> tuple[int, int]:
        """Of the loads outside a batch that `node` and its ancestors, up to and without `above`, are part of."""
        newest = NO_LOAD
        while node is not None and node is not self.root_node and node is not above:
            newest = max(newest, self.uploading.get(node.id, NO_LOAD))
            node = node.parent
        return newest


def _has_one_owner(node: Any) -> bool:
    owners = owners_of(node)
    return len(owners) == 1 and ANONYMOUS not in owners


def _is_free_on_host(node: Any) -> bool:
    """Whether nothing reads or writes the node's host copy."""
    return node.evicted and node.host_ref_counter == 0
