"""How long a request waits in a queue whose order is SGLang's: its place in it, at the pace of admissions."""

from __future__ import annotations

from collections.abc import Iterable

from tokencake_sglang.core.spatial.pace import Pace
from tokencake_sglang.core.spatial.scheduler import LONGEST_WAIT_S


class QueuePlaces:
    """Places as of the last time the queue was ordered. One that has joined since counts as the first, because nobody
    knows yet where it will be put."""

    def __init__(self) -> None:
        self.pace = Pace()
        self._places: dict[str, int] = {}  # request -> how many are served up to it, itself among them

    def joined(self, now: float, rid: str) -> None:
        self._places[rid] = 1
        self.pace.joined(now)

    def ordered(self, now: float, rids: Iterable[str]) -> None:
        """The whole queue, the next one first."""
        waited, self._places = bool(self._places), {rid: place for place, rid in enumerate(rids, start=1)}
        if waited and not self._places:  # the last ones went away
            self.pace.left(now, 0, admitted=False)

    def admitted(self, now: float, rid: str) -> None:
        """It leaves the queue. A prompt in chunks is admitted several times, and counts once."""
        if self._places.pop(rid, None) is not None:
            self.pace.left(now, len(self._places), admitted=True)

    def wait_s(self, rids: Iterable[str]) -> float:
        """Seconds until the first of these is admitted; 0 if none of them waits."""
        place = min((self._places[rid] for rid in rids if rid in self._places), default=0)
        return min(LONGEST_WAIT_S, place / self.pace.per_s)
