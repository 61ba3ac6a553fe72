"""The requests that a scheduler holds, wherever it keeps them. A request may be listed more than once."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

NEAR = 32  # requests at the end of the queue


def tokens_so_far(req: Any) -> int:
    """Of its prompt and its output."""
    return len(req.origin_input_ids) + len(req.output_ids)


def growth_tokens(req: Any) -> int:
    """The most that it may still generate."""
    return max(0, req.sampling_params.max_new_tokens - len(req.output_ids))


def on_device(scheduler: Any) -> list[Any]:
    """Of the running batch, the batch before it and the prompt computed in chunks; finished ones included."""
    return [*chain.from_iterable(_places(scheduler))]


def count_on_device(scheduler: Any) -> int:
    """How many `on_device` lists."""
    return sum(map(len, _places(scheduler)))


def runs_any(scheduler: Any) -> bool:
    """Whether any request runs that has not finished."""
    return any(not req.finished() for req in chain.from_iterable(_places(scheduler)))


def _places(scheduler: Any) -> tuple[Sequence[Any], ...]:
    last, chunked = scheduler.last_batch, scheduler.chunked_req
    return scheduler.running_batch.reqs, () if last is None else last.reqs, () if chunked is None else (chunked,)


def held(scheduler: Any) -> list[Any]:
    """Those, and the waiting ones."""
    return [*scheduler.waiting_queue, *on_device(scheduler)]


class LiveRequests:
    """Answers whether a request of that id waits or runs, as of the moment when it is made; to be asked at once.

    Who has come last stands at the end of the queue, and is asked for most often: the whole queue is looked at only
    for an id that is neither there nor on the device.
    """

    def __init__(self, scheduler: Any) -> None:
        self._scheduler = scheduler
        self._near: set[str] | None = None
        self._all: set[str] | None = None

    def __contains__(self, rid: object) -> bool:
        if self._near is None:
            self._near = _ids([*self._scheduler.waiting_queue[-NEAR:], *on_device(self._scheduler)])
        if rid in self._near:
            return True
        if self._all is None:
            self._all = _ids(self._scheduler.waiting_queue)
        return rid in self._all


def _ids(reqs: list[Any]) -> set[str]:
    return {req.rid for req in reqs if req.finished_reason is None}
