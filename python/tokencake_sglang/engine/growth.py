"""With how many tokens SGLang's admission counts what requests will generate yet (patch 0006).

SGLang takes a share of what each running request may still generate, and retracts some when it was too small. Where
it is known how long outputs are, it is known as well when a request ends and what it gives back then.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from sglang.srt.managers.schedule_policy import CLIP_MAX_NEW_TOKENS

from tokencake_sglang.core.spatial.growth import most_at_once
from tokencake_sglang.engine.requests import growth_tokens, tokens_so_far

#: Requests of which it is known how much is left: that, they, and what they will hold at the most.
Known = tuple[list[float], list[Any], float]


class OutputEnds(dict[str, float]):
    """By request id: how many tokens its output will hardly exceed; infinity: nothing is known. Asked for once."""

    def __init__(self, most_expected: Callable[[str], float]) -> None:
        super().__init__()
        self._most_expected = most_expected

    def __missing__(self, rid: str) -> float:
        end = self[rid] = self._most_expected(rid)
        return end


class Growth:
    """Of requests of which nothing is known (`ends` None: of none) SGLang's count is taken."""

    def __init__(self, scheduler: Any, ends: OutputEnds | None = None) -> None:
        self.scheduler = scheduler
        self.ends = ends
        self._running: Known = [], [], 0.0  # of the batch that is being built

    def left(self, req: Any) -> float:
        """Tokens that it will hardly exceed yet; infinity: nothing is known, or it went beyond what was forecast."""
        end = math.inf if self.ends is None else self.ends[req.rid]
        left = end if end == math.inf else min(end, req.sampling_params.max_new_tokens) - len(req.output_ids)
        return left if left > 0 else math.inf

    def of_running(self, reqs: list[Any], tokens: float) -> float:
        """What `reqs`, which run, will hold at the most beyond what they hold; `tokens` is SGLang's own count. To be
        asked before `of_new`, when a batch is begun."""
        if self.ends is None:
            return tokens
        lefts, known, others = self._split(reqs)
        grown = _at_once(lefts, known)
        self._running = lefts, known, grown
        return others * self.scheduler.new_token_ratio_tracker.current + grown if known else tokens

    def of_new(self, req: Any, admitted: list[Any], tokens: float) -> float:
        """How much that rises with `req`, which is to run too, beside `admitted` of the same batch. Not above
        SGLang's count."""
        left = self.left(req)
        if left == math.inf or tokens <= 0:
            return tokens
        lefts, beside, grown = self._running
        new, others, _ = self._split(admitted)
        if new:
            lefts, beside = lefts + new, beside + others
            grown = _at_once(lefts, beside)
        return min(tokens, _at_once([*lefts, left], [*beside, req]) - grown)

    def at_once(self, reqs: list[Any]) -> float:
        """What `reqs` will hold at the most beyond what they hold; those of which nothing is known, all they asked
        for."""
        lefts = [self.left(req) for req in reqs]
        unknown = sum([growth_tokens(req) for left, req in zip(lefts, reqs, strict=True) if left == math.inf])
        known = [req for left, req in zip(lefts, reqs, strict=True) if left < math.inf]
        return unknown + _at_once([left for left in lefts if left < math.inf], known)

    def _split(self, reqs: list[Any]) -> tuple[list[float], list[Any], int]:
        """What is left of those of which that is known, they, and the stock growth of the others. In one go, since it
        is asked for in nearly every step."""
        ends, lefts, known, others = self.ends, [], [], 0
        assert ends is not None
        for req in reqs:
            end, generated, most = ends[req.rid], len(req.output_ids), req.sampling_params.max_new_tokens
            left = (end if end < most else most) - generated
            if end < math.inf and left > 0:
                lefts.append(left)
                known.append(req)
            elif most > generated:
                others += min(most - generated, CLIP_MAX_NEW_TOKENS)
        return lefts, known, others

    def wanted(self, req: Any, running: list[Any]) -> float:
        """Both together, at any other time: for `req` if it were admitted now."""
        ratio, before = self.scheduler.new_token_ratio_tracker.current, self._running
        found = self.of_running(running, sum(map(stock_growth, running)) * ratio)
        found += self.of_new(req, [], stock_growth(req))
        self._running = before
        return found


def stock_growth(req: Any) -> int:
    """What SGLang takes for the most that it may still generate."""
    return min(growth_tokens(req), CLIP_MAX_NEW_TOKENS)


def _at_once(lefts: list[float], reqs: list[Any]) -> float:
    return most_at_once(lefts, lambda i: freed_at_end(reqs[i]))


def freed_at_end(req: Any) -> int:
    """Tokens on the device that nobody else holds, and that can be given up once the request has ended. None while it
    is not yet computed."""
    if req.req_pool_idx is None:
        return 0
    tokens = tokens_so_far(req) - req.cache_protected_len
    node = req.last_node
    while node.parent is not None and node.lock_ref == 1:
        tokens += len(node.key)
        node = node.parent
    return tokens
