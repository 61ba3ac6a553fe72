"""How fast waiting requests are admitted: their number per second of the time in which somebody waited.

Time in which nobody waits does not count, for it tells how often requests come and not how fast they could be served.
Of the time that counts, the last moments count most.
"""

from __future__ import annotations

import math

MEMORY_S = 10.0  # of waiting, after which an admission and a second count for 1/e
FASTEST = 1e4  # admissions per second that are told
SLOWEST = 0.01  # admissions per second that are taken for granted


class Pace:
    def __init__(self) -> None:
        self._count = 0.0  # admissions, each faded by its age
        self._seconds = 0.0  # in which somebody waited, faded likewise
        self._since: float | None = None  # somebody waits, and the time up to then is counted; None: nobody waits

    def joined(self, now: float) -> None:
        """A request waits from now on."""
        if self._since is None:
            self._since = now

    def left(self, now: float, waiting: int, admitted: bool) -> None:
        """One waits no longer, and `waiting` others do; it was admitted or went away."""
        if self._since is not None:
            passed = max(0.0, now - self._since)
            fade = math.exp(-passed / MEMORY_S)
            self._count *= fade
            self._seconds = self._seconds * fade + MEMORY_S * (1.0 - fade)
        self._count += admitted
        self._since = now if waiting else None

    @property
    def per_s(self) -> float:
        """As of the last that left."""
        return max(SLOWEST, min(self._count / max(self._seconds, 1e-9), FASTEST))
