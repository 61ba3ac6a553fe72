"""Bounded memory of what calls took: the latest samples of each key, the keys that were taught longest ago dropped."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Iterator

from tokencake_sglang.core.forecast.curve import Curve
from tokencake_sglang.core.forecast.presets import Prior

KEYS_KEPT = 4096
SAMPLES_KEPT = 64

Key = tuple[str, ...]


class Samples:
    """The latest logarithms of one key, in their order and sorted, and the curve through them."""

    __slots__ = ("latest", "prior", "_sorted", "_curve")

    def __init__(self, prior: Prior, latest: tuple[float, ...] = ()) -> None:
        self.prior = prior
        self.latest = latest[-SAMPLES_KEPT:]  # a new tuple at each sample, so that a copy of it costs nothing
        self._sorted = sorted(self.latest)
        self._curve: Curve | None = None

    def __len__(self) -> int:
        return len(self.latest)

    def add(self, value: float) -> None:
        if len(self.latest) == SAMPLES_KEPT:
            del self._sorted[bisect_left(self._sorted, self.latest[0])]
        self.latest = (*self.latest[1 - SAMPLES_KEPT:], value)
        insort(self._sorted, value)
        self._curve = None

    def curve(self) -> Curve:
        if self._curve is None:
            self._curve = Curve(self._sorted, self.prior)
        return self._curve


class SampleStore:
    """Samples by key, at most KEYS_KEPT keys. Only `add` counts as use: forecasts depend on what was taught alone."""

    def __init__(self) -> None:
        self._known: OrderedDict[Key, Samples] = OrderedDict()

    def __len__(self) -> int:
        return len(self._known)

    def get(self, key: Key) -> Samples | None:
        return self._known.get(key)

    def add(self, key: Key, value: float, prior: Prior) -> None:
        if key not in self._known:
            self._known[key] = Samples(prior)
        self._known[key].add(value)
        self._used(key)

    def put(self, key: Key, latest: tuple[float, ...], prior: Prior) -> None:
        """What an earlier run knew of this key."""
        self._known[key] = Samples(prior, latest)
        self._used(key)

    def items(self) -> Iterator[tuple[Key, tuple[float, ...]]]:
        """Keys, the one taught longest ago first, with their latest samples in order."""
        return ((key, samples.latest) for key, samples in self._known.items())

    def _used(self, key: Key) -> None:
        self._known.move_to_end(key)
        if len(self._known) > KEYS_KEPT:
            self._known.popitem(last=False)
