"""Measures, on rank 0, what copies, prefill passes and decode steps take, and feeds a CostLearner.

The work is marked where it is given to its stream: inside the host pool's copy functions and the model worker's
forward. Device events around it tell its own time, whatever loop runs and whatever waits before it; they are read in a
later step, once they are done, so nothing waits for a measurement. What reaches policies goes through rank 0's tick.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from sglang.srt.managers import cache_controller
from sglang.srt.model_executor.forward_batch_info import ForwardMode

from tokencake_sglang.core.cost_learner import CostLearner
from tokencake_sglang.core.costs import Costs

MAX_DECODE_SHARE = 0.1  # of the new tokens of a mixed pass; above, the pass is not a sample of prefill
DECODES_BETWEEN = 8  # decode steps from one that is a sample to the next
TELL_EVERY_S = 1.0  # seconds between two messages with costs, at least
TELL_SHARE = 0.05  # a change of any figure that is worth a message
FIRST_COPY_BYTES = 128 << 20  # of the largest copy at the start; two more are a quarter and a sixteenth of it
FIRST_COPY_TOKENS = 4096


class Stopwatch:
    """Times pieces of work of one stream. `tell(what, seconds)` gets each when it is done, in order.

    On a device whose events cannot time, work that is done when its call returns took as long as the call. Other
    work there is counted up to the step that finds it done if `late` is set, else not at all.
    """

    def __init__(self, tell: Callable[[Any, float], None], *, late: bool) -> None:
        self.tell = tell
        self.late = late
        self.under_way: deque[tuple[Any, Any, Any, float | None]] = deque()  # what, start, end, time of the start

    def begin(self) -> tuple[Any, Any, float | None]:
        """Mark the current stream; `end` wants what this gives."""
        start, end, timed = cache_controller.make_timing_event_pair()
        start.record()
        return start, end, None if timed else time.perf_counter()

    def end(self, begun: tuple[Any, Any, float | None], what: Any) -> None:
        start, end, since = begun
        end.record()
        if since is None:
            self.under_way.append((what, start, end, None))
        elif end.query():
            self.tell(what, time.perf_counter() - since)
        elif self.late:
            self.under_way.append((what, start, end, since))

    def collect(self) -> None:
        """Tell what is done."""
        while self.under_way and self.under_way[0][2].query():
            what, start, end, since = self.under_way.popleft()
            self.tell(what, start.elapsed_time(end) / 1000 if since is None else time.perf_counter() - since)


class CostMeasure:
    """Wraps the copy functions of a cache's host pool and the forward of a scheduler's worker, on the instances.

    A copy counts as one run of slots: a policy cannot know how scattered the slots of a later copy will be, so the
    figure of a token shall hold what scattering costs on this server.
    """

    def __init__(self, cache: Any, worker: Any = None) -> None:
        self.controller = cache.cache_controller
        self.host = cache.token_to_kv_pool_host
        self.allocator = cache.token_to_kv_pool_allocator
        self.learner = CostLearner(self.host.size_per_token)
        self._uploads = Stopwatch(lambda tokens, seconds: self.learner.copy("upload", tokens, 1, seconds), late=True)
        self._offloads = Stopwatch(lambda tokens, seconds: self.learner.copy("offload", tokens, 1, seconds), late=True)
        self._passes = Stopwatch(self._passed, late=False)
        self._decodes = Stopwatch(lambda size, seconds: self.learner.decode(*size, seconds), late=False)
        self._decode_steps = 0
        self._told: Costs | None = None
        self._folded = -1
        self._tell_at = float("-inf")
        self._wrap_copies(self.host)
        if worker is not None:
            self._wrap_forward(worker)

    # -- samples --------------------------------------------------------------------------------------------

    def collect(self) -> None:
        """Once a step: fold what has ended since."""
        for watch in (self._uploads, self._offloads, self._passes, self._decodes):
            if watch.under_way:
                watch.collect()

    def _wrap_copies(self, host: Any) -> None:
        back_up, load_layer = host.backup_from_device_all_layer, host.load_to_device_per_layer
        last_layer = self.controller.layer_num - 1
        begun: Any = None

        def timed_back_up(pool: Any, host_indices: Any, device_indices: Any, backend: str) -> None:
            begun = self._offloads.begin()
            back_up(pool, host_indices, device_indices, backend)
            self._offloads.end(begun, len(host_indices))

        def timed_load_layer(pool: Any, host_indices: Any, device_indices: Any, layer: int, backend: str) -> None:
            nonlocal begun
            if layer == 0:
                begun = self._uploads.begin()
            load_layer(pool, host_indices, device_indices, layer, backend)
            if layer == last_layer and begun is not None:
                self._uploads.end(begun, len(host_indices))
                begun = None

        host.backup_from_device_all_layer, host.load_to_device_per_layer = timed_back_up, timed_load_layer

    def _wrap_forward(self, worker: Any) -> None:
        forward = worker.forward_batch_generation

        def timed_forward(batch: Any, *args: Any, **kwargs: Any) -> Any:
            prompts = PromptPass.of(batch)
            watch, what = (self._passes, prompts) if prompts else (self._decodes, self._decode_size(batch))
            if what is None:
                return forward(batch, *args, **kwargs)
            begun = watch.begin()
            result = forward(batch, *args, **kwargs)
            watch.end(begun, what)
            return result

        worker.forward_batch_generation = timed_forward

    def _passed(self, done: PromptPass, seconds: float) -> None:
        if done.is_prefill:
            self.learner.prefill((*done.parts, *((1, before) for before in done.decoding)), seconds)
        self.learner.compute(done.parts, len(done.decoding), sum(done.decoding) + len(done.decoding), seconds)

    def _decode_size(self, batch: Any) -> tuple[int, int] | None:
        """Requests of a decode step and tokens of their contexts; None: it is no sample."""
        if not batch.forward_mode.is_decode() or batch.seq_lens_cpu is None:
            return None
        self._decode_steps += 1
        if self._decode_steps % DECODES_BETWEEN:
            return None
        return len(batch.seq_lens_cpu), int(batch.seq_lens_cpu.sum())

    def measure_copies(self) -> None:
        """Before the first request: a few copies of neighbouring slots to the host and back, as SGLang makes them.

        No slot is allocated and all content stays as it is, because what came from the device goes back to where it
        was. Nothing happens when a pool is in use or too small.
        """
        host, controller, page = self.host, self.controller, self.controller.page_size
        free = min(self.allocator.available_size(), host.size - page, FIRST_COPY_TOKENS)
        largest = int(min(free, FIRST_COPY_BYTES // host.size_per_token)) // page * page
        sizes = sorted({largest // share // page * page for share in (16, 4, 1)} - {0})
        if not sizes or host.available_size() < host.size or self.allocator.available_size() < self.allocator.size:
            return
        for tokens in (largest, *sizes):  # the first copy to the host may be that of the pages' first touch
            slots = torch.arange(page, page + tokens, dtype=torch.int64)
            operation = cache_controller.CacheOperation(slots, slots.to(controller.device), node_id=-1)
            controller.write_queue.append(operation)
            controller.start_writing()
            controller.ack_write_queue.pop().finish_event.synchronize()
            controller.load_queue.append(operation)
            controller.start_loading()
            controller.ack_load_queue.pop().finish_event.synchronize()
            self.collect()
        controller.layer_done_counter.reset()

    # -- costs ----------------------------------------------------------------------------------------------

    def news(self, now: float) -> list[float]:
        """Figures for the tick made at `now` (seconds): at the first, and when they have changed; else none."""
        if now < self._tell_at or self._folded == self.learner.samples:
            return []
        self._tell_at, self._folded = now + TELL_EVERY_S, self.learner.samples
        costs = self.learner.costs()
        if self._told is not None and not costs.differs(self._told, TELL_SHARE):
            return []
        self._told = costs
        return list(costs.to_tuple())


@dataclass(frozen=True)
class PromptPass:
    """A pass that computes prompts. `parts`: (new tokens, tokens before) of each; `decoding`: tokens before that of
    each request that decodes beside them."""

    parts: tuple[tuple[int, int], ...]
    decoding: tuple[int, ...] = ()

    @property
    def is_prefill(self) -> bool:
        """Whether its time is that of its prompts."""
        return len(self.decoding) <= MAX_DECODE_SHARE * sum(new for new, _ in self.parts)

    @classmethod
    def of(cls, batch: Any) -> PromptPass | None:
        """None for other batches, and for one that waits for KV on its way: it takes as long as the copy."""
        if batch.forward_mode not in (ForwardMode.EXTEND, ForwardMode.MIXED) or batch.hicache_consumer_index != -1:
            return None
        sizes = tuple(zip(batch.extend_lens, batch.prefix_lens, strict=True))
        prompts = len(sizes) - len(batch.decoding_reqs or ()) if batch.forward_mode == ForwardMode.MIXED else len(sizes)
        return cls(sizes[:prompts], tuple(before for _, before in sizes[prompts:]))
