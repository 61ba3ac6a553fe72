"""Scheduler extensions that use one call of patches 0005, 0006 and 0008 each, for runs in a process of their own."""

from __future__ import annotations

from typing import Any

admitted: list[list[str]] = []


def _last(req: Any) -> str:
    return req.rid.rpartition("/")[2]


def register(name: str) -> None:
    """Build the extension `name` in the scheduler of this process."""
    from sglang.srt.managers.scheduler_extension import SchedulerExtension, register_scheduler_extension

    class Telling(SchedulerExtension):
        def on_requests_admitted(self, reqs: list[Any]) -> None:
            admitted.append([_last(req) for req in reqs])

    class LastNameFirst(Telling):
        def order_waiting_queue(self, waiting_queue: list[Any]) -> None:
            waiting_queue.sort(key=_last, reverse=True)

    class HoldsTheFirst(Telling):
        def holds_back(self, req: Any) -> bool:
            return _last(req) == "c0" and not any("c3" in names for names in admitted)

    class ParksTheLast(Telling):
        """From the second chunk of c3 on, until nothing else runs."""

        def parks_chunk(self, req: Any, running_batch: Any) -> bool:
            return _last(req) == "c3" and len(running_batch.reqs) > 0

    class ExpectsSixty(Telling):
        """Every request generates 60 tokens."""

        def running_growth(self, reqs: list[Any], tokens: float) -> float:
            return sum(60 - len(req.output_ids) for req in reqs)

        def new_request_growth(self, req: Any, admitted: list[Any], tokens: float) -> float:
            return min(tokens, 60)

    class SmallChunks(Telling):
        """Prompts in pieces of 64 tokens, but for that of c3."""

        def limit_chunk(self, chunk_tokens: int | None, chunked_req: Any, waiting_queue: list[Any],
                        running_batch: Any) -> int | None:
            first = chunked_req or next(iter(waiting_queue), None)
            return chunk_tokens if first is None or _last(first) == "c3" else 64

    class KeepsHalf(Telling):
        """Half of each batch for others than the prompt in chunks."""

        def tokens_beside_chunk(self, req: Any) -> int:
            return 128

    kinds = (Telling, LastNameFirst, HoldsTheFirst, ParksTheLast, ExpectsSixty, SmallChunks, KeepsHalf)
    found = {kind.__name__: kind for kind in kinds}
    register_scheduler_extension(lambda scheduler: found[name]())
