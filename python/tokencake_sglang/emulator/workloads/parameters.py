"""What a workload's parameters are and how a wrong one is refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Parameter:
    """One parameter: its default, what it means, which values are allowed (in words) and the test for them."""

    default: Any
    meaning: str
    allowed: str
    accepts: Callable[[Any], bool]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value == value


def number(default: float | None, meaning: str, low: float = 0.0, above: bool = False) -> Parameter:
    """A number of at least `low`, or greater than it with `above`; None is allowed where it is the default."""
    words = f"a number {'above' if above else 'of at least'} {low:g}" + (" or None" if default is None else "")

    def accepts(value: Any) -> bool:
        if value is None:
            return default is None
        return _is_number(value) and (value > low if above else value >= low)

    return Parameter(default, meaning, words, accepts)


def whole(default: int | None, meaning: str, low: int = 1) -> Parameter:
    """A whole number of at least `low`; None is allowed where it is the default."""
    words = f"a whole number of at least {low}" + (" or None" if default is None else "")

    def accepts(value: Any) -> bool:
        if value is None:
            return default is None
        return isinstance(value, int) and not isinstance(value, bool) and value >= low

    return Parameter(default, meaning, words, accepts)


def choice(default: str, meaning: str, *values: str) -> Parameter:
    return Parameter(default, meaning, "one of " + ", ".join(values), lambda value: value in values)


def flag(default: bool, meaning: str) -> Parameter:
    return Parameter(default, meaning, "true or false", lambda value: isinstance(value, bool))


def path(meaning: str) -> Parameter:
    return Parameter(None, meaning, "a path or None", lambda value: value is None or isinstance(value, str))


def resolve(workload: str, known: Mapping[str, Parameter], given: Mapping[str, Any]) -> dict[str, Any]:
    """All parameters with their values. ValueError names a parameter that is unknown or has a wrong value."""
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise ValueError(
            f"workload {workload}: unknown parameter {', '.join(unknown)}; it takes {', '.join(sorted(known))}")
    values = {name: given.get(name, parameter.default) for name, parameter in known.items()}
    for name, parameter in known.items():
        if not parameter.accepts(values[name]):
            raise ValueError(f"workload {workload}: {name} is {values[name]!r}, it must be {parameter.allowed}")
    return values
