"""What a request says besides whose it is: how it wants to be taken among others, and what is expected after it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

HINT_FIELDS = ("priority", "expected_output_tokens", "cache_ttl_s")  # in metadata as texts
MAX_PRIORITY = 99
MAX_TOKENS = 2**31
MAX_TTL_S = 86400.0


@dataclass(frozen=True)
class RequestHints:
    """`priority` is 0 to 99, higher is sooner, among the requests of one program. `cache_ttl_s`: seconds after its
    answer for which the agent's KV is expected to be used again."""

    priority: int = 0
    expected_output_tokens: int | None = None
    cache_ttl_s: float | None = None

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str] | None) -> RequestHints:
        """What does not fit counts as not given."""
        given = metadata or {}
        priority, tokens, ttl = (_number(given.get(name)) for name in HINT_FIELDS)
        return cls(
            priority=int(priority) if priority is not None and 0 <= priority <= MAX_PRIORITY else 0,
            expected_output_tokens=int(tokens) if tokens is not None and 1 <= tokens <= MAX_TOKENS else None,
            cache_ttl_s=ttl if ttl is not None and 0 < ttl <= MAX_TTL_S else None)


def _number(text: object) -> float | None:
    try:
        value = float(text) if isinstance(text, str) and len(text) <= 32 else math.nan
    except ValueError:
        return None
    return value if math.isfinite(value) else None
