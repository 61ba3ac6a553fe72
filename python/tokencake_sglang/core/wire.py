"""What the JSON of clients is checked with: limits, known fields, and how an error describes a value."""

from __future__ import annotations

from typing import Any

MAX_TEXT = 256
STAGE_KEYS = ("name", "estimated_s")
MAX_STAGES = 32


def known_fields(obj: Any, what: str, allowed: tuple[str, ...], error: type[Exception]) -> dict[str, Any]:
    """The fields of a JSON object that are not null; `error` when it is none or has a field that is not `allowed`."""
    if not isinstance(obj, dict):
        raise error(f"{what} is {show(obj)}; allowed: a JSON object with the fields {', '.join(allowed)}."
                    " Send an object.")
    for key in obj:
        if key not in allowed:
            raise error(f"{what} has the field {show(key)}; allowed: {', '.join(allowed)}. Remove it or correct its"
                        " name.")
    return {key: value for key, value in obj.items() if value is not None}


def show(value: Any) -> str:
    """A short description that cannot fail, whatever the value (no repr of nested or huge values)."""
    if value is None or isinstance(value, (bool, float)):
        return {None: "null", True: "true", False: "false"}.get(value, repr(value))
    if isinstance(value, int):
        return repr(value) if value.bit_length() <= 64 else f"a number of {value.bit_length()} bits"
    if isinstance(value, str):
        return clip(repr(value[:80]), 60)
    if isinstance(value, dict):
        return f"an object with {len(value)} fields"
    if isinstance(value, (list, tuple)):
        return f"a list of {len(value)}"
    return f"a {type(value).__name__}"


def clip(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 3] + "..."
