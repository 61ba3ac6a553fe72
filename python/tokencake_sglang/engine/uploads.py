"""Uploads: KV of an agent's path comes back to the device outside a batch.

An upload takes free memory, or memory of dead KV, up to its quota; it starts its copies at once and SGLang locks the
nodes until they have landed. One that has a next piece is several of these, one after another (core/uploads.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sglang.srt.mem_cache.base_prefix_cache import EvictParams

from tokencake_sglang.core.plan import MoveDone, Outcome, Upload
from tokencake_sglang.engine.cache import TokenCakeHiRadixCache
from tokencake_sglang.engine.requests import on_device

BATCH_LOAD_SLOTS = 3  # slots left to the loads that SGLang starts with a prefill batch
DISPLACED_SHARE = 0.5  # an upload takes the place of KV that is worth at most this share of its own
DECODE_STEPS_AHEAD = 16  # decode steps of all running requests that an upload must leave room for


@dataclass
class _Upload:
    end: Any
    load: tuple[int, int]  # what TokenCakeHiRadixCache.start_loading_now gave
    tokens: int


class Uploads:
    """Those under way, by agent; `done` collects the ends. Equal on every rank."""

    def __init__(self, cache: TokenCakeHiRadixCache, scheduler: Any, done: list[MoveDone]) -> None:
        self.cache = cache
        self.scheduler = scheduler
        self.under_way: dict[str, _Upload] = {}
        self.done = done

    @property
    def slots(self) -> int:
        """How many loads may be in flight, SGLang's own among them, for one more to start here."""
        return self.cache.cache_controller.layer_done_counter.num_counters - BATCH_LOAD_SLOTS

    def collect(self) -> None:
        """Hand over those whose copies have landed on all ranks."""
        for key, upload in list(self.under_way.items()):
            if upload.end.id not in self.cache.ongoing_load_back:
                del self.under_way[key]
                self.cache.landed(upload.load)
                self.done.append(MoveDone(key, "upload", upload.tokens))
        if not self.under_way:
            self.cache.uploading.clear()

    def landing_tokens(self, key: str) -> int:
        upload = self.under_way.get(key)
        return 0 if upload is None else upload.tokens

    def reset(self) -> None:
        self.done += [MoveDone(key, "upload", 0) for key in self.under_way]
        self.under_way.clear()

    def report(self) -> list[dict[str, Any]]:
        return [{"agent": key, "kind": "upload", "tokens": move.tokens} for key, move in self.under_way.items()]

    def start(self, key: str, action: Upload) -> Outcome:
        if self.cache.loads_in_flight() >= self.slots:
            return Outcome(False, reason="load_slots_busy")
        quota = min(action.max_tokens, self._room_beside_what_runs())
        if action.displaces:
            quota = self._displace(key, action.max_tokens, quota)
        chain = self._fitting_chain(key, quota)
        if action.min_tokens is not None:
            chain = self._cut_to_fit(key, chain, quota, action.min_tokens)
        tokens = sum(len(n.key) for n in chain)
        if tokens < self.cache.load_back_threshold:
            return Outcome(False, reason="below_load_threshold" if chain else "no_room")
        load = self._load(chain, tokens)
        if load is None:
            return Outcome(False, reason="no_room")
        self.under_way[key] = _Upload(chain[-1], load, tokens)
        if action.lease_until is not None:
            self.cache.owners.protected[key] = None
        return Outcome(True, tokens)

    def _displace(self, key: str, wanted: int, quota: int) -> int:
        """Take KV that is worth less than the agent's off the device until its path fits; the quota that results."""
        chain = self.cache.owners.evicted_path(key)
        need = min(wanted, sum(len(n.key) for n in chain)) - quota
        if need <= 0 or not chain:
            return quota
        worth = self.cache.worth.on_device(chain[-1])
        return quota + self.cache.displace(need, below=DISPLACED_SHARE * worth)

    def _room_beside_what_runs(self) -> int:
        """Free and dead tokens less what running requests take next: SGLang evicts for them, but KV on its way is
        locked, and a chunk of a prompt or a decode step in a mixed batch that finds no memory stops the server."""
        scheduler = self.scheduler
        step = max(1, self.cache.page_size)
        running = len({id(req) for req in on_device(scheduler)})  # one whose prompt has just been computed too
        wanted = running * max(step, DECODE_STEPS_AHEAD)
        chunked = scheduler.chunked_req
        if chunked is not None:
            wanted += max(0, len(chunked.origin_input_ids) + len(chunked.output_ids) - len(chunked.prefix_indices))
        free = self.cache.token_to_kv_pool_allocator.available_size()
        return free + self.cache.owners.dead_evictable_tokens(scheduler.max_total_num_tokens) - wanted

    def _fitting_chain(self, key: str, quota: int) -> list[Any]:
        """The evicted nodes of the agent's path, from the root side on, that fit into `quota` tokens."""
        chain, used = [], 0
        for node in self.cache.owners.evicted_path(key):
            used += len(node.key)
            if used > quota:
                break
            chain.append(node)
        return chain

    def _cut_to_fit(self, key: str, chain: list[Any], quota: int, least: int) -> list[Any]:
        """`chain`; with a piece of the node behind it where `chain` has fewer than `least` tokens. Nothing where that
        is too little, but for what a page does not hold."""
        page, used = self.cache.page_size, sum(len(n.key) for n in chain)
        if used >= least:
            return chain
        behind = self.cache.owners.evicted_path(key)[len(chain):]
        cut = (quota - used) // page * page
        if not behind or used + cut < least // page * page or cut <= 0 or behind[0].host_ref_counter > 0:
            return []
        return [*chain, self.cache.cut(behind[0], cut)]

    def _load(self, chain: list[Any], tokens: int) -> tuple[int, int] | None:
        """Start the copies of `chain`; room comes from free memory and, for the shortfall, from dead KV only."""
        cache = self.cache
        ancestor = chain[0].parent
        cache.inc_lock_ref(ancestor)
        try:
            shortfall = tokens - cache.token_to_kv_pool_allocator.available_size()
            if shortfall > 0:
                if cache.owners.dead_evictable_tokens(shortfall) < shortfall:
                    return None
                cache.evict(EvictParams(num_tokens=shortfall))
            free = cache.token_to_kv_pool_allocator.available_size()
            if free < tokens or cache.load_back(chain[-1], mem_quota=free) is None:
                return None
        finally:
            cache.dec_lock_ref(ancestor)
        return cache.start_loading_now(chain)
