"""How much is reserved for which agent types: the two published rules, and one by what critical work needs next.

Each is asked at its `interval_s` and answers with tokens by pool; a pool with a size is critical. What is not reserved
is shared by all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from tokencake_sglang.core.spatial.pools.account import UNTYPED, Pool, largest_remainder
from tokencake_sglang.core.spatial.pools.score import TypeFacts, paper_type_score, shipped_type_score

STEP_PERCENT = 5  # the reserve moves by this much of the device,
FIRST_STEPS, LEAST_STEPS, MOST_STEPS = 1, 1, 6  # begins at 5 %, and stays between 5 and 30 %
USAGE_HIGH, USAGE_LOW = 0.75, 0.40  # of the device in use: from here on it grows, up to here it falls
CRITICAL_RATIO = 0.75  # of the types
LEAST_WEIGHT = 1e-6
PUBLISHED_INTERVAL_S = 10.0  # 500 steps of 20 ms
DEMAND_INTERVAL_S = 1.0
KEPT_ABOVE = 0.5  # a need of at least this part of a size leaves the size as it is
FALLS_AFTER = 3  # updates in a row below that


class Sizes(Protocol):
    interval_s: float

    def update(self, total: int, usage: float, facts: Mapping[Pool, TypeFacts]) -> dict[Pool, int]:
        """New sizes, for a device of `total` tokens of which `usage` (0 to 1) is in use."""
        ...


class Reserve:
    """Algorithm 2's part of the device that is reserved, in steps of 5 %."""

    def __init__(self) -> None:
        self.steps = FIRST_STEPS

    @property
    def percent(self) -> int:
        return self.steps * STEP_PERCENT

    def update(self, usage: float) -> None:
        if usage >= USAGE_HIGH:
            self.steps = min(MOST_STEPS, self.steps + 1)
        elif usage <= USAGE_LOW:
            self.steps = max(LEAST_STEPS, self.steps - 1)

    def tokens(self, total: int) -> int:
        return total * self.percent // 100


def critical_types(scores: Mapping[Pool, float]) -> list[Pool]:
    """The types of the highest scores: three in four, at least one. Equal scores go by name."""
    count = max(1, int(len(scores) * CRITICAL_RATIO)) if scores else 0
    return sorted(scores, key=lambda pool: (-scores[pool], pool))[:count]


class _Published:
    interval_s = PUBLISHED_INTERVAL_S

    def __init__(self, score: Callable[[TypeFacts], float]) -> None:
        self.reserve = Reserve()
        self._score = score

    def _chosen(self, usage: float, facts: Mapping[Pool, TypeFacts]) -> dict[Pool, float]:
        """Critical types with their scores, after the reserve was moved."""
        self.reserve.update(usage)
        scores = {pool: self._score(one) for pool, one in facts.items() if pool != UNTYPED}
        return {pool: scores[pool] for pool in critical_types(scores)}


class PaperSizes(_Published):
    """Algorithm 2 as printed: (share of the device + share of the score) / 2 of the reserve. The shares need not add
    up to 1; what is left of the reserve stays shared."""

    def __init__(self) -> None:
        super().__init__(paper_type_score)

    def update(self, total: int, usage: float, facts: Mapping[Pool, TypeFacts]) -> dict[Pool, int]:
        scores = self._chosen(usage, facts)
        reserve, whole = self.reserve.tokens(total), sum(scores.values())
        shares = {
            pool: (facts[pool].used / total + (score / whole if whole else 0.0)) / 2 for pool, score in scores.items()}
        return {pool: int(share * reserve) for pool, share in shares.items() if share * reserve >= 1}


class ShippedSizes(_Published):
    """The published code: weights that are normalised, rounded by the largest remainder, so that they add up to the
    reserve."""

    def __init__(self) -> None:
        super().__init__(shipped_type_score)

    def update(self, total: int, usage: float, facts: Mapping[Pool, TypeFacts]) -> dict[Pool, int]:
        scores = self._chosen(usage, facts)
        whole, active = sum(scores.values()), sum(one.used for one in facts.values())
        weights = {}
        for pool, score in scores.items():
            of_score = score / whole
            of_memory = facts[pool].used / active if active else 0.0
            weights[pool] = max(of_score, (of_memory + of_score) / 2, LEAST_WEIGHT)
        return largest_remainder(self.reserve.tokens(total), weights)


class DemandSizes:
    """What the critical work of each type needs next, 30 % of the device in all at the most. A size grows at once, and
    falls when the need was less than half of it for three updates in a row."""

    interval_s = DEMAND_INTERVAL_S

    def __init__(self) -> None:
        self._wanted: dict[Pool, int] = {}
        self._low: dict[Pool, int] = {}  # updates in a row in which the need was far below the size

    def update(self, total: int, usage: float, facts: Mapping[Pool, TypeFacts]) -> dict[Pool, int]:
        for pool in sorted({*facts, *self._wanted} - {UNTYPED}):
            self._follow(pool, facts[pool].needed if pool in facts else 0)
        most = total * MOST_STEPS * STEP_PERCENT // 100
        wanted = sum(self._wanted.values())
        return dict(self._wanted) if wanted <= most else largest_remainder(most, self._wanted)

    def _follow(self, pool: Pool, need: int) -> None:
        size = self._wanted.get(pool, 0)
        if size and KEPT_ABOVE * size <= need <= size:
            self._low.pop(pool, None)
            return
        self._low[pool] = self._low.get(pool, 0) + 1 if need < size else 0
        if 0 < self._low[pool] < FALLS_AFTER:
            return
        self._low.pop(pool)
        if need:
            self._wanted[pool] = need
        else:
            self._wanted.pop(pool, None)


SIZES: dict[str, Callable[[], Sizes]] = {"paper": PaperSizes, "shipped": ShippedSizes, "demand": DemandSizes}
