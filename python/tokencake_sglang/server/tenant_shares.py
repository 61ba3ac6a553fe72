"""Shares of tenants from a file: an object of tenants, each with its floor and ceiling."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tokencake_sglang.core.errors import ConfigError

NAME = "tenant_shares"
FLAG = "--tokencake-tenant-shares"
ENDINGS = (".json", ".yaml", ".yml")


def with_file(values: dict[str, Any], read: Callable[[str, str], dict[str, Any]]) -> dict[str, Any]:
    """`values` with the shares as text where they name a file. ConfigError where it does not hold pairs."""
    path = values.get(NAME)
    if not isinstance(path, str) or not path.lower().endswith(ENDINGS) or "=" in path:
        return values
    return {**values, NAME: ",".join(_part(path, name, pair) for name, pair in read(path, FLAG).items())}


def _part(path: str, name: str, pair: Any) -> str:
    are_numbers = isinstance(pair, list) and len(pair) == 2 and all(
        isinstance(one, (int, float)) and not isinstance(one, bool) for one in pair)
    if not are_numbers or "," in name:
        raise ConfigError(f"{FLAG} {path} has {name!r}: {pair!r}; allowed: a name without a comma and a list of floor"
                          " and ceiling, as \"acme\": [0.2, 0.6]. Correct the file.")
    return f"{name}={pair[0]}:{pair[1]}"
