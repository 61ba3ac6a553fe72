"""Copies between device and host that take place when a test says so.

SGLang starts its copies on two streams and learns of their end from events; on the CPU a copy is done before the
call returns, so no race can be seen there. `TransferClock` stands in for the device module of SGLang's cache
controller and for the copy function of its host pool: what is started on a stream only waits in that stream's
queue, moves its data when the test completes it, and its events say "done" from then on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

POISON = -7.0e7  # what the target of a copy holds until the copy has landed


class FakeStream:
    """A queue of copies and event marks, run in order."""

    def __init__(self) -> None:
        self.queue: deque[Callable[[], None] | None] = deque()  # None: end of one SGLang operation

    def run_one(self) -> None:
        step = self.queue.popleft()
        if step is not None:
            step()


class FakeEvent:
    """Like torch.cuda.Event: done until it is recorded, then done when its stream has come to it."""

    def __init__(self, clock: TransferClock) -> None:
        self.clock = clock
        self.waiting_on: FakeStream | None = None

    def record(self, stream: FakeStream | None = None) -> None:
        stream = stream or self.clock.current
        if stream is None:  # the stream of the forward passes: a test runs those to their end
            self.waiting_on = None
            return
        token = self.token = object()
        self.waiting_on = stream

        def reached() -> None:
            if self.token is token:
                self.waiting_on = None

        stream.queue.append(reached)

    def query(self) -> bool:
        return self.waiting_on is None

    def synchronize(self) -> None:
        while self.waiting_on is not None:
            self.waiting_on.run_one()

    def wait(self, stream: FakeStream | None = None) -> None:
        """`stream` waits for this event. Only events of the forward stream, which are done, are waited for so."""
        if stream is not None:
            assert self.query(), "a copy stream waits for an event that is not done"
        else:
            self.synchronize()

    def elapsed_time(self, other: FakeEvent) -> float:
        return 0.0


class ForwardStream:
    def wait_event(self, event: FakeEvent) -> None:
        event.synchronize()


class TransferClock:
    """The device module for `sglang.srt.managers.cache_controller`, and the copy function for its host pool."""

    def __init__(self) -> None:
        self.current: FakeStream | None = None
        self.copies = 0  # copies whose data has moved

    # -- what cache_controller calls ------------------------------------------------------------------------

    def Stream(self) -> FakeStream:  # noqa: N802 (the name of torch's class)
        return FakeStream()

    def Event(self, enable_timing: bool = False) -> FakeEvent:  # noqa: N802
        return FakeEvent(self)

    def current_stream(self) -> ForwardStream:
        return ForwardStream()

    @contextmanager
    def stream(self, stream: FakeStream) -> Iterator[None]:
        outer, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = outer
            stream.queue.append(None)

    def transfer_kv_direct(self, src_layers: Any, dst_layers: Any, src_indices: torch.Tensor,
                           dst_indices: torch.Tensor, page_size: int) -> None:
        from tokencake_sglang.platforms.shims import transfer_kv_direct

        assert self.current is not None, "a KV copy was started outside a copy stream"
        src_indices, dst_indices = src_indices.clone(), dst_indices.clone()
        for layer in dst_layers:
            layer[dst_indices] = POISON

        def copy() -> None:
            transfer_kv_direct(src_layers, dst_layers, src_indices, dst_indices, page_size)
            self.copies += 1

        self.current.queue.append(copy)

    # -- what tests call ------------------------------------------------------------------------------------

    def complete_one(self, stream: FakeStream) -> bool:
        """Run the oldest operation of `stream` to its end; False when there is none."""
        if not stream.queue:
            return False
        while stream.queue:
            last = stream.queue[0] is None
            stream.run_one()
            if last:
                break
        return True

    def complete_all(self, *streams: FakeStream) -> None:
        for stream in streams:
            while stream.queue:
                stream.run_one()

    def install(self, monkeypatch: Any) -> None:
        """Replace SGLang's device module and copy function for the length of a test."""
        from sglang.srt.managers import cache_controller
        from sglang.srt.mem_cache.pool_host import mha

        monkeypatch.setattr(cache_controller, "device_module", self)
        monkeypatch.setattr(mha, "transfer_kv_direct", self.transfer_kv_direct, raising=False)
        cache_controller._timing_events_supported.cache_clear()
