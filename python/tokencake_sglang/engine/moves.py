"""Carries out the controller's decisions on the cache: offloads, uploads, leases. It never decides.

An offload is two-phase: nodes without a host copy are backed up first (SGLang locks them until the copy is
acknowledged), and only then leave the device, leaf first. An upload takes free memory, or memory of dead KV,
up to its quota; it starts its copies at once and SGLang locks the nodes until they have landed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sglang.srt.mem_cache.base_prefix_cache import EvictParams

from tokencake_sglang.core.costs import Costs
from tokencake_sglang.core.plan import (
    Action,
    Backup,
    CancelOffload,
    MoveDone,
    Offload,
    Outcome,
    Release,
    Retain,
    Upload,
)
from tokencake_sglang.core.types import Footprint, PoolView, WaitingView
from tokencake_sglang.engine.cache import TokenCakeHiRadixCache, agent_key
from tokencake_sglang.engine.owners import RANK_ORDINARY, owners_of
from tokencake_sglang.engine.requests import held

BATCH_LOAD_SLOTS = 3  # slots left to the loads that SGLang starts with a prefill batch
WAITING_HEAD = 8  # waiting requests whose demand an upload must leave room for
WAITING_VIEWED = 64  # waiting requests that a policy sees which asks for them (`reads_waiting`)
DISPLACED_SHARE = 0.5  # an upload takes the place of KV that is worth at most this share of its own
DECODE_STEPS_AHEAD = 16  # decode steps of all running requests that an upload must leave room for


@dataclass
class _Offload:
    nodes: list[Any]  # leaf side first
    leaves_device: bool = True  # a backup only copies

    @property
    def kind(self) -> str:
        return "offload" if self.leaves_device else "backup"


@dataclass
class _Upload:
    end: Any
    node_ids: list[int]
    tokens: int


class KvMover:
    """The controller's Mechanism on one scheduler's cache. Equal on every tensor-parallel rank."""

    def __init__(self, cache: TokenCakeHiRadixCache, scheduler: Any) -> None:
        self.cache = cache
        self.scheduler = scheduler
        self.offloads: dict[str, _Offload] = {}
        self.uploads: dict[str, _Upload] = {}
        self.done: list[MoveDone] = []
        self.waiting_viewed = WAITING_HEAD
        self.costs = Costs()  # as rank 0 told it last
        self._pool: PoolView | None = None

    # -- what the controller may know -----------------------------------------------------------------------

    def footprint(self, key: str) -> Footprint:
        return self.cache.owners.footprint(key)

    def pool(self) -> PoolView:
        """Measured once a step, and again after each move that was started in it."""
        if self._pool is None:
            self._pool = self.measure_pool()
        return self._pool

    def measure_pool(self) -> PoolView:
        allocator, host = self.cache.token_to_kv_pool_allocator, self.cache.token_to_kv_pool_host
        total = self.scheduler.max_total_num_tokens
        waiting = self.scheduler.waiting_queue
        running = self.scheduler.running_batch.reqs
        viewed = tuple(self._waiting_view(req) for req in waiting[:self.waiting_viewed])
        return PoolView(
            device_total=total,
            device_free=allocator.available_size(),
            device_evictable=self.cache.evictable_size(),
            device_dead=self.cache.owners.dead_evictable_tokens(total),
            host_total=host.size,
            host_free=host.available_size(),
            waiting_requests=len(waiting),
            waiting_head_tokens=sum(one.missing_tokens for one in viewed[:WAITING_HEAD]),
            running_requests=len(running),
            loads_in_flight=self.cache.loads_in_flight(),
            load_slots=self._load_slots(),
            waiting=viewed,
            growth_tokens=sum([max(0, req.sampling_params.max_new_tokens - len(req.output_ids)) for req in running]),
            costs=self.costs,
        )

    def live_rids(self) -> frozenset[str]:
        return frozenset([req.rid for req in held(self.scheduler) if req.finished_reason is None])

    # -- decisions ------------------------------------------------------------------------------------------

    def execute(self, key: str, action: Action) -> Outcome:
        self._pool = None
        if isinstance(action, (Offload, Backup, Upload)) and (key in self.offloads or key in self.uploads):
            return Outcome(False, reason="a move is under way")
        if isinstance(action, Offload):
            return self._start_offload(key, protect=action.lease_until is not None)
        if isinstance(action, Backup):
            return self._start_backup(key)
        if isinstance(action, Upload):
            return self._start_upload(key, action)
        if isinstance(action, CancelOffload):
            return self._cancel_offload(key)
        if isinstance(action, Retain):
            self.cache.owners.protected[key] = None
            return Outcome(True)
        assert isinstance(action, Release)
        self.cache.owners.unprotect(key)
        return Outcome(True)

    def expect(self, key: str, at: float | None) -> None:
        self.cache.owners.expect(key, at)

    def take_completions(self) -> list[MoveDone]:
        """Push on what is under way and hand over what has ended since the last call."""
        self._pool = None
        for key in list(self.offloads):
            self._continue_offload(key)
        for key, upload in list(self.uploads.items()):
            if upload.end.id not in self.cache.ongoing_load_back:
                del self.uploads[key]
                self.cache.uploading.difference_update(upload.node_ids)
                self.done.append(MoveDone(key, "upload", upload.tokens))
        if not self.uploads:
            self.cache.uploading.clear()
        done, self.done = self.done, []
        return done

    def forget(self, key: str) -> None:
        move = self.offloads.pop(key, None)
        if move is not None:
            self.done.append(MoveDone(key, move.kind, 0))
        self.cache.owners.forget(key)

    def reset(self) -> None:
        """The tree was flushed: every node handle is dead."""
        self.done += [MoveDone(key, move.kind, 0) for key, move in self.offloads.items()]
        self.done += [MoveDone(key, "upload", 0) for key in self.uploads]
        self.offloads.clear()
        self.uploads.clear()

    def moves_in_flight(self) -> list[dict[str, Any]]:
        moves = [{"agent": k, "kind": m.kind, "tokens": sum(len(n.key) for n in m.nodes)}
                 for k, m in self.offloads.items()]
        return moves + [{"agent": k, "kind": "upload", "tokens": m.tokens} for k, m in self.uploads.items()]

    # -- offload --------------------------------------------------------------------------------------------

    def _start_offload(self, key: str, protect: bool) -> Outcome:
        nodes = [n for n in self.cache.owners.unshared(key) if n.value is not None]
        nodes.sort(key=self.cache.get_height)
        missing = self._without_host_copy(nodes)
        wanted = sum(len(n.key) for n in missing)
        if not self._host_has_room(wanted):
            return Outcome(False, reason="host_full")
        shortfall = wanted - self.cache.token_to_kv_pool_host.available_size()
        if shortfall > 0:  # write_backup would push out a whole node's length, protected KV too
            self.cache.evict_host(shortfall)
        for node in missing:
            if self.cache.write_backup(node) == 0:
                break
        nodes.reverse()
        if not any(n.backuped for n in nodes):
            return Outcome(False, reason="nothing_to_move" if not nodes else "host_full")
        self.offloads[key] = _Offload(nodes)
        if protect:
            self.cache.owners.protected[key] = None
        return Outcome(True, sum(len(n.key) for n in nodes))

    def _start_backup(self, key: str) -> Outcome:
        """Copies of what is worth more than what has to leave the host for it, root side first."""
        nodes = [n for n in self.cache.owners.unshared(key) if n.value is not None]
        copied = []
        for node in self._without_host_copy(nodes):
            if not self.cache.make_host_room(len(node.key), self.cache.worth.on_host(node)):
                break
            if self.cache.write_backup(node) == 0:
                break
            copied.append(node)
        if not copied:
            return Outcome(False, reason="host_full" if nodes else "nothing_to_move")
        self.offloads[key] = _Offload(copied, leaves_device=False)
        return Outcome(True, sum(len(n.key) for n in copied))

    def _without_host_copy(self, nodes: list[Any]) -> list[Any]:
        """`nodes` and their ancestors that have no host copy, root side first (a copy needs its parent's)."""
        missing: dict[int, Any] = {}
        for node in nodes:
            while node is not self.cache.root_node and not node.backuped and node.id not in missing:
                missing[node.id] = node
                node = node.parent
        return sorted(missing.values(), key=self.cache.get_height)

    def _host_has_room(self, tokens: int) -> bool:
        """Whether `tokens` fit on the host without pushing out KV that is protected."""
        room = self.cache.token_to_kv_pool_host.available_size()
        if room >= tokens:
            return True
        for node in self.cache.evictable_host_leaves:
            if node.host_ref_counter == 0 and self.cache.owners.rank(node) <= RANK_ORDINARY:
                room += len(node.host_value)
                if room >= tokens:
                    return True
        return False

    def _continue_offload(self, key: str) -> None:
        """Once every copy is acknowledged, take off the device what nobody else uses."""
        move = self.offloads[key]
        nodes = move.nodes
        if any(n.write_through_pending_id is not None for n in nodes if n.value is not None):
            return
        if not move.leaves_device:
            del self.offloads[key]
            self.done.append(MoveDone(key, move.kind, sum(len(n.key) for n in nodes if n.backuped)))
            return
        moved = 0
        for node in nodes:
            if self._may_leave(node, key):
                self._clear_dead_below(node)
                if all(child.value is None for child in node.children.values()):
                    moved += self.cache._evict_backuped(node)
        del self.offloads[key]
        self.done.append(MoveDone(key, "offload", moved))

    def _clear_dead_below(self, node: Any) -> None:
        """Evict dead KV that continues `node` (an ended agent's); SGLang cannot take a node off the device before
        its children."""
        path = [child for child in node.children.values() if child.id in self.cache.owners.dead]
        below = []
        while path:
            child = path.pop()
            below.append(child)
            path.extend(child.children.values())
        for child in reversed(below):
            if child.value is None or child.lock_ref > 0:
                continue
            if child.backuped:
                self.cache._evict_backuped(child)
            elif not child.children:
                self.cache._evict_regular(child)

    def _may_leave(self, node: Any, key: str) -> bool:
        """Whether it is on both tiers, in nobody's use, and this agent's alone."""
        return (
            node.value is not None and node.backuped and node.lock_ref == 0 and owners_of(node).keys() == {key})

    def _cancel_offload(self, key: str) -> Outcome:
        if key not in self.offloads or not self.offloads[key].leaves_device:
            return Outcome(False, reason="no offload is under way")
        del self.offloads[key]
        self.done.append(MoveDone(key, "offload", 0))
        return Outcome(True)

    # -- upload ---------------------------------------------------------------------------------------------

    def _start_upload(self, key: str, action: Upload) -> Outcome:
        if self.cache.loads_in_flight() >= self._load_slots():
            return Outcome(False, reason="load_slots_busy")
        quota = min(action.max_tokens, self._room_beside_what_runs())
        if action.displaces:
            quota = self._displace(key, action.max_tokens, quota)
        chain = self._fitting_chain(key, quota)
        tokens = sum(len(n.key) for n in chain)
        if tokens < self.cache.load_back_threshold:
            return Outcome(False, reason="below_load_threshold" if chain else "no_room")
        if not self._load(chain, tokens):
            return Outcome(False, reason="no_room")
        upload = _Upload(chain[-1], [n.id for n in chain], tokens)
        self.uploads[key] = upload
        self.cache.uploading.update(upload.node_ids)
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
        running = len(scheduler.running_batch.reqs) + (scheduler.chunked_req is not None)
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

    def _load(self, chain: list[Any], tokens: int) -> bool:
        """Start the copies of `chain`; room comes from free memory and, for the shortfall, from dead KV only."""
        cache = self.cache
        ancestor = chain[0].parent
        cache.inc_lock_ref(ancestor)
        try:
            shortfall = tokens - cache.token_to_kv_pool_allocator.available_size()
            if shortfall > 0:
                if cache.owners.dead_evictable_tokens(shortfall) < shortfall:
                    return False
                cache.evict(EvictParams(num_tokens=shortfall))
            free = cache.token_to_kv_pool_allocator.available_size()
            if free < tokens or cache.load_back(chain[-1], mem_quota=free) is None:
                return False
        finally:
            cache.dec_lock_ref(ancestor)
        cache.start_loading_now(chain[-1])
        return True

    def _load_slots(self) -> int:
        return self.cache.cache_controller.layer_done_counter.num_counters - BATCH_LOAD_SLOTS

    def _waiting_view(self, req: Any) -> WaitingView:
        key, prompt = agent_key(req), len(req.origin_input_ids) + len(req.output_ids)
        there = self.cache.owners.device_tokens(key)
        growth = max(0, req.sampling_params.max_new_tokens - len(req.output_ids))
        return WaitingView(key, prompt + growth, max(0, prompt - there))
