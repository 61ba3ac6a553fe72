"""A forecast as a value: the seconds that are left until a tool returns, as quantiles."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass

LEVELS = (0.02, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95)
PLACES = {level: place for place, level in enumerate(LEVELS)}


@dataclass(frozen=True)
class Forecast:
    """Remaining seconds of an open call, given that it has not ended until now.

    `remaining_s[i]` is the LEVELS[i] quantile, rising with i. `expected_s` is the whole call's expected length from its
    start, as a point forecast has it. `source` says in a word where it came from ("estimate", "history", ...).
    """

    remaining_s: tuple[float, ...]
    expected_s: float
    source: str

    def __post_init__(self) -> None:
        assert len(self.remaining_s) == len(LEVELS), self.remaining_s

    def quantile(self, level: float) -> float:
        """Seconds until the tool has returned with probability `level`; linear between LEVELS, flat outside."""
        if level in PLACES:
            return self.remaining_s[PLACES[level]]
        if level <= LEVELS[0]:
            return self.remaining_s[0]
        if level >= LEVELS[-1]:
            return self.remaining_s[-1]
        upper = bisect_left(LEVELS, level)
        share = (level - LEVELS[upper - 1]) / (LEVELS[upper] - LEVELS[upper - 1])
        return self.remaining_s[upper - 1] + share * (self.remaining_s[upper] - self.remaining_s[upper - 1])

    @classmethod
    def at(cls, remaining_s: float, expected_s: float, source: str) -> Forecast:
        """A forecast without spread."""
        return cls((max(0.0, remaining_s),) * len(LEVELS), expected_s, source)


def latest(forecasts: Iterable[Forecast]) -> Forecast:
    """The forecast of an agent that waits for all of several calls: level by level the longest (calls that end
    together; independent ones end a little later)."""
    given = list(forecasts)
    if len(given) == 1:
        return given[0]
    longest = max(given, key=lambda f: f.quantile(0.5))
    return Forecast(
        tuple(max(values) for values in zip(*(f.remaining_s for f in given), strict=True)),
        max(f.expected_s for f in given), longest.source)
