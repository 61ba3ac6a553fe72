"""The requests that a scheduler holds, wherever it keeps them. A request may be listed more than once."""

from __future__ import annotations

from typing import Any


def on_device(scheduler: Any) -> list[Any]:
    """Of the running batch, the batch before it and the prompt computed in chunks; finished ones included."""
    reqs = list(scheduler.running_batch.reqs)
    if scheduler.last_batch is not None:
        reqs += scheduler.last_batch.reqs
    if scheduler.chunked_req is not None:
        reqs.append(scheduler.chunked_req)
    return reqs


def runs_any(scheduler: Any) -> bool:
    """Whether any request runs that has not finished."""
    return any(not req.finished() for req in on_device(scheduler))


def held(scheduler: Any) -> list[Any]:
    """Those, and the waiting ones."""
    return [*scheduler.waiting_queue, *on_device(scheduler)]
