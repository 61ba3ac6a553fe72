"""How many tokens a request will generate, from those before it of its kind of agent: in the mean, and at the most."""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import OrderedDict, deque

from tokencake_sglang.core.spatial.means import Means

FIRST_GUESS = 256  # tokens, before anything of the kind was seen
WEIGHT = 0.2  # of the newest length in the mean
KINDS_KEPT = 4096
LENGTHS_KEPT = 64  # of a kind, for the bound
LENGTHS_NEEDED = 8  # of a kind, before there is a bound
BOUND_LEVEL = 0.9  # share of the lengths kept that do not exceed the bound


class OutputLengths:
    """Kinds are names of agent types; the nameless kind "" is everything else, which has a mean but no bound."""

    def __init__(self) -> None:
        self._means = Means(WEIGHT, KINDS_KEPT)
        self._spreads: OrderedDict[str, _Spread] = OrderedDict()

    def expected(self, kind: str, most: int) -> float:
        """Tokens that a request of this kind will generate, at most `most`."""
        mean = self._means.of(kind)
        return min(float(most), FIRST_GUESS if mean is None else mean)

    def bound(self, kind: str) -> float:
        """Tokens that a request of this kind will hardly exceed; infinity while that is not known."""
        spread = self._spreads.get(kind)
        return math.inf if spread is None else spread.bound

    def observe(self, kind: str, tokens: int) -> None:
        self._means.observe(kind, tokens)
        if not kind:
            return
        spread = self._spreads.pop(kind, None) or _Spread()
        self._spreads[kind] = spread
        spread.add(tokens)
        if len(self._spreads) > KINDS_KEPT:
            self._spreads.popitem(last=False)


class _Spread:
    """The newest lengths of one kind, in the order in which they came and sorted."""

    def __init__(self) -> None:
        self._newest: deque[int] = deque()
        self._sorted: list[int] = []
        self.bound = math.inf

    def add(self, tokens: int) -> None:
        if len(self._newest) == LENGTHS_KEPT:
            del self._sorted[bisect_left(self._sorted, self._newest.popleft())]
        self._newest.append(tokens)
        insort(self._sorted, tokens)
        count = len(self._sorted)
        if count >= LENGTHS_NEEDED:
            self.bound = self._sorted[math.ceil(BOUND_LEVEL * count) - 1]
