"""Short requests beside the rest of a long prompt (core/spatial/beside.py): patches 0005 and 0008.

What a request has to compute is taken from its agent's path. Where that was wrong, SGLang finds no place for it in the
batch, and it waits for the end of the long prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

from tokencake_sglang.core.spatial.beside import BESIDE_VIEWED, Candidate, go_beside
from tokencake_sglang.engine.cache import agent_key
from tokencake_sglang.engine.growth import Growth
from tokencake_sglang.engine.requests import growth_tokens, tokens_so_far


class Beside:
    """`would_hold_back(req)`: whether it may not go yet anyway."""

    def __init__(self, scheduler: Any, cache: Any, would_hold_back: Callable[[Any], bool],
                 growth: Growth) -> None:
        self.scheduler = scheduler
        self.cache = cache
        self.would_hold_back = would_hold_back
        self.growth = growth
        self.tokens = 0  # of the batch being built, for those that go beside the long prompt
        self.went = 0  # requests, so far
        self._chosen: dict[str, None] = {}
        self._tried: dict[str, None] = {}
        self._refused: dict[str, None] = {}  # beside this long prompt
        self._long: str | None = None

    def choose(self, most: int | None, long: Any, waiting: list[Any], running: list[Any]) -> int:
        """Tokens of a batch of at most `most` that go to others than `long`, the prompt in chunks; None: there is
        none."""
        self.tokens, self._chosen = 0, {}
        if most is None or long is None or not waiting:
            return 0
        if long.rid != self._long:
            self._long, self._refused = long.rid, {}
        rest = len(long.full_untruncated_fill_ids) - len(long.prefix_indices)

        def room() -> int:
            free = self.cache.token_to_kv_pool_allocator.available_size() + self.cache.evictable_size()
            return free - rest - int(self.growth.at_once([long, *running]))

        self._chosen, self.tokens = go_beside(rest, room, most, self._candidates(waiting))
        return self.tokens

    def passes_over(self, req: Any) -> bool:
        """Whether it waits because others go beside the rest of a long prompt, which lasts beyond this batch."""
        if not self._chosen or self.scheduler.chunked_req is None:
            return False
        if req.rid not in self._chosen:
            return True
        self._tried[req.rid] = None
        return False

    def admitted(self, reqs: list[Any]) -> None:
        """These are in the batch."""
        if self._tried:
            here = {req.rid for req in reqs}
            self.went += len(self._tried.keys() & here)
            self._refused.update(dict.fromkeys(rid for rid in self._tried if rid not in here))
            self._tried.clear()

    def _candidates(self, waiting: list[Any]) -> Iterator[Candidate]:
        page = self.cache.page_size
        for req in islice(waiting, BESIDE_VIEWED):
            if req.rid in self._refused or self.would_hold_back(req):
                continue
            prompt = tokens_so_far(req)
            missing = max(1, prompt - self.cache.owners.path_tokens(agent_key(req)))
            yield Candidate(req.rid, -(-missing // page) * page + page, prompt + self._expected(req) + page)

    def _expected(self, req: Any) -> int:
        return int(min(growth_tokens(req), self.growth.left(req)))
