"""When copies have to begin so that all are back in time, one after another on one link: as late as that allows.

Reckoned backwards from the last that is to be back. A copy begins earlier than it would have to alone only if the link
carries another just then.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Sequence

PLANNED_MOST = 64  # copies that are reckoned together, those that are to be back first
FIRST_OVERRUN_S = 0.03
OVERRUN_WEIGHT = 0.1  # of the newest piece in the mean
OVERRUN_MOST_S = 0.25  # of one piece, that counts


class LinkPlan:
    """Copies of agents by key, those that wait for their time and those that may go on."""

    def __init__(self) -> None:
        self._jobs: dict[str, tuple[float, float]] = {}  # agent -> back by, seconds of the link
        self._line: list[tuple[float, str]] = []  # back by, agent; ascending
        self._held: dict[str, None] = {}
        self._starts: dict[str, float] | None = {}  # of those that wait; None: to be reckoned again

    def set(self, key: str, ready_by: float, copy_s: float, is_held: bool) -> None:
        """The agent's copy takes `copy_s` and is to be back at `ready_by`; `is_held`: it waits for its time."""
        self.remove(key)
        self._jobs[key], self._starts = (ready_by, copy_s), None
        insort(self._line, (ready_by, key))
        if is_held:
            self._held[key] = None

    def remove(self, key: str) -> None:
        job = self._jobs.pop(key, None)
        if job is not None:
            del self._line[bisect_left(self._line, (job[0], key))]
            self._held.pop(key, None)
            self._starts = None

    def holds(self, key: str) -> bool:
        """Whether the agent's copy waits for its time."""
        return key in self._held

    def clear(self) -> None:
        self._jobs.clear()
        self._line.clear()
        self._held.clear()
        self._starts = {}

    @property
    def next_at(self) -> float | None:
        """When the next copy that waits has to begin; None: none waits."""
        return min(self._reckoned().values(), default=None)

    def take_due(self, now: float) -> list[str]:
        """Those that have to begin now; they wait no longer."""
        due = [key for key, start in self._reckoned().items() if start <= now]
        for key in due:
            del self._held[key], self._starts[key]
        return due

    def _reckoned(self) -> dict[str, float]:
        """When each of those that wait has to begin."""
        if self._starts is None:
            first = self._line[:PLANNED_MOST] if self._held else []
            starts = latest_starts([self._jobs[key] for _, key in first])
            self._starts = {key: start for (_, key), start in zip(first, starts, strict=True) if key in self._held}
        return self._starts


class Overrun:
    """How much longer than reckoned a piece takes from its start until it is known to have landed: the rest of the
    steps in which it begins and ends, and what else was on the link."""

    def __init__(self) -> None:
        self.mean_s = FIRST_OVERRUN_S

    def observe(self, seconds: float) -> None:
        self.mean_s += OVERRUN_WEIGHT * (min(max(seconds, 0.0), OVERRUN_MOST_S) - self.mean_s)


def latest_starts(jobs: Sequence[tuple[float, float]]) -> list[float]:
    """When each of these has to begin at the latest so that it and all behind it are in time. Each is (to be back by,
    seconds of the link), in the order in which they are to be back."""
    starts, following = [], math.inf
    for ready_by, copy_s in reversed(jobs):
        following = min(ready_by, following) - copy_s
        starts.append(following)
    return starts[::-1]
