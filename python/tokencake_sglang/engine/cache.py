"""HiRadixCache whose nodes know their owners and whose loads may start outside a prefill batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from sglang.srt.mem_cache.base_prefix_cache import MatchPrefixParams, MatchResult

from tokencake_sglang.core.config import TokenCakeConfig
from tokencake_sglang.core.types import AgentIdentity
from tokencake_sglang.engine.host_tier import HostTier, is_free_on_host
from tokencake_sglang.engine.load_slots import WideLayerDoneCounter
from tokencake_sglang.engine.owners import ANONYMOUS, RANK_DEAD, OwnerIndex
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


class TokenCakeHiRadixCache(HostTier):
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
        self.host_victims = VictimQueue(self.worth.host_place, self.worth.on_host, usable=is_free_on_host)
        self.on_step: Callable[[], None] = lambda: None
        self.on_reset: Callable[[], None] = lambda: None
        self.on_backups_landed: Callable[[], None] = lambda: None
        self.held_nodes: Callable[[], Iterable[Any]] = tuple  # end nodes of the running requests' cached prefixes
        self.on_request_ended: Callable[[str, str], None] = lambda key, rid: None
        self.on_request_finished: Callable[[Any], None] = lambda req: None
        self.on_given_up: Callable[[Any], None] = lambda node: None  # a node that leaves the device for want of memory
        self.on_end_left: Callable[[str], None] = lambda key: None  # of an agent's latest path, likewise; a copy stays
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
        self._in_load: dict[int, set[int]] = {}  # end node of a load -> ids of all that it brings
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
        for brought in self._in_load.values():
            if child.id in brought:
                brought.add(new_node.id)

    def on_node_removed(self, node: Any) -> None:
        self.owners.on_removed(node)

    def inc_lock_ref(self, node: Any) -> Any:
        result = super().inc_lock_ref(node)
        self.owners.recount_path(node)
        return result

    def dec_lock_ref(self, node: Any, *args: Any, **kwargs: Any) -> Any:
        result = super().dec_lock_ref(node, *args, **kwargs)
        self.owners.recount_path(node)
        return result

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
        self._in_load.clear()
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

    def _detach_backuped(self, node: Any) -> int:
        tokens = super()._detach_backuped(node)
        self.owners.recount(node)
        return tokens

    def _give_up(self, node: Any) -> int:
        self.on_given_up(node)
        if node.backuped:
            for key in self.owners.ending_at(node):
                self.on_end_left(key)
        with self.worth.resting_since(node):  # its parent, a leaf from now on, was not used after it
            return self._evict_backuped(node) if node.backuped else self._evict_regular(node)

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

    def load_back(self, node: Any, mem_quota: int | None = None) -> Any:
        missing, above = set(), node
        while above.evicted:
            missing.add(above.id)
            above = above.parent
        loaded = super().load_back(node, mem_quota)
        self.nodes_in_load()
        if loaded is not None:
            self._in_load[node.id] = missing
        return loaded

    def nodes_in_load(self) -> set[int]:
        """Ids of nodes that are on their way to the device. Forgets the loads that have landed."""
        self._in_load = {end: ids for end, ids in self._in_load.items() if end in self.ongoing_load_back}
        return set().union(*self._in_load.values())

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
