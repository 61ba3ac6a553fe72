"""TokenCake's own object. A server refuses a wrong one (server/schema.py); here what does not fit is left out."""

from __future__ import annotations

from tokencake_sglang.core.types import IDENTITY_FIELDS
from tokencake_sglang.server.dialects.dialect import Dialect, Rule

NAME = "tokencake"
DIALECTS = (
    Dialect(NAME, tuple(Rule(field, ("tokencake", field)) for field in IDENTITY_FIELDS),
            needles=("tokencake",)),
)
