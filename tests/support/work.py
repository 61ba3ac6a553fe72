"""How much a call does, as a number that does not depend on the machine or on what else it does."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any


def instructions(call: Callable[[], Any]) -> int:
    """Instructions of the Python interpreter that the call runs, whatever it calls included. What is done inside one
    call of a C function (a copy of a list) counts as one; a comprehension or a loop counts by its rounds."""
    count = 0

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal count
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        count += event == "opcode"
        return trace

    before, collects = sys.gettrace(), gc.isenabled()
    gc.disable()  # a collection in between calls whoever wants to know of it (Hypothesis does)
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
        if collects:
            gc.enable()
    return count
