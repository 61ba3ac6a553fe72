"""A distribution of durations: samples, smoothed by a prior, with a tail beyond the longest of them.

Everything is in logarithms of a unit, so a curve serves durations (unit 1 s) and ratios (unit: the estimate) alike.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence

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

    __slots__ = ("spread", "centre", "_points", "_below", "_end", "_far")

    def __init__(self, values: Sequence[float], prior: Prior) -> None:
        count = len(values)
        middle = (values[count // 2] + values[(count - 1) // 2]) / 2 if values else 0.0
        deviations = MEAN_DEVIATION * sum(abs(value - middle) for value in values)
        self.spread = (prior.spread + deviations) / (1 + count)
        own = (prior.centre + count * middle) / (1 + count)
        weighted = sorted([(value, 5) for value in values] + [(own + z * self.spread, 1) for z in NORMAL_FIFTHS])
        reach = (NORMAL_END + NORMAL_FIFTHS[0]) * self.spread
        total, passed = 5 * count + 5, 0
        self._points, self._below = [weighted[0][0] - reach], [0.0]
        for value, weight in weighted:
            self._points.append(value)
            self._below.append(_with_tail((passed + weight / 2) / total, prior.far_share))
            passed += weight
        self._points.append(weighted[-1][0] + reach)
        self._below.append(1.0 - prior.far_share)
        self._end = math.exp(self._points[-1])
        self._far = prior.far_share
        self.centre = self._value(0.5)

    def remaining(self, unit_s: float, elapsed_s: float) -> tuple[float, ...]:
        """Seconds left at LEVELS of a call that has lasted `elapsed_s` and still runs, rising with the level."""
        alive = self._survival(elapsed_s / unit_s)
        found, last = [], 0.0
        for level in LEVELS:
            share = (1.0 - level) * alive  # of all calls, those that last longer
            if share < self._far:
                length = self._end * (self._far / share) ** (1.0 / TAIL_INDEX)
            else:
                length = math.exp(self._value(1.0 - share))
            last = max(last, length * unit_s - elapsed_s)
            found.append(last)
        return tuple(found)

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


def _with_tail(share: float, far_share: float) -> float:
    """Makes room for the tail above KNEE, so that the median stays where it is."""
    return share if share <= KNEE else KNEE + (share - KNEE) * (1.0 - KNEE - far_share) / (1.0 - KNEE)
