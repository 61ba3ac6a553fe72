"""What a dialect is: a table that says where a stack of clients puts what, and how it is converted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tokencake_sglang.server.dialects.convert import Convert, identifier, joined

Path = tuple[str, ...]


def at(dotted: str) -> Path:
    """The keys of a place in the body: "nvext.agent_hints.osl"."""
    return tuple(dotted.split("."))


def lookup(values: Any, path: Path) -> Any:
    """What is at a place, or None."""
    for key in path:
        if not isinstance(values, dict):
            return None
        values = values.get(key)
    return values


@dataclass(frozen=True)
class Rule:
    """One field, from one place.

    `within`: places of the names in which this name is unique, outermost first, each with alternatives; those that are
    not there are left out. `needs`: the rule counts only if a name is at that place.
    """

    field: str
    path: Path
    convert: Convert = identifier
    within: tuple[tuple[Path, ...], ...] = ()
    needs: Path | None = None

    def value(self, values: Any) -> Any:
        """The converted value, or None when there is none that fits."""
        if self.needs is not None and identifier(lookup(values, self.needs)) is None:
            return None
        found = self.convert(lookup(values, self.path))
        if found is None or not self.within:
            return found
        scopes = [_first_name(values, places) for places in self.within]
        return joined([scope for scope in scopes if scope is not None], found)


@dataclass(frozen=True)
class Dialect:
    """The rules of one stack, the first that fits a field winning; the rule for `agent_id` before `parent_agent_id`.

    `section`: what the rules read, made from the headers (if `of_headers`) or the body. `paths`: the routes on which it
    is spoken; empty: all. `needles`: keys of which at least one is in every body that names an agent or its end.
    """

    name: str
    rules: tuple[Rule, ...]
    of_headers: bool = False
    section: Callable[[Mapping[str, Any]], Mapping[str, Any]] = dict
    paths: tuple[str, ...] = ()
    needles: tuple[str, ...] = ()

    @property
    def header_names(self) -> frozenset[str]:
        """Headers that the rules read, in lower case."""
        places = [place for rule in self.rules for place in _places(rule)]
        return frozenset(place[0] for place in places) if self.of_headers else frozenset()


def _places(rule: Rule) -> list[Path]:
    return [rule.path, *([rule.needs] if rule.needs else []), *(path for places in rule.within for path in places)]


def _first_name(values: Any, places: tuple[Path, ...]) -> str | None:
    for path in places:
        name = identifier(lookup(values, path))
        if name is not None:
            return name
    return None
