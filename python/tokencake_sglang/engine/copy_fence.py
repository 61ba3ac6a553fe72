"""Orders HiCache's copies behind the forward pass that is running, where that matters.

The overlap loop handles a result while the next pass, already launched, still writes one slot of each request that
ended, and still reads slots that the tree had twice. SGLang 0.5.17 puts such a slot into the tree, where a
write-through backup may read it too early, or frees it, and a load may fill it too early. Copies run on streams of
their own that wait only for the schedule stream. (sgl-project/sglang: pull request 36738 orders the loads, 20611
describes the backups.) Found by the emulator's KV oracle; tests/emulator holds both cases.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def fence_copies(controller: Any, forward_stream: Any, freed_under_pass: Callable[[], bool]) -> None:
    """Let copies that `controller` (HiCacheController) starts wait for what `forward_stream` has been given.

    Backups always do: nobody waits for them. A load does only if `freed_under_pass()` says that slots were freed
    while the pass that is running now had been launched: a request waits for it.
    """
    start_writing, start_loading = controller.start_writing, controller.start_loading

    def start_writing_after_the_pass() -> None:
        controller.write_stream.wait_stream(forward_stream)
        start_writing()

    def start_loading_after_the_pass() -> int:
        if freed_under_pass():
            controller.load_stream.wait_stream(forward_stream)
        return start_loading()

    controller.start_writing = start_writing_after_the_pass
    controller.start_loading = start_loading_after_the_pass
