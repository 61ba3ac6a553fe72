"""The real TokenCakeHiRadixCache on the CPU without a server, and requests that act on it as the scheduler does.

Pools, allocators, host pool, cache controller, radix tree and `Req` are SGLang's own. A request writes, for each
token, KV that is a function of the token and its position, and reads all KV it uses in every forward pass, so a
slot that is reused, read or freed too early is seen. `CacheHarness.audit` checks the books after each step.
"""

from __future__ import annotations

import functools
import itertools
from array import array
from collections.abc import Iterable, Sequence
from types import SimpleNamespace
from typing import Any

import torch

from tests.support.transfer_clock import TransferClock

LAYERS, HEADS, DIM = 2, 1, 2
CONTEXT, REQUESTS = 512, 16


def ensure_process_group() -> None:
    """HiRadixCache asks torch for the size of its group, also when it is alone."""
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)


@functools.cache
def server_args() -> Any:
    """SGLang's defaults, published as the configuration of this process."""
    from sglang.srt.runtime_context import publish
    from sglang.srt.server_args import ServerArgs

    args = ServerArgs(model_path="dummy")
    publish(args, role="test")
    return args


def build_cache(*, page_size: int, device_tokens: int, host_tokens: int, eviction_policy: str = "lru",
                write_policy: str, **settings: Any) -> Any:
    """A TokenCakeHiRadixCache. Both sizes are multiples of `page_size`; `settings` are TokenCakeConfig's."""
    from sglang.srt.mem_cache.allocator.token import TokenToKVPoolAllocator
    from sglang.srt.mem_cache.cache_init_params import CacheInitParams
    from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool, ReqToTokenPool
    from sglang.srt.mem_cache.pool_host import base, common

    from tokencake_sglang.core.config import TokenCakeConfig
    from tokencake_sglang.engine.cache import TokenCakeHiRadixCache
    from tokencake_sglang.platforms.allocator import TorchPagedTokenToKVPoolAllocator
    from tokencake_sglang.platforms.shims import alloc_host_memory

    ensure_process_group()
    common.ALLOC_MEMORY_FUNCS["cpu"] = alloc_host_memory
    base.HICACHE_HOST_MEMORY_RESERVE_BYTES = 0
    pool = MHATokenToKVPool(device_tokens, page_size, torch.float32, HEADS, DIM, LAYERS, "cpu", False)
    if page_size == 1:
        allocator = TokenToKVPoolAllocator(device_tokens, torch.float32, "cpu", pool, False)
    else:
        allocator = TorchPagedTokenToKVPoolAllocator(device_tokens, page_size, torch.float32, "cpu", pool, False)
    args = server_args()
    args.hicache_ratio = (host_tokens - page_size) / device_tokens  # SGLang adds one page
    args.hicache_size = 0
    args.hicache_mem_layout, args.hicache_io_backend = "layer_first", "direct"
    args.hicache_write_policy, args.hicache_storage_backend = write_policy, None
    params = CacheInitParams(
        disable=False, req_to_token_pool=ReqToTokenPool(REQUESTS, CONTEXT, "cpu", False),
        token_to_kv_pool_allocator=allocator, page_size=page_size, eviction_policy=eviction_policy)
    cache = TokenCakeHiRadixCache(params, args, TokenCakeConfig(**settings))
    assert cache.token_to_kv_pool_host.size == host_tokens
    return cache


def expected_kv(tokens: Sequence[int], start: int = 0) -> torch.Tensor:
    """[layers, 2 (K, V), tokens] what the slots of `tokens`, the first at position `start`, must hold."""
    base = torch.tensor([t * 1024.0 + (start + i) * 4 for i, t in enumerate(tokens)])
    return torch.stack([torch.stack([base + layer * 2, base + layer * 2 + 1]) for layer in range(LAYERS)])


class CacheHarness:
    """A cache, a transfer clock and the part of the scheduler that acts on the cache.

    The attributes `waiting_queue`, `running_batch`, `last_batch`, `chunked_req`, `chunked_prefill_size`,
    `is_mixed_chunk`, `max_total_num_tokens` and `new_token_ratio_tracker` are those that the extension reads of a
    scheduler.
    """

    def __init__(self, clock: TransferClock, *, page_size: int = 1, device_tokens: int = 128,
                 host_tokens: int = 256, write_through: bool = False, **kwargs: Any) -> None:
        """`write_through`: SGLang copies all new KV to the host (the launcher's default); else only moves do."""
        self.clock = clock
        self.page_size = page_size
        self.cache = build_cache(
            page_size=page_size, device_tokens=device_tokens, host_tokens=host_tokens,
            write_policy="write_through" if write_through else "write_through_selective", **kwargs)
        if not write_through:
            self.cache.write_through_threshold = 10**9
        self.allocator = self.cache.token_to_kv_pool_allocator
        self.pool = self.allocator.get_kvcache()
        self.host = self.cache.token_to_kv_pool_host
        self.rows = self.cache.req_to_token_pool
        self.writes = self.cache.cache_controller.write_stream
        self.loads = self.cache.cache_controller.load_stream
        self.max_total_num_tokens = device_tokens
        self.waiting_queue: list[Any] = []
        self.running_batch = SimpleNamespace(reqs=[])
        self.last_batch = None
        self.chunked_req = None
        self.chunked_prefill_size, self.is_mixed_chunk = 8192, False
        self.new_token_ratio_tracker = SimpleNamespace(current=0.7)  # SGLang's first value
        self.enable_overlap = False
        self._rids = itertools.count()

    # -- requests -------------------------------------------------------------------------------------------

    def request(self, tokens: Iterable[int], agent: str | None = None, rid: str | None = None) -> Any:
        from sglang.srt.managers.schedule_batch import Req
        from sglang.srt.sampling.sampling_params import SamplingParams

        metadata = {"agent_id": agent} if agent else None
        return Req(rid or f"r{next(self._rids)}", "", array("q", tokens), SamplingParams(max_new_tokens=64),
                   agent_metadata=metadata)

    def admit(self, req: Any) -> bool:
        """Match, load back, lock and allocate, as PrefillAdder and ScheduleBatch do; False without room."""
        from sglang.srt.managers.schedule_batch import ReqKvInfo
        from sglang.srt.mem_cache.base_prefix_cache import InitLoadBackParams

        cache = self.cache
        req.init_next_round_input(cache)
        first = req.last_node
        cache.inc_lock_ref(first)
        wanted = len(req.full_untruncated_fill_ids) - len(req.prefix_indices) + 2 * self.page_size
        if wanted > self.allocator.available_size() + cache.evictable_size() or not self.rows.free_slots:
            cache.dec_lock_ref(first)
            return False
        if req.needs_host_load_back():
            indices, req.last_node = cache.init_load_back(
                InitLoadBackParams(best_match_node=req.best_match_node, host_hit_length=req.host_hit_length, req=req))
            req.prefix_indices = torch.cat([req.prefix_indices, indices])
            req.cache_protected_len = len(req.prefix_indices)
        cache.inc_lock_ref(req.last_node)
        cache.dec_lock_ref(first)
        start, end = len(req.prefix_indices), len(req.full_untruncated_fill_ids)
        req.cached = start
        req.set_extend_range(start, end)
        req.consumer = cache.ready_to_load_host_cache()
        self.rows.alloc([req])
        slots = self._allocate(req.prefix_indices, end)
        self.rows.write((req.req_pool_idx, slice(0, start)), req.prefix_indices)
        self.rows.write((req.req_pool_idx, slice(start, end)), slots)
        req.kv = ReqKvInfo(kv_allocated_len=end, swa_evicted_seqlen=0)
        req.kv_committed_len = end
        self.running_batch.reqs.append(req)
        return True

    def forward(self, req: Any) -> None:
        """The prefill pass: waits for the loads its batch was told to wait for, reads the prefix, writes the rest."""
        counter = self.cache.cache_controller.layer_done_counter
        counter.set_consumer(req.consumer)
        for layer in range(LAYERS):
            counter.wait_until(layer)
        counter.set_consumer(-1)
        start, end = len(req.prefix_indices), req.kv_committed_len
        self.expect_kv(req, 0, start)
        self._write_kv(req, start, end)

    def result(self, req: Any) -> None:
        """What the scheduler does with a prefill pass that has ended: one token more, and the KV is cached."""
        self.cache.cache_unfinished_req(req)
        req.output_ids.append(self._next_token(req))

    def start(self, tokens: Iterable[int], agent: str | None = None) -> Any:
        req = self.request(tokens, agent)
        assert self.admit(req), "no room for the request"
        self.forward(req)
        self.result(req)
        return req

    def decode(self, req: Any, steps: int = 1) -> None:
        for _ in range(steps):
            at = req.kv_committed_len
            last = self.rows.req_to_token[req.req_pool_idx, at - 1 : at].to(torch.int64)
            slot = self._allocate_next(at + 1, last)
            self.rows.write((req.req_pool_idx, slice(at, at + 1)), slot)
            req.kv_committed_len = req.kv.kv_allocated_len = at + 1
            self.expect_kv(req, 0, at)
            self._write_kv(req, at, at + 1)
            req.output_ids.append(self._next_token(req))

    def finish(self, req: Any) -> None:
        from sglang.srt.managers.schedule_batch import FINISH_LENGTH

        req.finished_reason = FINISH_LENGTH(len(req.output_ids))
        self._release(req, is_insert=True)

    def abort(self, req: Any, is_insert: bool = True) -> None:
        from sglang.srt.managers.schedule_batch import FINISH_ABORT

        req.finished_reason = FINISH_ABORT()
        self._release(req, is_insert=is_insert)

    def retract(self, req: Any) -> None:
        self._release(req, is_insert=False)
        req.reset_for_retract()

    def serve(self, tokens: Iterable[int], agent: str | None = None, steps: int = 0) -> list[int]:
        """One whole request; returns the tokens whose KV it leaves (page tails excluded)."""
        req = self.start(tokens, agent)
        self.decode(req, steps)
        done = self.ids(req)
        self.finish(req)
        return done[: len(done) // self.page_size * self.page_size]

    def ids(self, req: Any) -> list[int]:
        return list(req.origin_input_ids + req.output_ids)[: req.kv_committed_len]

    def _release(self, req: Any, *, is_insert: bool) -> None:
        from sglang.srt.mem_cache.common import release_kv_cache

        self.running_batch.reqs.remove(req)
        release_kv_cache(req, self.cache, is_insert=is_insert)

    def _next_token(self, req: Any) -> int:
        return 9 if not req.output_ids else req.output_ids[-1]

    # -- slots and their content ----------------------------------------------------------------------------

    def _allocate(self, prefix: torch.Tensor, end: int) -> torch.Tensor:
        from sglang.srt.mem_cache.common import evict_from_tree_cache

        start = len(prefix)
        evict_from_tree_cache(self.cache, end - start + self.page_size)
        if self.page_size == 1:
            slots = self.allocator.alloc(end - start)
        else:
            before, after = torch.tensor([start]), torch.tensor([end])
            last = prefix[-1:].to(torch.int64) if start else torch.tensor([-1])
            slots = self.allocator.alloc_extend(before, before, after, after, last, end - start)
        assert slots is not None, "the scheduler admitted a request without room"
        return slots

    def _allocate_next(self, length: int, last: torch.Tensor) -> torch.Tensor:
        from sglang.srt.mem_cache.common import evict_from_tree_cache

        evict_from_tree_cache(self.cache, self.page_size)
        if self.page_size == 1:
            slot = self.allocator.alloc(1)
        else:
            lens = torch.tensor([length])
            slot = self.allocator.alloc_decode(lens, lens, last)
        assert slot is not None, "no room to decode"
        return slot

    def _write_kv(self, req: Any, start: int, end: int) -> None:
        slots = self.rows.req_to_token[req.req_pool_idx, start:end].to(torch.int64)
        kv = expected_kv(self.ids(req)[start:end], start)
        for layer in range(LAYERS):
            self.pool.k_buffer[layer][slots] = kv[layer, 0][:, None, None].expand(-1, HEADS, DIM)
            self.pool.v_buffer[layer][slots] = kv[layer, 1][:, None, None].expand(-1, HEADS, DIM)

    def expect_kv(self, req: Any, start: int, end: int) -> None:
        slots = self.rows.req_to_token[req.req_pool_idx, start:end].to(torch.int64)
        self.expect_slots(slots, self.ids(req)[start:end], start)

    def expect_slots(self, slots: torch.Tensor, tokens: Sequence[int], start: int = 0) -> None:
        kv = expected_kv(tokens, start)
        for layer in range(LAYERS):
            for part, buffer in enumerate((self.pool.k_buffer, self.pool.v_buffer)):
                found = buffer[layer][slots][:, 0, 0]
                assert torch.equal(found, kv[layer, part]), (
                    f"layer {layer}: slots {slots.tolist()} hold {found.tolist()}, not {kv[layer, part].tolist()}")

    # -- looking --------------------------------------------------------------------------------------------

    def step(self) -> None:
        """What the scheduler does once per iteration."""
        self.cache.check_hicache_events()

    def settle(self) -> None:
        """All copies land and are acknowledged."""
        self.clock.complete_all(self.writes, self.loads)
        self.step()

    def back_up_all(self) -> None:
        """Every node gets a host copy, all copies landed."""
        for node in self.nodes():  # parents come before their children
            if not node.backuped:
                assert self.cache.write_backup(node) > 0
        self.settle()

    def evict(self, tokens: int) -> int:
        from sglang.srt.mem_cache.base_prefix_cache import EvictParams

        return self.cache.evict(EvictParams(num_tokens=tokens)).num_tokens_evicted

    def peek(self, tokens: Iterable[int]) -> Any:
        """The node at which the path of `tokens` ends; neither splits a node nor refreshes its age."""
        node, rest = self.cache.root_node, list(tokens)
        while rest:
            child = next((c for c in node.children.values() if list(c.key) == rest[: len(c.key)]), None)
            if child is None:
                break
            node, rest = child, rest[len(child.key):]
        return node

    def match(self, tokens: Iterable[int]) -> Any:
        from sglang.srt.mem_cache.base_prefix_cache import MatchPrefixParams
        from sglang.srt.mem_cache.radix_cache import RadixKey

        return self.cache.match_prefix(MatchPrefixParams(key=RadixKey(array("q", tokens))))

    def on_device(self, tokens: Iterable[int]) -> int:
        return len(self.match(tokens).device_indices)

    def on_host(self, tokens: Iterable[int]) -> int:
        return self.match(tokens).host_hit_length

    def nodes(self) -> list[Any]:
        found, stack = [], [self.cache.root_node]
        while stack:
            children = list(stack.pop().children.values())
            found += children
            stack += children
        return found

    def path(self, node: Any) -> list[Any]:
        """Nodes from below the root to `node`."""
        nodes = []
        while node is not self.cache.root_node:
            nodes.append(node)
            node = node.parent
        return nodes[::-1]

    def tokens_of(self, node: Any) -> list[int]:
        """All tokens from the root to the end of `node`."""
        return [t for n in self.path(node) for t in n.key]

    def flush(self) -> None:
        self.cache.reset()
        self.rows.clear()
        self.allocator.clear()

    # -- the books ------------------------------------------------------------------------------------------

    def audit(self) -> None:
        """Raise AssertionError unless slots, sizes, leaves, locks and owners all agree with the tree."""
        nodes = self.nodes()
        self._audit_device(nodes)
        self._audit_host(nodes)
        self._audit_owners(nodes)
        self._audit_ledger(nodes)
        self._audit_content(nodes)

    def _audit_ledger(self, nodes: list[Any]) -> None:
        """Every owned token is in one account, and in those of programs that own it."""
        ledger = self.cache.owners.ledger
        owned = [n for n in nodes if hasattr(n, "agent_owners") or n.id in self.cache.owners.dead]
        assert ledger.total == sum(len(n.key) for n in owned) == sum(ledger.accounts.values())
        programs = {self.cache.owners.program_of(key) for n in owned for key in getattr(n, "agent_owners", ())}
        assert ledger.accounts.keys() <= programs | {""} and all(v > 0 for v in ledger.accounts.values())

    def _audit_device(self, nodes: list[Any]) -> None:
        cache, ps = self.cache, self.page_size
        free = self.allocator.free_pages.tolist() + self.allocator.release_pages.tolist()
        held = [("free", s) for s in free]
        for n in nodes:
            if n.value is not None:
                assert len(n.value) == len(n.key)
                held += [(f"node {n.id}", s) for s in sorted({v // ps for v in n.value.tolist()})]
        for req in self.running_batch.reqs:
            row = self.rows.req_to_token[req.req_pool_idx, : req.kv_committed_len].tolist()
            held += [(f"request {req.rid}", s) for s in sorted({v // ps for v in row[req.cache_protected_len:]})]
        seen: dict[int, str] = {}
        for who, slot in held:
            assert slot not in seen, f"page {slot} belongs to {who} and to {seen[slot]}"
            seen[slot] = who
        assert len(seen) * ps == self.max_total_num_tokens, f"{self.max_total_num_tokens - len(seen) * ps} slots lost"
        evictable = sum(len(n.key) for n in nodes if n.value is not None and n.lock_ref == 0)
        protected = sum(len(n.key) for n in nodes if n.lock_ref > 0)
        assert (cache.evictable_size(), cache.protected_size()) == (evictable, protected)
        leaves = {n for n in nodes if n.value is not None and n.lock_ref == 0
                  and all(c.value is None for c in n.children.values())}
        assert cache.evictable_leaves - {cache.root_node} == leaves
        for n in nodes:
            assert n.lock_ref == 0 or n.value is not None, "a locked node is not on the device"
            assert n.value is not None or n.host_value is not None, "a node without KV"
            assert n.parent is cache.root_node or n.value is None or n.parent.value is not None, "a gap on the device"
            assert n.lock_ref <= n.parent.lock_ref or n.parent is cache.root_node

    def _audit_host(self, nodes: list[Any]) -> None:
        slots = [v for n in nodes if n.host_value is not None for v in n.host_value.tolist()]
        assert len(slots) == len(set(slots)), "two nodes share a host slot"
        assert int(self.host.slot_used.sum()) == len(slots), "host slots lost or freed twice"
        assert self.host.available_size() + len(slots) == self.host.size

    def _audit_content(self, nodes: list[Any]) -> None:
        """Every node holds its KV, on the device and on the host, save where a copy has not landed yet."""
        copied_from, to_host = self.clock.pending_slots(self.writes)
        loaded_from, to_device = self.clock.pending_slots(self.loads)
        free = {p * self.page_size + i for p in self.allocator.free_pages.tolist() for i in range(self.page_size)}
        assert not free & (copied_from | to_device), "a slot was freed while a copy uses it"
        used = set(self.host.slot_used.nonzero().flatten().tolist())
        assert (to_host | loaded_from) <= used, "a host slot was freed while a copy uses it"
        held: list[list[tuple[int, int, int]]] = [[], []]
        for n in nodes:
            start = sum(len(p.key) for p in self.path(n)) - len(n.key)
            for which, (value, landing) in enumerate(((n.value, to_device), (n.host_value, to_host))):
                slots = value.tolist() if value is not None else []
                if landing.isdisjoint(slots):
                    held[which] += zip(slots, n.key, range(start, start + len(n.key)), strict=False)
                elif which == 0:
                    assert n.lock_ref > 0, "a loading node is not locked"
        for buffers, rows in (((self.pool.k_buffer, self.pool.v_buffer), held[0]),
                              ((self.host.k_buffer, self.host.v_buffer), held[1])):
            slots = torch.tensor([r[0] for r in rows], dtype=torch.int64)
            base = torch.tensor([r[1] * 1024.0 + r[2] * 4 for r in rows])
            for layer in range(LAYERS):
                for part, buffer in enumerate(buffers):
                    wrong = (buffer[layer][slots][:, 0, 0] != base + layer * 2 + part).nonzero().flatten().tolist()
                    assert not wrong, f"slot {rows[wrong[0]][0]} does not hold token {rows[wrong[0]][1]}"

    def _audit_owners(self, nodes: list[Any]) -> None:
        from tokencake_sglang.engine.owners import ANONYMOUS, owners_of

        index = self.cache.owners
        tags: dict[str, set[int]] = {}
        for n in nodes:
            for key in owners_of(n):
                tags.setdefault(key, set()).add(n.id)
            if n.parent is not self.cache.root_node:
                assert owners_of(n).keys() <= owners_of(n.parent).keys(), "a parent misses an owner of its child"
            assert (n.id in index.dead) == (not owners_of(n)), f"node {n.id}: dead, or not, against its owners"
        tags.pop(ANONYMOUS, None)
        back = {key: set(mine) for key, mine in index.nodes.items() if mine}
        assert back == tags, f"the index says {back}, the tree says {tags}"
        by_id = {n.id: n for n in nodes}
        for mine in (*index.nodes.values(), index.dead):
            for node_id, node in mine.items():
                assert by_id.get(node_id) is node, f"node {node_id} is not in the tree any more"
        for key, leaf in index.leaf.items():
            assert by_id.get(leaf.id) is leaf and key in owners_of(leaf), f"the path of {key!r} ends outside the tree"
        latest = {key: {n.id for n in self.path(leaf)} for key, leaf in index.leaf.items()}
        for n in nodes:
            for key, is_latest in owners_of(n).items():
                assert key == ANONYMOUS or is_latest == (n.id in latest.get(key, ())), (
                    f"node {n.id} is tagged as {'on' if is_latest else 'off'} the latest path of {key!r}")
