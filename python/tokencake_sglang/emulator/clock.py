"""Virtual time: integer nanoseconds, an ordered heap of events, and reads that never repeat."""

from __future__ import annotations

import heapq
from collections.abc import Callable

START_NS = 1_000_000_000  # SGLang takes a time of 0 for "not set" (req_time_stats.py)
SECOND = 1_000_000_000


class VirtualClock:
    """Time moves only by `advance_to`, which runs every event that falls due on the way, in order of time and then
    of registration. `read` moves it by 1 ns, so that no two reads are equal: SGLang breaks ties of equal access
    times by object address, which differs from run to run.
    """

    def __init__(self) -> None:
        self.now_ns = START_NS
        self._events: list[tuple[int, int, Callable[[], None]]] = []
        self._wakes: list[tuple[int, int]] = []  # time and number of the events that an idle server stops for
        self._registered = 0

    def read(self) -> int:
        self.now_ns += 1
        return self.now_ns

    def at(self, time_ns: int, event: Callable[[], None], *, wakes: bool = True) -> None:
        """Run `event` when time reaches `time_ns`; at once on the next advance if that has passed.

        `wakes` is False for pure observation: an idle server does not stop for it, so a run is the same with and
        without the observer.
        """
        self._registered += 1
        heapq.heappush(self._events, (int(time_ns), self._registered, event))
        if wakes:
            heapq.heappush(self._wakes, (int(time_ns), self._registered))

    def after(self, delay_ns: float, event: Callable[[], None]) -> None:
        self.at(self.now_ns + int(delay_ns), event)

    def next_wake_ns(self) -> int | None:
        """When the next event that an idle server must stop for is due; None when there is none left."""
        return self._wakes[0][0] if self._wakes else None

    def advance_to(self, time_ns: int) -> None:
        time_ns = int(time_ns)
        while self._events and self._events[0][0] <= time_ns:
            due, number, event = heapq.heappop(self._events)
            self.now_ns = max(self.now_ns, due)
            if self._wakes and self._wakes[0][1] == number:  # both heaps have one order
                heapq.heappop(self._wakes)
            event()
        self.now_ns = max(self.now_ns, time_ns)

    def elapsed_s(self) -> float:
        """Seconds since the clock was made."""
        return (self.now_ns - START_NS) / SECOND
