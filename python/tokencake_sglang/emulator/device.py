"""An emulated accelerator: streams that are busy until a virtual time, events that are pending until one.

`EmulatedDevice` stands where SGLang keeps a torch device module (`torch.cuda`): it offers the part of that interface
that the scheduler and the HiCache controller use.
"""

from __future__ import annotations

from typing import Any

from tokencake_sglang.emulator.clock import VirtualClock


class VirtualStream:
    """Work on it runs in order. `free_at_ns`: when the work given so far will have ended."""

    def __init__(self, device: EmulatedDevice, name: str = "") -> None:
        self.device = device
        self.name = name
        self.free_at_ns = 0
        self.busy_ns = 0

    def start_ns(self) -> int:
        """When work given now would begin."""
        return max(self.device.clock.now_ns, self.free_at_ns)

    def charge(self, duration_ns: float) -> tuple[int, int]:
        """Add work; returns its begin and end."""
        begin = self.start_ns()
        self.free_at_ns = begin + int(duration_ns)
        self.busy_ns += int(duration_ns)
        return begin, self.free_at_ns

    def wait_event(self, event: VirtualEvent) -> None:
        self.free_at_ns = max(self.free_at_ns, event.done_at_ns)

    def wait_stream(self, stream: VirtualStream) -> None:
        self.free_at_ns = max(self.free_at_ns, stream.free_at_ns)

    def record_event(self, event: VirtualEvent | None = None) -> VirtualEvent:
        event = event or VirtualEvent(self.device)
        event.record(self)
        return event

    def synchronize(self) -> None:
        self.device.clock.advance_to(self.free_at_ns)

    def query(self) -> bool:
        return self.free_at_ns <= self.device.clock.now_ns

    def __enter__(self) -> VirtualStream:
        self.device.streams.append(self)
        return self

    def __exit__(self, *exc: Any) -> None:
        self.device.streams.pop()


class VirtualEvent:
    """Done when the work that its stream had at `record` has ended; an event never recorded is done."""

    __slots__ = ("device", "done_at_ns")

    def __init__(self, device: EmulatedDevice, done_at_ns: int = 0) -> None:
        self.device = device
        self.done_at_ns = done_at_ns

    def record(self, stream: VirtualStream | None = None) -> None:
        self.done_at_ns = (stream or self.device.current_stream()).start_ns()

    def wait(self, stream: VirtualStream | None = None) -> None:
        (stream or self.device.current_stream()).wait_event(self)

    def query(self) -> bool:
        return self.done_at_ns <= self.device.clock.now_ns

    def synchronize(self) -> None:
        self.device.clock.advance_to(self.done_at_ns)

    def elapsed_time(self, end: VirtualEvent) -> float:
        """Milliseconds from this event to `end`."""
        return (end.done_at_ns - self.done_at_ns) / 1e6


class EmulatedDevice:
    """The device module. `streams` is the stack of current streams; the lowest is the scheduler's own."""

    __name__ = "emulated"

    def __init__(self, clock: VirtualClock) -> None:
        self.clock = clock
        self.streams = [VirtualStream(self, "schedule")]

    def Event(self, enable_timing: bool = False, **options: Any) -> VirtualEvent:  # noqa: N802 (torch's name)
        return VirtualEvent(self)

    def Stream(self, *args: Any, name: str = "", **options: Any) -> VirtualStream:  # noqa: N802
        return VirtualStream(self, name)

    def stream(self, stream: VirtualStream) -> VirtualStream:
        return stream

    StreamContext = stream

    def current_stream(self, *args: Any) -> VirtualStream:
        return self.streams[-1]

    def current_device(self) -> str:
        return "cpu"

    def synchronize(self, *args: Any) -> None:
        """Nothing to wait for: whoever needs a result waits for the event of its stream."""
