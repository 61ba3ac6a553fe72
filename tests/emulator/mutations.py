"""Defects, each built into the program under test by replacing one thing. They are applied in a run's own process."""

from __future__ import annotations

from typing import Any


def batch_does_not_wait_for_uploads() -> None:
    """TokenCake's cache tells no batch which copies to wait for; they are started all the same."""
    from tokencake_sglang.engine.cache import TokenCakeHiRadixCache

    _forget_producer(TokenCakeHiRadixCache)


def nobody_beside_a_long_prompt() -> None:
    """A prompt in chunks takes all prompt tokens of each batch, as in SGLang."""
    from tokencake_sglang.engine.beside import Beside

    Beside.choose = lambda *_: 0


def batch_does_not_wait_for_load_backs() -> None:
    """The same for SGLang's own cache."""
    from sglang.srt.mem_cache.hiradix_cache import HiRadixCache

    _forget_producer(HiRadixCache)


def _forget_producer(cache: Any) -> None:
    original = cache.ready_to_load_host_cache

    def ready_to_load_host_cache(self: Any) -> int:
        original(self)
        return -1

    cache.ready_to_load_host_cache = ready_to_load_host_cache


def batch_does_not_wait_for_early_uploads() -> None:
    """A batch waits for the loads that it starts itself, as in SGLang, not for those started before."""
    from sglang.srt.mem_cache.hiradix_cache import HiRadixCache

    from tokencake_sglang.engine.cache import TokenCakeHiRadixCache

    TokenCakeHiRadixCache.ready_to_load_host_cache = HiRadixCache.ready_to_load_host_cache


def offload_does_not_wait_for_its_copies() -> None:
    """Offloaded KV leaves the device, and its slots are used again, while the copy to the host still reads them."""
    from tokencake_sglang.core.plan import MoveDone
    from tokencake_sglang.engine.offloads import Offloads

    def go_on(self: Any, key: str) -> None:
        moved = 0
        for node in self.under_way.pop(key).nodes:
            children = node.children.values()
            if node.value is not None and node.backuped and all(child.value is None for child in children):
                moved += self.cache._evict_backuped(node)
        self.done.append(MoveDone(key, "offload", moved))

    Offloads.go_on = go_on


def load_copies_half_of_what_it_reports() -> None:
    """The second half of every load is not copied; the tree takes all of it for loaded."""
    from sglang.srt.managers.cache_controller import HiCacheController

    original = HiCacheController.start_loading

    def start_loading(self: Any) -> int:
        for operation in self.load_queue:
            half = len(operation.host_indices) // 2
            operation.host_indices = operation.host_indices[:half]
            operation.device_indices = operation.device_indices[:half]
        return original(self)

    HiCacheController.start_loading = start_loading


def eviction_refuses_every_second_node() -> None:
    """A policy that hides memory which the cache counts as evictable."""
    from tokencake_sglang.engine.victims import VictimQueue

    original = VictimQueue.next

    def next_victim(self: Any) -> Any:
        usable, self._usable = self._usable, lambda node: usable(node) and node.id % 2
        try:
            return original(self)
        finally:
            self._usable = usable

    VictimQueue.next = next_victim


def finished_requests_stay_locked() -> None:
    """A policy that keeps the KV of stalled agents by locking it: nothing is evictable and requests wait for ever."""
    from tokencake_sglang.engine.cache import TokenCakeHiRadixCache

    original = TokenCakeHiRadixCache.cache_finished_req

    def cache_finished_req(self: Any, req: Any, *args: Any, **kwargs: Any) -> None:
        self.inc_lock_ref(req.last_node)
        original(self, req, *args, **kwargs)

    TokenCakeHiRadixCache.cache_finished_req = cache_finished_req
