"""How many tokens a request will generate: the mean of those before it, by kind of agent."""

from __future__ import annotations

from collections import OrderedDict

FIRST_GUESS = 256  # tokens, before anything of the kind was seen
WEIGHT = 0.2  # of the newest length in the mean
KINDS_KEPT = 4096


class OutputLengths:
    """Exponentially weighted means; bounded, the kind that was used longest ago goes first."""

    def __init__(self) -> None:
        self._mean: OrderedDict[str, float] = OrderedDict()

    def expected(self, kind: str, most: int) -> float:
        """Tokens that a request of this kind will generate, at most `most`."""
        return min(float(most), self._mean.get(kind, FIRST_GUESS))

    def observe(self, kind: str, tokens: int) -> None:
        before = self._mean.pop(kind, None)
        self._mean[kind] = tokens if before is None else before + WEIGHT * (tokens - before)
        if len(self._mean) > KINDS_KEPT:
            self._mean.popitem(last=False)
