"""The size of the next prefill batch, for SGLang's scheduler (patch 0005): what runs beside it, as figures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tokencake_sglang.core.costs import Costs
from tokencake_sglang.core.spatial.chunks import balanced_chunk
from tokencake_sglang.engine.requests import tokens_so_far


class BalancedChunks:
    """`costs()` are those that all ranks know."""

    def __init__(self, costs: Callable[[], Costs]) -> None:
        self.costs = costs

    def limit(self, most: int | None, chunked_req: Any, waiting: list[Any], running_batch: Any,
              beside: int = 0) -> int | None:
        """Of at most `most` tokens, `beside` of them for others than the prompt in chunks; None, and where nothing
        decodes: as SGLang says."""
        requests = len(running_batch.reqs)
        if most is None or not requests:
            return most
        context, position = _context(running_batch), _position(chunked_req, waiting)
        return min(most, beside + balanced_chunk(self.costs(), requests, context, position))


def _context(batch: Any) -> int:
    """Tokens that the requests of a batch attend to."""
    lengths = batch.seq_lens_cpu
    if lengths is not None and len(lengths) == len(batch.reqs):
        return int(lengths.sum())
    return sum(map(tokens_so_far, batch.reqs))


def _position(chunked_req: Any, waiting: list[Any]) -> int:
    """Of the prompt that comes next: what is computed of it. One that has not begun is taken to be cached but for its
    end, as that of an agent's next turn is."""
    if chunked_req is not None:
        return len(chunked_req.prefix_indices)
    return len(waiting[0].origin_input_ids) if waiting else 0
