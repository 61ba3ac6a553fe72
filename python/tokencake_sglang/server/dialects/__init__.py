"""Which agent a request belongs to, from what existing agent stacks already send.

One module per stack holds a table of places and converters; `resolve` goes through them in order of precedence.
"""

from __future__ import annotations

from tokencake_sglang.server.dialects.resolver import HEADER_NAMES, NEEDLES, Resolved, resolve

__all__ = ["HEADER_NAMES", "NEEDLES", "Resolved", "resolve"]
