"""CPU time of the scheduler's steps, split into SGLang's share, eviction, TokenCake's two halves and the emulator.

The temporal half follows agents and their tools, decides, and moves KV. The spatial half follows requests and the
owners of KV, orders the queue, and says who is admitted.

Calls are timed exclusively: what a call of one share spends inside a call of another counts for that other. Eviction is
a share of its own, on stock and with TokenCake: SGLang ranks every evictable leaf in it, TokenCake adds to each rank,
and a clock read around each would cost more than the rank. The start of a copy is SGLang's, whoever asks for it. The
times are the only part of a result that differs from run to run; beside them stands how often a step does what takes
most of them.
"""

from __future__ import annotations

import time
from typing import Any

from tokencake_sglang.emulator.result import quantile

SGLANG, EVICTION, TEMPORAL, SPATIAL, EMULATOR = SHARES = "sglang", "eviction", "temporal", "spatial", "emulator"
TOKENCAKE = "tokencake"  # both halves together
#: Calls of TokenCakeExtension. `holds_back` is counted only: it is called for each waiting request that is looked at,
#: and takes less time than a clock read.
EXTENSION_CALLS = {
    "extend_received": TEMPORAL, "on_request_added": SPATIAL, "order_waiting_queue": SPATIAL, "parks_chunk": SPATIAL,
    "limit_chunk": SPATIAL, "running_growth": SPATIAL, "new_request_growth": SPATIAL, "on_requests_admitted": SPATIAL}
CONTROLLER_CALLS = ("event", "tick", "request_added")
CACHE_HOOKS = {
    "on_step": TEMPORAL, "on_request_ended": TEMPORAL, "on_request_finished": SPATIAL, "on_node_inserted": SPATIAL,
    "on_node_split": SPATIAL, "on_node_removed": SPATIAL}
#: What is counted: agents that were decided about, forecasts, agents whose KV was measured, waiting requests about
#: which it was asked whether they are passed over, and leaves that were given a place among the victims.
COUNTED = ("decisions", "forecasts", "footprints", "asked", "victims")
COPIES = ("write_backup", "load_back")


class CostMeter:
    """`attach` wraps the calls between the shares of one server. A step is an iteration that ran a batch."""

    def __init__(self, measure_from_ns: int) -> None:
        self._from_ns = measure_from_ns
        self._spent = dict.fromkeys(SHARES, 0)
        self._owner, self._since = SGLANG, time.thread_time_ns()
        self.steps: list[dict[str, int]] = []
        self._counts = dict.fromkeys(COUNTED, 0)
        self.counts: list[dict[str, int]] = []  # of the same steps
        self._had_pass = False

    def attach(self, server: Any) -> None:
        self._server = server
        self._wrap(server, "pull", EMULATOR, before=self._step_began)
        self._wrap(server, "forward", EMULATOR, before=self._pass_began)
        self._wrap(server.clock, "advance_to", EMULATOR)
        self._wrap(server, "on_output", EMULATOR)
        self._wrap(server, "on_request_added", EMULATOR)
        for eviction in ("evict", "evict_host"):
            if hasattr(server.scheduler.tree_cache, eviction):
                self._wrap(server.scheduler.tree_cache, eviction, EVICTION)
        for extension in server.scheduler.extensions:
            if not hasattr(extension, "controller"):
                continue
            self._attach_to(extension)

    def _attach_to(self, extension: Any) -> None:
        """TokenCake's own, on its instance."""
        controller, cache = extension.controller, extension.cache
        for call, share in EXTENSION_CALLS.items():
            self._wrap(extension, call, share)
        for call in CONTROLLER_CALLS:
            self._wrap(controller, call, TEMPORAL)
        for hook, share in CACHE_HOOKS.items():
            self._wrap(cache, hook, share)
        for copy in COPIES:
            self._wrap(cache, copy, SGLANG)
        self._count(controller.policy, "decide", "decisions")
        self._count(controller.forecaster, "predict", "forecasts")
        self._count(cache.owners, "footprint", "footprints")
        if extension.queue is not None:
            self._count(extension.queue, "holds_back", "asked")
        for victims in (cache.device_victims, cache.host_victims):
            self._count(victims, "push", "victims")

    def _count(self, owner: Any, name: str, what: str) -> None:
        method = getattr(owner, name)

        def counted(*args: Any, **kwargs: Any) -> Any:
            self._counts[what] += 1
            return method(*args, **kwargs)

        setattr(owner, name, counted)

    def _wrap(self, owner: Any, name: str, share: str, before: Any = None) -> None:
        method = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            previous = self._enter(share)
            if before is not None:
                before()
            try:
                return method(*args, **kwargs)
            finally:
                self._enter(previous)

        setattr(owner, name, timed)

    def _enter(self, share: str) -> str:
        now = time.thread_time_ns()
        self._spent[self._owner] += now - self._since
        previous, self._owner, self._since = self._owner, share, now
        return previous

    def _pass_began(self) -> None:
        self._had_pass = True

    def _step_began(self) -> None:
        """The end of one iteration and the begin of the next."""
        if self._had_pass and self._server.clock.now_ns >= self._from_ns:
            self.steps.append(self._spent | {TOKENCAKE: self._spent[TEMPORAL] + self._spent[SPATIAL]})
            self.counts.append(dict(self._counts))
        self._spent = dict.fromkeys(self._spent, 0)
        self._counts = dict.fromkeys(self._counts, 0)
        self._had_pass = False

    def report(self) -> dict[str, float]:
        """The number of steps measured; mean, median and 99th percentile of the microseconds a step, per share and of
        both halves; and per step mean and maximum of what is counted."""
        values: dict[str, float] = {"steps_measured": len(self.steps)}
        for share in (*SHARES, TOKENCAKE):
            spent_us = [step[share] / 1e3 for step in self.steps]
            values[f"step_us_{share}"] = sum(spent_us) / len(spent_us) if spent_us else 0.0
            values[f"step_us_{share}_p50"] = quantile(spent_us, 0.5) or 0.0
            values[f"step_us_{share}_p99"] = quantile(spent_us, 0.99) or 0.0
        for what in COUNTED:
            found = [counts[what] for counts in self.counts]
            values[f"step_{what}"] = sum(found) / len(found) if found else 0.0
            values[f"step_{what}_max"] = max(found, default=0)
        return values
