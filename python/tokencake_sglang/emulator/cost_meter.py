"""CPU time of the scheduler's steps, split into SGLang's share, eviction, TokenCake's and the emulator's own.

Calls are timed exclusively: what a call of one share spends inside a call of another counts for that other. Eviction is
a share of its own, on stock and with TokenCake: SGLang ranks every evictable leaf in it, TokenCake adds to each rank,
and a clock read around each would cost more than the rank. The start of a copy is SGLang's, whoever asks for it. The
figures are the only part of a result that differs from run to run.
"""

from __future__ import annotations

import time
from typing import Any

from tokencake_sglang.emulator.result import quantile

SGLANG, EVICTION, TOKENCAKE, EMULATOR = SHARES = "sglang", "eviction", "tokencake", "emulator"
#: `holds_back` is left out: it is called for each waiting request and takes less time than a clock read.
EXTENSION_CALLS = ("extend_received", "on_request_added", "order_waiting_queue", "parks_chunk", "on_requests_admitted")
CACHE_HOOKS = ("on_step", "on_request_ended", "on_request_finished", "on_node_inserted", "on_node_split",
               "on_node_removed")
COPIES = ("write_backup", "load_back")


class CostMeter:
    """`attach` wraps the calls between the shares of one server. A step is an iteration that ran a batch."""

    def __init__(self, measure_from_ns: int) -> None:
        self._from_ns = measure_from_ns
        self._spent = dict.fromkeys(SHARES, 0)
        self._owner, self._since = SGLANG, time.thread_time_ns()
        self.steps: list[dict[str, int]] = []
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
            for call in EXTENSION_CALLS:
                self._wrap(extension, call, TOKENCAKE)
            self._wrap(extension.controller, "event", TOKENCAKE)
            self._wrap(extension.controller, "tick", TOKENCAKE)
            for hook in CACHE_HOOKS:
                self._wrap(extension.cache, hook, TOKENCAKE)
            for copy in COPIES:
                self._wrap(extension.cache, copy, SGLANG)

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
            self.steps.append(dict(self._spent))
        self._spent = dict.fromkeys(self._spent, 0)
        self._had_pass = False

    def report(self) -> dict[str, float]:
        """Mean, median and 99th percentile of the microseconds a step, per share, and the number of steps measured."""
        values: dict[str, float] = {"steps_measured": len(self.steps)}
        for share in SHARES:
            spent_us = [step[share] / 1e3 for step in self.steps]
            values[f"step_us_{share}"] = sum(spent_us) / len(spent_us) if spent_us else 0.0
            values[f"step_us_{share}_p50"] = quantile(spent_us, 0.5) or 0.0
            values[f"step_us_{share}_p99"] = quantile(spent_us, 0.99) or 0.0
        return values
