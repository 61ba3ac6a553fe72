"""HiRadixCache whose nodes know their owners and whose loads may start outside a prefill batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sglang.srt.mem_cache.base_prefix_cache import MatchPrefixParams, MatchResult
from sglang.srt.mem_cache.hiradix_cache import HiRadixCache

from tokencake_sglang.core.config import TokenCakeConfig
from tokencake_sglang.core.types import AgentIdentity
from tokencake_sglang.engine.eviction import RankedStrategy
from tokencake_sglang.engine.load_slots import WideLayerDoneCounter
from tokencake_sglang.engine.owners import ANONYMOUS, OwnerIndex


def agent_key(req: Any) -> str:
    """The key of the agent that sent this request; ANONYMOUS without identity. Kept on the request."""
    key = getattr(req, "tokencake_key", None)
    if key is None:
        identity = AgentIdentity.from_metadata(getattr(req, "agent_metadata", None))
        key = req.tokencake_key = identity.key if identity else ANONYMOUS
    return key


class TokenCakeHiRadixCache(HiRadixCache):
    """Adds to HiRadixCache: owner tags, eviction classes, uploads that later batches wait for, a step call.

    `on_step` runs once per scheduler iteration after SGLang has collected the finished copies and before the
    next batch is built; `on_backups_landed` when nodes that a copy to the host had locked are free again;
    `on_request_ended(key, rid)` when a request has left the device; `on_reset` after a flush.
    """

    def __init__(self, params: Any, server_args: Any, config: TokenCakeConfig) -> None:
        self.owners = OwnerIndex()
        self.on_step: Callable[[], None] = lambda: None
        self.on_reset: Callable[[], None] = lambda: None
        self.on_backups_landed: Callable[[], None] = lambda: None
        self.on_request_ended: Callable[[str, str], None] = lambda key, rid: None
        self._inserting = ANONYMOUS
        self._match_met_load = False
        self._step = 0
        self._last_free_step = -1
        self.uploading: set[int] = set()  # ids of nodes whose load was started outside a batch
        self._started_early: set[int] = set()  # end nodes of loads queued by a batch but started outside one
        super().__init__(params, server_args)
        self.eviction_strategy = RankedStrategy(self.eviction_strategy, self.owners.rank)
        controller = self.cache_controller
        controller.layer_done_counter = WideLayerDoneCounter(controller.layer_num, config.load_slots)
        controller.mem_pool_device.register_layer_transfer_counter(controller.layer_done_counter)

    # -- owners follow the tree -----------------------------------------------------------------------------

    def on_node_inserted(self, node: Any) -> None:
        self.owners.tag_path(node, self._inserting)

    def on_node_split(self, new_node: Any, child: Any) -> None:
        self.owners.on_split(new_node, child)
        if child.id in self.uploading:
            self.uploading.add(new_node.id)

    def on_node_removed(self, node: Any) -> None:
        self.owners.on_removed(node)

    def cache_unfinished_req(self, req: Any, *args: Any, **kwargs: Any) -> None:
        waited_for, met_load = req.last_node, self._match_met_load
        self._last_free_step = self._step
        self._inserting = agent_key(req)
        try:
            super().cache_unfinished_req(req, *args, **kwargs)
        finally:
            self._inserting = ANONYMOUS
        self._match_met_load = met_load  # the match in there is not one for the batch being built
        if self.loads_in_flight() > 0 and self._is_loading(req.last_node, waited_for):
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
        if agent_key(req) != ANONYMOUS and req.finished():
            self.on_request_ended(agent_key(req), req.rid)

    def reset(self) -> None:
        super().reset()
        self.owners.clear()
        self.uploading.clear()
        self._started_early.clear()
        self._match_met_load = False
        self.on_reset()

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
        if self.uploading and not self._match_met_load:
            self._match_met_load = self._is_loading(result.last_device_node)
        return result

    def ready_to_load_host_cache(self) -> int:
        """The event slot that the batch being built must wait for, or -1.

        A batch that matched KV still on its way waits for the newest load: copies run in order on one stream,
        so that covers all earlier ones.
        """
        producer = super().ready_to_load_host_cache()
        met_load, self._match_met_load = self._match_met_load, False
        self._started_early.intersection_update(self.ongoing_load_back)
        if producer == -1 and (met_load or self._started_early) and self.loads_in_flight() > 0:
            return self.cache_controller.layer_done_counter.producer_index
        return producer

    def start_loading_now(self, end: Any) -> None:
        """Start the queued loads outside a batch, up to `end` among them. Loads that a batch had queued go along,
        and every batch waits for those from now on."""
        for operation in self.cache_controller.load_queue:
            self._started_early.update(i for i in operation.node_ids if i != end.id)
        self.cache_controller.start_loading()

    def freed_under_pass(self) -> bool:
        """Whether the results handled last freed slots while the pass launched before that may still use them."""
        return self._last_free_step >= self._step - 1

    def loads_in_flight(self) -> int:
        """Loads started and not yet acknowledged on all ranks (equal on every rank)."""
        return len(self.cache_controller.ack_load_queue)

    def _is_loading(self, node: Any, above: Any = None) -> bool:
        """Whether `node` or an ancestor, up to and without `above`, is on its way outside a batch."""
        while node is not None and node is not self.root_node and node is not above:
            if node.id in self.uploading:
                return True
            node = node.parent
        return False
