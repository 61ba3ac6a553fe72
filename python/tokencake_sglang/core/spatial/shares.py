"""Fair shares of the device between pools: the pool that has been served least goes first (start-time fair queueing).

A pool's service is a virtual time: what its requests have cost. The server's virtual time is that at which
the last admitted request's pool stood. A pool whose first request comes to an empty queue starts there, or where it was
if that is later: nobody saves up a claim by having nothing to do, and nobody loses a debt by it. As long as both have
requests waiting, two pools therefore differ by the cost of their largest request at the most.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable

GENERATED_COST = 4.0  # of one generated token, in prompt tokens: its share of a decode step's weights
CONTEXT_COST = 1.0 / 1024  # more, for each token of its context: the KV that its decode step reads


def cost(new_tokens: float, context_tokens: float, generated_tokens: float) -> float:
    """What a request costs, in computed prompt tokens."""
    return new_tokens + generated_tokens * (GENERATED_COST + CONTEXT_COST * (context_tokens + generated_tokens / 2))


class FairShares:
    """Virtual times of pools. A pool without waiting requests is known only while it is ahead of the server."""

    def __init__(self) -> None:
        self._time: dict[Hashable, float] = {}
        self._waiting: frozenset[Hashable] = frozenset()
        self._now = 0.0

    def update(self, waiting: Iterable[Hashable]) -> None:
        """These pools have requests waiting."""
        named = frozenset(waiting)
        if not named:
            self._now = max(self._time.values(), default=self._now)  # nobody waits for anybody: all debts are off
        for pool in named - self._waiting:
            self._time[pool] = max(self._time.get(pool, self._now), self._now)
        self._time = {pool: at for pool, at in self._time.items() if pool in named or at > self._now}
        self._waiting = named

    def admit(self, pool: Hashable, amount: float) -> None:
        """A request of the pool that costs `amount` is served now."""
        start = self._time.get(pool, self._now)
        self._now = max(self._now, start)
        self._time[pool] = start + amount

    def correct(self, pool: Hashable, amount: float) -> None:
        """An earlier request cost that much more (or less)."""
        self._time[pool] = self._time.get(pool, self._now) + amount

    def times(self) -> dict[Hashable, float]:
        return dict(self._time)
