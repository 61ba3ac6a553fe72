"""Watches an emulated run: what each request waited for, what the cache lost, what copies carried."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tokencake_sglang.emulator.clients import CallRun
from tokencake_sglang.emulator.returns import AtReturn, at_return, waited_s
from tokencake_sglang.engine.owners import owners_of

BLOCK = 64  # tokens; what a request had computed before is known to this grain


@dataclass
class CallTimes:
    """What the device did for one call; virtual nanoseconds."""

    queued_ns: int = 0  # joined the waiting queue (again)
    scheduled_ns: int | None = None
    first_token_ns: int | None = None
    queue_ns: int = 0
    prefill_ns: int = 0
    repeated_prefill_ns: int = 0  # after a retraction
    upload_wait_ns: int = 0
    new_tokens: int = 0
    recomputed_tokens: int = 0
    is_waiting: bool = True
    retractions: int = 0
    at_return: AtReturn | None = None  # None: its agent comes back from no tool


class ComputedPrefixes:
    """All prefixes that were ever computed in this run, in blocks: an unlimited cache would have them."""

    def __init__(self) -> None:
        self._known: set[int] = set()

    def add(self, prints: Any) -> None:
        self._known.update(prints[BLOCK - 1::BLOCK].tolist())

    def longest(self, prints: Any) -> int:
        """Tokens at the start of the sequence that were computed before (a multiple of BLOCK)."""
        low, high = 0, len(prints) // BLOCK
        while low < high:
            middle = (low + high + 1) // 2
            if int(prints[middle * BLOCK - 1]) in self._known:
                low = middle
            else:
                high = middle - 1
        return low * BLOCK


@dataclass
class Counts:
    evictions: int = 0
    evicted_tokens: int = 0  # left the device without a host copy
    demoted_tokens: int = 0  # left the device, the host copy stayed
    evicted_host_tokens: int = 0
    retracted: int = 0
    critical_inversions: int = 0
    wasted_token_ns: int = 0


@dataclass
class Watch:
    """`attach` puts it on a server. `calls` maps request ids to the clients' calls."""

    calls: dict[str, CallRun]
    log: Callable[..., None]
    times: dict[str, CallTimes] = field(default_factory=dict)
    counts: Counts = field(default_factory=Counts)
    computed: ComputedPrefixes = field(default_factory=ComputedPrefixes)
    uploaded: dict[str, list[tuple[int, int]]] = field(default_factory=dict)  # agent: (landed, tokens)
    served: dict[str, CallRun] = field(default_factory=dict)  # agent: its call that is scheduled and not answered

    def attach(self, server: Any) -> None:
        self.server, self.clock = server, server.clock
        server.on_pass = self._on_pass
        server.on_request_added = self._on_request_added
        tree = server.scheduler.tree_cache
        for name, counter in (("_evict_backuped", "demoted_tokens"), ("_evict_regular", "evicted_tokens")):
            self._count_tokens(tree, name, counter)
        self._watch_evict(tree)
        self._watch_host(tree)
        for extension in server.scheduler.extensions:
            if hasattr(extension, "mover"):
                self._watch_uploads(extension.mover)

    # -- requests -------------------------------------------------------------------------------------------

    def submitted(self, call: CallRun) -> None:
        """A client has just sent `call`: where is the KV that it will read?"""
        if waited_s(call) is None:
            return
        known = self.computed.longest(self.server.generations[call.rid].prints(len(call.prompt) - 1))
        landed = sum(tokens for _, tokens in self.uploaded.get(call.agent_id, ()))
        self.times.setdefault(call.rid, CallTimes()).at_return = at_return(self.server, call.prompt, known, landed)

    def _on_request_added(self, req: Any) -> None:
        times = self.times.setdefault(req.rid, CallTimes())
        if times.scheduled_ns is not None:
            times.retractions += 1
            self.counts.retracted += 1
            self.log("retract", req.rid)
        times.queued_ns, times.is_waiting = self.clock.now_ns, True

    def _on_pass(self, done: Any) -> None:
        decode = sum(rid in done.decoding for rid in done.rids) if done.decoding else 0
        tokens = sum(done.new_tokens), sum(done.prefix_tokens)
        self.log("pass", len(done.rids), decode, *tokens, done.begin_ns, done.end_ns)
        waited = done.end_ns - done.begin_ns - done.duration_ns
        if decode == len(done.rids):
            if waited:
                for rid in done.rids:
                    self.times[rid].upload_wait_ns += waited
            return
        for rid, new, prefix in zip(done.rids, done.new_tokens, done.prefix_tokens, strict=True):
            times = self.times[rid]
            times.upload_wait_ns += waited
            if rid not in done.decoding:
                self._prefilled(rid, times, new, prefix, done, waited)

    def _prefilled(self, rid: str, times: CallTimes, new: int, prefix: int, done: Any, waited: int) -> None:
        generation, call = self.server.generations[rid], self.calls[rid]
        if times.is_waiting:
            times.is_waiting = False
            times.queue_ns += done.begin_ns - times.queued_ns
            if times.scheduled_ns is None:
                self._first_scheduled(rid, times, prefix, done)
        prefilling = done.end_ns - done.begin_ns - waited
        times.prefill_ns += prefilling
        times.new_tokens += new
        if times.first_token_ns is not None:  # computed a second time
            times.repeated_prefill_ns += prefilling
            times.recomputed_tokens += new
        elif prefix + new >= len(call.prompt):
            times.first_token_ns = done.end_ns
            self.computed.add(generation.prints(len(call.prompt)))

    def _first_scheduled(self, rid: str, times: CallTimes, prefix: int, done: Any) -> None:
        call = self.calls[rid]
        times.scheduled_ns = done.begin_ns
        known = self.computed.longest(self.server.generations[rid].prints(len(call.prompt) - 1))
        times.recomputed_tokens = max(0, known - prefix)
        if times.recomputed_tokens and call.call.critical:
            others = self.server.scheduler.running_batch.reqs
            self.counts.critical_inversions += any(not self.calls[req.rid].call.critical for req in others)
        self._returned(call)

    def finished(self, call: CallRun) -> None:
        """The clients got the answer of `call`."""
        generation = self.server.generations.pop(call.rid)
        self.served.pop(call.agent_id, None)
        if call.answer.finish == "abort":  # SGLang refused it: its prompt was not computed
            return
        self.computed.add(generation.prints(len(call.prompt) + len(call.output)))

    # -- the cache ------------------------------------------------------------------------------------------

    def _count_tokens(self, tree: Any, name: str, counter: str) -> None:
        method = getattr(tree, name, None)
        if method is None:
            return

        def counted(*args: Any, **kwargs: Any) -> Any:
            tokens = method(*args, **kwargs)
            setattr(self.counts, counter, getattr(self.counts, counter) + (tokens or 0))
            self._left(args[0], tokens or 0)
            return tokens

        setattr(tree, name, counted)

    def _watch_evict(self, tree: Any) -> None:
        method, splits_tiers = tree.evict, hasattr(tree, "_evict_backuped")

        def evict(params: Any) -> Any:
            result = method(params)
            self.counts.evictions += 1
            if not splits_tiers:
                self.counts.evicted_tokens += result.num_tokens_evicted
            self.log("evict", params.num_tokens, result.num_tokens_evicted)
            return result

        tree.evict = evict

    def _watch_host(self, tree: Any) -> None:
        controller = getattr(tree, "cache_controller", None)
        if controller is None:
            return
        method = controller.evict_host

        def evict_host(*args: Any, **kwargs: Any) -> Any:
            tokens = method(*args, **kwargs)
            self.counts.evicted_host_tokens += tokens
            self.log("evict_host", tokens)
            return tokens

        controller.evict_host = evict_host

    # -- residency of uploaded KV ---------------------------------------------------------------------------

    def _watch_uploads(self, mover: Any) -> None:
        method = mover.take_completions

        def take_completions() -> Any:
            done = method()
            for move in done:
                if move.kind == "upload" and move.tokens:
                    self._landed(move.key, move.tokens)
                self.log("moved", move.kind, move.key, move.tokens)
            return done

        mover.take_completions = take_completions

    def _landed(self, agent: str, tokens: int) -> None:
        call = self.served.get(agent)
        if call is None:
            self.uploaded.setdefault(agent, []).append((self.clock.now_ns, tokens))
        else:  # late: its call has joined the load, and nothing was idle
            call.uploaded_tokens += tokens

    def _left(self, node: Any, tokens: int) -> None:
        """So many tokens of `node` have left the device; what came last, furthest from the root, goes first."""
        for agent in owners_of(node):
            kept, left = self.uploaded.get(agent, []), tokens
            while kept and left > 0:
                landed, there = kept.pop()
                gone = min(there, left)
                self.counts.wasted_token_ns += gone * (self.clock.now_ns - landed)
                left -= gone
                if gone < there:
                    kept.append((landed, there - gone))

    def _returned(self, call: CallRun) -> None:
        """The agent's next call is on the device: what was uploaded for it had been idle until now."""
        self.served[call.agent_id] = call
        for landed, tokens in self.uploaded.pop(call.agent_id, ()):
            self.counts.wasted_token_ns += tokens * (self.clock.now_ns - landed)
            call.uploaded_tokens += tokens

    def close(self) -> None:
        """Uploads that nobody came back for were idle to the end."""
        for moves in self.uploaded.values():
            self.counts.wasted_token_ns += sum(tokens * (self.clock.now_ns - landed) for landed, tokens in moves)


