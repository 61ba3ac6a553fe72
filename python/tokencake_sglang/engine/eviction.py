"""Eviction order with classes: dead KV first, then ordinary, then protected; SGLang's policy inside a class.

Protection is an order, never a refusal: a protected node stays evictable, so SGLang's `evictable_size` stays
true and no protection can stop a request (srt/mem_cache/evict_policy.py gives smaller priorities first).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sglang.srt.mem_cache.evict_policy import EvictionStrategy


class RankedStrategy(EvictionStrategy):
    def __init__(self, inner: EvictionStrategy, rank: Callable[[Any], int]) -> None:
        self.inner = inner
        self.rank = rank

    def get_priority(self, node: Any) -> tuple[int, Any]:
        return self.rank(node), self.inner.get_priority(node)
