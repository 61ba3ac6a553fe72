"""Gives SGLang's scheduler modules, and ours inside it, virtual time; every other library keeps real time.

The seam is the name `time` in a module's globals (and three functions that one module captured at import). Threads
other than the emulation's keep real time: watchdogs of SGLang read it too.
"""

from __future__ import annotations

import sys
import threading
import time as real_time
import types
from typing import Any

from tokencake_sglang.emulator.clock import SECOND, VirtualClock

EPOCH_S = 1_700_000_000  # what time.time() shows at virtual time 0
PREFIXES = ("sglang.", "tokencake_sglang.engine.")


class VirtualTimeModule(types.ModuleType):
    """Stands for the module `time` in one thread."""

    def __init__(self, clock: VirtualClock) -> None:
        super().__init__("time")
        self._clock = clock
        self._thread = threading.get_ident()

    def __getattr__(self, name: str) -> Any:
        return getattr(real_time, name)

    def _is_virtual(self) -> bool:
        return threading.get_ident() == self._thread

    def monotonic_ns(self) -> int:
        return self._clock.read() if self._is_virtual() else real_time.monotonic_ns()

    def monotonic(self) -> float:
        return self._clock.read() / SECOND if self._is_virtual() else real_time.monotonic()

    perf_counter = monotonic
    perf_counter_ns = monotonic_ns

    def time_ns(self) -> int:
        return EPOCH_S * SECOND + self._clock.read() if self._is_virtual() else real_time.time_ns()

    def time(self) -> float:
        return EPOCH_S + self._clock.read() / SECOND if self._is_virtual() else real_time.time()

    def sleep(self, seconds: float) -> None:
        if self._is_virtual():
            self._clock.advance_to(self._clock.now_ns + int(seconds * SECOND))
        else:
            real_time.sleep(seconds)


def install(clock: VirtualClock) -> VirtualTimeModule:
    """Replace `time` in every loaded module of PREFIXES. Call again after modules were imported later."""
    shim = VirtualTimeModule(clock)
    refresh(shim)
    return shim


def refresh(shim: VirtualTimeModule) -> None:
    for module in with_real_time():
        module.__dict__["time"] = shim
    stats = sys.modules.get("sglang.srt.observability.req_time_stats")
    if stats is not None:
        stats.real_time, stats.monotonic_time = shim.time, shim.perf_counter
        stats.global_diff_realtime_monotonic = EPOCH_S


def with_real_time() -> list[types.ModuleType]:
    """Loaded modules of PREFIXES that still see the real clock."""
    return [
        module for name, module in list(sys.modules.items())
        if name.startswith(PREFIXES) and module is not None and module.__dict__.get("time") is real_time
    ]
