"""KV that clients asked to have kept: leases with an end, within a budget. When it is exceeded the newest go."""

from __future__ import annotations

RETAIN_MAX_S = 3600.0  # the longest lease that a client is given
RETAIN_SHARE = 0.25  # of the device pool: what all such leases together may hold


class Retention:
    """Grants by agent, oldest first. Knows nothing of eviction: the controller protects and releases."""

    def __init__(self) -> None:
        self._until: dict[str, float] = {}
        self._tokens: dict[str, int] = {}
        self.total = 0

    def __contains__(self, key: str) -> bool:
        return key in self._until

    def __len__(self) -> int:
        return len(self._until)

    def until(self, key: str) -> float | None:
        """When the agent's lease ends; None without one."""
        return self._until.get(key)

    def fits(self, key: str, tokens: int, device_total: int) -> bool:
        """Whether the agent may keep so many tokens beside what the others keep."""
        return self.total - self._tokens.get(key, 0) + tokens <= RETAIN_SHARE * device_total

    def grant(self, key: str, until: float, tokens: int) -> None:
        """A new lease, or another end for the one that the agent has."""
        self._until[key] = until
        self._hold(key, tokens)

    def end(self, key: str) -> bool:
        """Whether there was one."""
        self.total -= self._tokens.pop(key, 0)
        return self._until.pop(key, None) is not None

    def clear(self) -> None:
        self._until.clear()
        self._tokens.clear()
        self.total = 0

    def look(self, now: float, key: str, tokens: int, device_total: int) -> tuple[list[str], float]:
        """The agent, which has a lease, holds `tokens` by now: the leases that have to end, its own that is over or
        the newest of those that have outgrown the budget, and when its own ends."""
        until = self._until[key]
        if now >= until:
            return [key], until
        self._hold(key, tokens)
        ending, left = [], self.total
        for newest in reversed(self._until):
            if left <= RETAIN_SHARE * device_total:
                break
            left -= self._tokens[newest]
            ending.append(newest)
        return ending, until

    def _hold(self, key: str, tokens: int) -> None:
        self.total += tokens - self._tokens.get(key, 0)
        self._tokens[key] = tokens
