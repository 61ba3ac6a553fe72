"""Whether a prompt that is computed in chunks has to wait for room.

SGLang gives it its next chunk whether there is room for it or not, and looks in a mixed batch for no room for the
decoding requests either: it stops with "Out of memory". While a prompt is parked the others decode, and SGLang
retracts some of them if they do not fit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Parking:
    """`parked` counts the steps in which a prompt had to wait."""

    def __init__(self, scheduler: Any, cache: Any, limit_chunk: Callable[..., int | None]) -> None:
        self.scheduler = scheduler
        self.cache = cache
        self.limit_chunk = limit_chunk  # of a batch, as the scheduler asks for it
        self.parked = 0

    def must_wait(self, req: Any, running_batch: Any) -> bool:
        """`req` has chunks left; `running_batch` decodes beside it. With nothing running nobody could make room."""
        running = len(running_batch.reqs)
        left = len(req.full_untruncated_fill_ids) - len(req.prefix_indices)
        scheduler, most = self.scheduler, self.scheduler.chunked_prefill_size
        room = self.cache.token_to_kv_pool_allocator.available_size() + self.cache.evictable_size()
        room -= (running + 1) * self.cache.page_size
        if not running or room >= min(left, most or left):
            return False
        waits = room < min(left, self.limit_chunk(most, req, scheduler.waiting_queue, running_batch) or left)
        self.parked += waits
        return waits
