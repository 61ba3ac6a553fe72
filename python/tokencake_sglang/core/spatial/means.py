"""Means by kind that forget slowly: of output lengths, of the memory that programs need at their largest."""

from __future__ import annotations

from collections import OrderedDict


class Means:
    """Exponentially weighted means, `weight` for the newest value. Bounded: of more than `most` kinds the one observed
    longest ago goes first."""

    def __init__(self, weight: float, most: int) -> None:
        self._weight, self._most = weight, most
        self._mean: OrderedDict[str, float] = OrderedDict()

    def observe(self, kind: str, value: float) -> None:
        before = self._mean.pop(kind, None)
        self._mean[kind] = value if before is None else before + self._weight * (value - before)
        if len(self._mean) > self._most:
            self._mean.popitem(last=False)

    def of(self, kind: str) -> float | None:
        return self._mean.get(kind)
