"""What is still to come of a workload, known in advance: which calls will read a cached prefix, and when.

All prompts follow from the programs and the planned outputs, so every future call's tokens are known at the start.
Prefixes are told apart by their fingerprints, to a grain of BLOCK tokens.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Callable
from typing import Any

from tokencake_sglang.emulator.clients import CallRun, ProgramRun, plan_of, prompt_of
from tokencake_sglang.emulator.clock import SECOND, START_NS
from tokencake_sglang.emulator.observe import BLOCK
from tokencake_sglang.emulator.oracle import TokenChain
from tokencake_sglang.emulator.remaining import AloneCost, alone_costs, remaining_s


class Readers:
    """For a prefix of at least BLOCK tokens: the calls whose prompt goes through it, in order of their programs."""

    def __init__(self, runs: list[ProgramRun]) -> None:
        self._calls: dict[int, list[CallRun]] = {}
        for run in runs:
            outputs = {name: plan_of(call).tokens for name, call in run.calls.items()}
            for call in run.calls.values():
                prints = TokenChain(prompt_of(call.call, outputs)).prints
                for blocks in prints[BLOCK - 1::BLOCK].tolist():
                    self._calls.setdefault(blocks, []).append(call)

    def of(self, tokens: array, start: int) -> list[CallRun]:
        """The calls that read at least about half of tokens[start:] after all of tokens[:start]."""
        middle = (start + len(tokens) + 1) // 2
        end = min(-(-middle // BLOCK), len(tokens) // BLOCK) * BLOCK
        if not end:
            return []
        return self._calls.get(int(TokenChain(tokens[:end]).prints[-1]), [])


class Futures:
    """When calls will be submitted and scheduled, as far as that can be known: exact for tools and delays, without
    contention for calls, and by the current length and pace of the waiting queue for waits.

    `order_key` gives the place of a call in the waiting queue, where that is known; without it a new call joins the
    end of the queue, or, if `cache_first`, is taken at once. All of it is computed once per scheduler step.
    """

    def __init__(self, server: Any, runs: list[ProgramRun], *, cache_first: bool = False) -> None:
        self.server, self.clock, self.runs = server, server.clock, runs
        self.cache_first = cache_first
        self.order_key: Callable[[CallRun], Any] | None = None
        self.costs: dict[str, AloneCost] = {}
        self.remaining: dict[str, float] = {}
        self._calls = {call.rid: call for run in runs for call in run.calls.values()}
        for run in runs:
            costs = alone_costs(run.program, server.profile)
            self.costs.update((run.calls[name].rid, cost) for name, cost in costs.items())
            self.remaining.update(
                (run.calls[name].rid, left) for name, left in remaining_s(run.program, costs).items())
        self._step = -1

    # -- the present ----------------------------------------------------------------------------------------

    def refresh(self) -> None:
        """Look at the server again if a step has passed."""
        if self._step == self.server.steps:
            return
        self._step = self.server.steps
        self.now_ns = self.clock.now_ns
        queue = self.server.scheduler.waiting_queue
        self.waiting = {req.rid: place for place, req in enumerate(queue)}
        self._uses: dict[int, dict[str, int]] = {}
        self._ahead: list[Any] | None = None
        done = sum(len(run.calls) - run.open_calls for run in self.runs)
        self._pace_ns = (self.now_ns - START_NS) / max(1, done)
        self.generated = _generated(self.server.scheduler)

    def is_future(self, call: CallRun) -> bool:
        """Whether `call` has still to read its prompt from the cache."""
        return call.submitted_ns is None or call.rid in self.waiting

    # -- the future -----------------------------------------------------------------------------------------

    def use_ns(self, call: CallRun) -> int:
        """When a future call will be scheduled."""
        order = call.program.order
        if order not in self._uses:
            self._uses[order] = self._timeline(call.program, self._wait_ns)
        return self._uses[order][call.rid]

    def path_left_ns(self, run: ProgramRun) -> int:
        """Nanoseconds until `run` ends if from now on it has the device for itself."""
        ends: dict[str, int] = {}
        self._timeline(run, lambda call: 0, ends)
        return max(ends.values(), default=self.now_ns) - self.now_ns

    def _wait_ns(self, call: CallRun) -> int:
        if call.rid in self.waiting:
            return int(self.waiting[call.rid] * self._pace_ns)
        if self.order_key is None:
            return 0 if self.cache_first else int(len(self.waiting) * self._pace_ns)
        if self._ahead is None:
            self._ahead = sorted(self.order_key(self._calls[rid]) for rid in self.waiting)
        return int(bisect_left(self._ahead, self.order_key(call)) * self._pace_ns)

    def _arrival_ns(self, run: ProgramRun) -> int:
        if run.arrived_ns is not None:
            return run.arrived_ns
        if run.program.lane is None:
            return START_NS + round(run.program.arrival_s * SECOND)
        before = [other for other in self.runs[:run.order] if other.program.lane == run.program.lane]
        if not before:
            return START_NS + round(run.program.arrival_s * SECOND)
        alone = sum(max(self.remaining[call.rid] for call in other.calls.values()) + other.program.arrival_s
                    for other in before if other.ended_ns is None and other.calls)
        return self.now_ns + round((alone + run.program.arrival_s) * SECOND)

    def _timeline(self, run: ProgramRun, wait_ns: Callable[[CallRun], int],
                  ends: dict[str, int] | None = None) -> dict[str, int]:
        """When each call of `run` that has not ended is scheduled, by rid. `ends`: filled with the ends by name."""
        ends, uses = {} if ends is None else ends, {}
        for name, call in run.calls.items():
            tool_ns = round(call.call.tool.duration_s * SECOND) if call.call.tool else 0
            if call.ended_ns is not None or call.finished_ns is not None:
                ends[name] = call.finished_ns + tool_ns
                continue
            cost = self.costs[call.rid]
            if call.submitted_ns is not None and call.rid not in self.waiting:
                use, left_s = self.now_ns, cost.left_s(self.generated.get(call.rid, 0))
            else:
                ready = max((ends[parent] for parent in call.call.after), default=self._arrival_ns(run))
                submitted = max(self.now_ns, ready + round(call.call.delay_s * SECOND))
                use, left_s = submitted + wait_ns(call), cost.total_s
            uses[call.rid] = use
            ends[name] = use + round(left_s * SECOND) + tool_ns
        return uses


def _generated(scheduler: Any) -> dict[str, int]:
    """Output tokens so far of the requests on the device."""
    return {req.rid: len(req.output_ids) for req in scheduler.running_batch.reqs}
