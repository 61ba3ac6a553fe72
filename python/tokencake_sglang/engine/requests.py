"""The requests that a scheduler holds, wherever it keeps them. A request may be listed more than once."""

from __future__ import annotations

from itertools import chain
from typing import Any

NEAR = 32  # requests at the end of the queue


def on_device(scheduler: Any) -> list[Any]:
    """Of the running batch, the batch before it and the prompt computed in chunks; finished ones included."""
    reqs = list(scheduler.running_batch.reqs)
    if scheduler.last_batch is not None:
        reqs += scheduler.last_batch.reqs
    if scheduler.chunked_req is not None:
        reqs.append(scheduler.chunked_req)
    return reqs


def count_on_device(scheduler: Any) -> int:
    """How many `on_device` lists."""
    last = 0 if scheduler.last_batch is None else len(scheduler.last_batch.reqs)
    return len(scheduler.running_batch.reqs) + last + (scheduler.chunked_req is not None)


def runs_any(scheduler: Any) -> bool:
    """Whether any request runs that has not finished."""
    last = () if scheduler.last_batch is None else scheduler.last_batch.reqs
    chunked = () if scheduler.chunked_req is None else (scheduler.chunked_req,)
    return any(not req.finished() for req in chain(scheduler.running_batch.reqs, last, chunked))


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
