"""How many tokens a request will generate: the mean of those before it, by kind of agent."""

from __future__ import annotations

from tokencake_sglang.core.spatial.means import Means

FIRST_GUESS = 256  # tokens, before anything of the kind was seen
WEIGHT = 0.2  # of the newest length in the mean
KINDS_KEPT = 4096


class OutputLengths:
    def __init__(self) -> None:
        self._means = Means(WEIGHT, KINDS_KEPT)

    def expected(self, kind: str, most: int) -> float:
        """Tokens that a request of this kind will generate, at most `most`."""
        mean = self._means.of(kind)
        return min(float(most), FIRST_GUESS if mean is None else mean)

    def observe(self, kind: str, tokens: int) -> None:
        self._means.observe(kind, tokens)
