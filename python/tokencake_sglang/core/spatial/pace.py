"""How fast requests are admitted: their number per second over the last moments."""

from __future__ import annotations

import math

MEMORY_S = 10.0  # an admission counts for this long, fading
SLOWEST = 0.01  # admissions per second that are taken for granted


class Pace:
    def __init__(self) -> None:
        self._count = 0.0  # admissions, each faded by its age
        self._at = 0.0

    def admitted(self, now: float) -> None:
        self._count = self._count * math.exp((self._at - now) / MEMORY_S) + 1.0
        self._at = now

    @property
    def per_s(self) -> float:
        """As of the last admission."""
        return max(SLOWEST, self._count / MEMORY_S)
