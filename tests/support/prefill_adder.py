"""SGLang's own PrefillAdder on the harness of a cache, with scheduler extensions (patches 0006 and 0008)."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from tests.support.cache_fixture import CacheHarness

PAGE, RATIO = 1, 0.5


def adder(tiered: CacheHarness, *extensions: Any, running: Sequence[Any] = (), mixed: int = 0,
          chunk: int | None = None) -> Any:
    """For one batch beside `running` requests, `mixed` of whose tokens are in it; `chunk`: its prompt tokens."""
    from sglang.srt.managers.schedule_policy import PrefillAdder

    return PrefillAdder(
        PAGE, tiered.cache, tiered.allocator, SimpleNamespace(reqs=list(running)), RATIO, 10**6, chunk,
        num_mixed_decode_tokens=mixed, extensions=extensions)
