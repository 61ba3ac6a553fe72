"""A distribution of durations: samples, smoothed by a prior, with a tail beyond the longest of them.

Everything is in logarithms of a unit, so a curve serves durations (unit 1 s) and ratios (unit: the estimate) alike.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import accumulate

from tokencake_sglang.core.forecast.forecast import LEVELS
from tokencake_sglang.core.forecast.presets import Prior

SHORTEST_S = 0.001
TAIL_INDEX = 1.0
NORMAL_FIFTHS = (-1.2816, -0.5244, 0.0, 0.5244, 1.2816)  # 10, 30, 50, 70, 90 % points of the normal distribution
NORMAL_END = 2.33  # its 99 % point
MEAN_DEVIATION = 1.2533  # standard deviation / mean absolute deviation of the normal distribution
KNEE = 0.75


class Curve:
    """From sorted logarithms `values` and a prior that weighs as much as one sample.

    The prior enters as five points of a normal distribution; its centre and spread move to the samples' median and
    mean absolute deviation as those become many. Between points the distribution function is linear in ln(seconds).
    Beyond the last, with probability `far_share`, durations fall off as a power (`TAIL_INDEX` 1: a call that has got
    there lasts, in the median, once more as long as it has lasted).
    """

    __slots__ = ("spread", "_own", "_values", "_points", "_below", "_end", "_far", "_lengths")

    def __init__(self, values: Sequence[float], prior: Prior) -> None:
        count = len(values)
        middle = (values[count // 2] + values[(count - 1) // 2]) / 2 if values else 0.0
        deviations = MEAN_DEVIATION * sum([abs(value - middle) for value in values])
        self.spread = (prior.spread + deviations) / (1 + count)
        self._own = (prior.centre + count * middle) / (1 + count)
        self._values, self._far = tuple(values), prior.far_share
        self._points: list[float] = []

    @property
    def centre(self) -> float:
        """The logarithm of the median."""
        self._draw()
        return self._value(0.5)

    def remaining(self, unit_s: float, elapsed_s: float) -> tuple[float, ...]:
        """Seconds left at LEVELS of a call that has lasted `elapsed_s` and still runs, rising with the level."""
        self._draw()
        alive = self._survival(elapsed_s / unit_s)
        lengths = self._lengths if alive == 1.0 else self._lengths_of(alive)
        return tuple([max(0.0, length * unit_s - elapsed_s) for length in lengths])

    def _lengths_of(self, alive: float) -> list[float]:
        """Units at LEVELS that calls last, of the share `alive` that last longest."""
        below, points, most, far = self._below, self._points, len(self._below) - 1, self._far
        found, last = [], 0.0
        for level in LEVELS:
            share = (1.0 - level) * alive  # of all calls, those that last longer
            if share < far:
                length = self._end * (far / share) ** (1.0 / TAIL_INDEX)
            else:  # as `_value`
                ended = 1.0 - share
                above = min(bisect_right(below, ended), most)
                low, start = below[above - 1], points[above - 1]
                length = math.exp(start + (ended - low) / (below[above] - low) * (points[above] - start))
            last = max(last, length)
            found.append(last)
        return found

    def _draw(self) -> None:
        """Lay the points out; only of a curve that is asked, since of two often only the spreads are compared."""
        if self._points:
            return
        points, weights = list(self._values), [5] * len(self._values)
        for z in NORMAL_FIFTHS:
            value = self._own + z * self.spread
            at = bisect_left(points, value)
            points.insert(at, value)
            weights.insert(at, 1)
        total, far = 5 * len(self._values) + 5, self._far
        below = [(passed - weight / 2) / total for passed, weight in zip(accumulate(weights), weights, strict=True)]
        knee = bisect_right(below, KNEE)
        below[knee:] = [_above_knee(share, far) for share in below[knee:]]
        reach = (NORMAL_END + NORMAL_FIFTHS[0]) * self.spread
        self._points = [points[0] - reach, *points, points[-1] + reach]
        self._below = [0.0, *below, 1.0 - far]
        self._end = math.exp(self._points[-1])
        self._lengths = self._lengths_of(1.0)

    def _survival(self, elapsed: float) -> float:
        """Share of calls that last longer than `elapsed` units."""
        if elapsed >= self._end:
            return self._far * (self._end / elapsed) ** TAIL_INDEX
        if elapsed <= 0.0:
            return 1.0
        value, points = math.log(elapsed), self._points
        if value <= points[0]:
            return 1.0
        above = min(bisect_right(points, value), len(points) - 1)
        part = (value - points[above - 1]) / (points[above] - points[above - 1])
        return 1.0 - (self._below[above - 1] + part * (self._below[above] - self._below[above - 1]))

    def _value(self, share: float) -> float:
        """The logarithm below which `share` of all calls end; `share` at most 1 - far_share."""
        below, points = self._below, self._points
        above = min(bisect_right(below, share), len(below) - 1)
        part = (share - below[above - 1]) / (below[above] - below[above - 1])
        return points[above - 1] + part * (points[above] - points[above - 1])


def _above_knee(share: float, far_share: float) -> float:
    """Makes room for the tail above KNEE, so that the median stays where it is."""
    return KNEE + (share - KNEE) * (1.0 - KNEE - far_share) / (1.0 - KNEE)
