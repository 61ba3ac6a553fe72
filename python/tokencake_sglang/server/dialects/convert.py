"""Converters from what a client sent to one unit and one polarity. Each gives None for what does not fit; none raises.

Text is bounded at 256 characters, durations are seconds, and a higher priority is served sooner.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable
from typing import Any

MAX_TEXT = 256
MAX_DURATION_S = 86400.0
MAX_PRIORITY = 99
MAX_TOKENS = 2**31
EPHEMERAL_S = 300.0  # Anthropic: how long a cache breakpoint without a ttl lives
NO_NAMES = frozenset(("null", "none", "nil", "undefined"))  # what clients send for want of an id: not one agent
_DURATION = re.compile(r"(\d{1,12}(?:\.\d{1,9})?)\s*(ms|s|m|h|d)?", re.ASCII)
_UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}

Convert = Callable[[Any], Any]


def identifier(value: Any) -> str | None:
    """A name of 1 to 256 printable characters; a longer one becomes its hash, so that no two become one."""
    if not isinstance(value, str):
        return None
    text = value.strip()
    if not text or not text.isprintable() or text.lower() in NO_NAMES:
        return None
    return bounded(text)


def identifier_or_number(value: Any) -> str | None:
    """The same, of a text or a whole number of 64 bits."""
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() <= 64:
        return str(value)
    return identifier(value)


def bounded(text: str) -> str:
    """`text` if it has at most 256 characters, else a name of 71 characters made from all of it."""
    return text if len(text) <= MAX_TEXT else "sha256-" + hashlib.sha256(text.encode()).hexdigest()


def joined(scopes: list[str], local: str) -> str:
    """The name of `local` within `scopes`, outermost first; of equally many parts, others never give the same name."""
    outer = [scope.replace("%", "%25").replace("/", "%2F") for scope in scopes]
    return bounded("/".join([*outer, local]))


def seconds(value: Any) -> float | None:
    """Seconds from a number, or from a text as "30", "30s", "5m", "1h", "250ms"; 0 to 86400."""
    return _duration(value, 1.0)


def milliseconds(value: Any) -> float | None:
    """Seconds from a number of milliseconds; a text may name another unit."""
    return _duration(value, 0.001)


def duration_text(value: Any) -> float | None:
    """Seconds from a text that names its unit: for fields whose plain numbers have no known unit."""
    return _duration(value, None) if isinstance(value, str) else None


def cache_control(value: Any) -> float | None:
    """Seconds that a cache breakpoint `{"type": "ephemeral", "ttl": "1h"}` asks for."""
    if not isinstance(value, dict) or value.get("type") != "ephemeral":
        return None
    return EPHEMERAL_S if value.get("ttl") is None else seconds(value["ttl"])


def higher_first(value: Any) -> int | None:
    """A priority of which the higher is served sooner (SGLang, Dynamo), cut to 0..99."""
    number = _number(value)
    return None if number is None else int(min(max(number, 0), MAX_PRIORITY))


def lower_first(value: Any) -> int | None:
    """A priority of which the lower is served sooner (vLLM), turned round: 0 and below become 99."""
    number = higher_first(value)
    return None if number is None else MAX_PRIORITY - number


def count(value: Any) -> int | None:
    """A whole number of tokens, 1 to 2**31."""
    fits = isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MAX_TOKENS
    return value if fits else None


def truth(value: Any) -> bool | None:
    """A truth value, as JSON, 0 and 1, or the text of either (headers)."""
    if isinstance(value, str):
        return {"true": True, "1": True, "false": False, "0": False}.get(value.strip().lower())
    return bool(value) if isinstance(value, int) and value in (0, 1) else None


def is_close(value: Any) -> bool | None:
    """Whether an action (Dynamo: open, bind, close) ends the session."""
    return value == "close" if isinstance(value, str) else None


def _duration(value: Any, plain: float | None) -> float | None:
    number, unit = _number(value), plain
    if isinstance(value, str):
        match = _DURATION.fullmatch(value.strip().lower())
        if match is None:
            return None
        number, unit = float(match[1]), _UNITS_S[match[2]] if match[2] else plain
    if number is None or unit is None:
        return None
    found = float(number) * unit
    return found if 0 <= found <= MAX_DURATION_S else None


def _number(value: Any) -> float | int | None:
    """A finite number (an int of any size only if it fits a float)."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    if isinstance(value, int):
        return value if value.bit_length() <= 64 else None
    return value if math.isfinite(value) else None
