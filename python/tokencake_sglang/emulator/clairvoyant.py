"""Victim choices and queue orders that know the workload's future, put on a real scheduler (docs/bounds.md)."""

from __future__ import annotations

from abc import abstractmethod
from array import array
from collections.abc import Callable
from typing import Any

from sglang.srt.mem_cache.evict_policy import EvictionStrategy

from tokencake_sglang.emulator.bounds import Bound
from tokencake_sglang.emulator.clients import CallRun, ProgramRun
from tokencake_sglang.emulator.clock import SECOND
from tokencake_sglang.emulator.futures import Futures, Readers
from tokencake_sglang.emulator.known import KnownUses

SOON_NS = SECOND // 1000  # uses that are nearer than this count alike
CACHE_FIRST = ("lpm", "dfs-weight")


class FutureStrategy(EvictionStrategy):
    """Finds the future readers of radix-tree nodes; `rank` makes a priority of them."""

    def __init__(self, futures: Futures, readers: Readers) -> None:
        self.futures, self.readers = futures, readers
        self._known: dict[int, tuple[int, int, list[CallRun]]] = {}  # node id: start, length, readers

    def get_priority(self, node: Any) -> tuple[float, float]:
        """(value, last access): the smallest goes first. 0 for a node that no call will read."""
        self.futures.refresh()
        start, readers = self.readers_of(node)
        return self.rank(node, start, readers) if readers else 0.0, node.last_access_time

    @abstractmethod
    def rank(self, node: Any, start: int, readers: list[CallRun]) -> float:
        """Above 0. `node` begins `start` tokens below the root; `readers` are future calls, at least one."""

    def readers_of(self, node: Any) -> tuple[int, list[CallRun]]:
        """Tokens above `node`, and the future calls that read it, as of the last refresh of the futures."""
        known = self._known.get(node.id)
        if known is None or known[1] != len(node.key):  # a split shortens the lower node
            tokens = _path_tokens(node)
            start = len(tokens) - len(node.key)
            known = start, len(node.key), self.readers.of(tokens, start)
        unfinished = [call for call in known[2] if call.finished_ns is None]  # one that runs may be retracted
        self._known[node.id] = (*known[:2], unfinished)
        return known[0], [call for call in unfinished if self.futures.is_future(call)]


class FarthestUse(FutureStrategy):
    """Value of a node's KV: the time to get a token of it back, over the time until it is needed."""

    def rank(self, node: Any, start: int, readers: list[CallRun]) -> float:
        futures = self.futures
        wait_ns = max(SOON_NS, min(futures.use_ns(call) for call in readers) - futures.now_ns)
        return self.restore_s(node, start) / wait_ns

    def restore_s(self, node: Any, start: int) -> float:
        """Seconds per token to load the node's KV where the host keeps a copy of it, else to compute it again."""
        profile, tokens = self.futures.server.profile, len(node.key)
        if node.backuped and not node.evicted:
            return profile.copy_s(tokens, 1, "h2d") / tokens
        return profile.recompute_s(tokens, start) / tokens


class ByProgram(FutureStrategy):
    """Value of a node's KV: the earlier the first program arrived that will read it, the more."""

    def rank(self, node: Any, start: int, readers: list[CallRun]) -> float:
        return 1.0 / (1 + min(call.program.order for call in readers))


def _path_tokens(node: Any) -> array:
    """The tokens of a node and of all above it."""
    keys = []
    while node.parent is not None:
        keys.append(node.key.raw_token_ids())
        node = node.parent
    tokens = array("q")
    for key in reversed(keys):
        tokens.extend(key)
    return tokens


def order_key(name: str, futures: Futures) -> Callable[[CallRun], tuple]:
    """The place of a call in the waiting queue, smallest first, for an order of bounds.ORDERS."""
    if name == "program-order":
        return lambda call: (call.program.order, -futures.remaining[call.rid], call.rid)
    left: dict[int, int] = {}
    computed_at = -1

    def key(call: CallRun) -> tuple:
        nonlocal computed_at
        if computed_at != futures.server.steps:
            computed_at = futures.server.steps
            left.clear()
        order = call.program.order
        if order not in left:
            left[order] = futures.path_left_ns(call.program)
        return left[order], order, -futures.remaining[call.rid], call.rid

    return key


def install(server: Any, runs: list[ProgramRun], bound: Bound) -> None:
    """Replace eviction strategy, queue order and admission on `server` as `bound` says."""
    scheduler = server.scheduler
    futures = Futures(server, runs, cache_first=scheduler.server_args.schedule_policy in CACHE_FIRST)
    calls = {call.rid: call for run in runs for call in run.calls.values()}
    if bound.order:
        futures.order_key = order_key(bound.order, futures)
        _install_order(scheduler.policy, futures, calls)
    if bound.known or (bound.eviction and hasattr(scheduler.tree_cache, "worth")):
        KnownUses(scheduler.tree_cache, FarthestUse(futures, Readers(runs)), bound.known)
    elif bound.eviction:
        strategy = FarthestUse if bound.eviction == "clairvoyant-evict" else ByProgram
        scheduler.tree_cache.eviction_strategy = strategy(futures, Readers(runs))
    if bound.gate is not None:
        _install_gate(scheduler, runs, calls, bound.gate)


def _install_order(policy: Any, futures: Futures, calls: dict[str, CallRun]) -> None:
    """Sort the waiting queue after SGLang's own policy, whose look at the cache stays."""
    original = policy.calc_priority

    def calc_priority(waiting_queue: list[Any], *args: Any, **kwargs: Any) -> None:
        original(waiting_queue, *args, **kwargs)
        futures.refresh()
        waiting_queue.sort(key=lambda req: futures.order_key(calls[req.rid]))

    policy.calc_priority = calc_priority


def _install_gate(scheduler: Any, runs: list[ProgramRun], calls: dict[str, CallRun], limit: int) -> None:
    """Hide the calls of programs from the batch builder while `limit` earlier ones have not ended."""
    original = scheduler._get_new_batch_prefill_raw

    def get_new_batch(*args: Any, **kwargs: Any) -> Any:
        open_runs = [run for run in runs if run.arrived_ns is not None and run.ended_ns is None]
        admitted = {run.order for run in sorted(open_runs, key=lambda run: (run.arrived_ns, run.order))[:limit]}
        held = [req for req in scheduler.waiting_queue if calls[req.rid].program.order not in admitted]
        if held:
            kept = {id(req) for req in held}
            scheduler.waiting_queue = [req for req in scheduler.waiting_queue if id(req) not in kept]
        try:
            return original(*args, **kwargs)
        finally:
            scheduler.waiting_queue.extend(held)

    scheduler._get_new_batch_prefill_raw = get_new_batch
