"""Rows of a history as `Forecaster.dump` writes them: [table, key, figures]."""

from __future__ import annotations

from typing import Any

from tokencake_sglang.core.forecast.forecaster import Row

Bounds = tuple[float, float]


def check_rows(rows: Any, tables: tuple[str, ...], key_lengths: tuple[int, ...], bounds: Bounds) -> list[Row]:
    """All rows, checked. ValueError at the first that is none; figures must lie within `bounds`."""
    if not isinstance(rows, list):
        raise ValueError(f"the rows of a history are a list, found {type(rows).__name__}")
    return [_check_row(row, tables, key_lengths, bounds) for row in rows]


def _check_row(row: Any, tables: tuple[str, ...], key_lengths: tuple[int, ...], bounds: Bounds) -> Row:
    if not (isinstance(row, list) and len(row) == 3 and isinstance(row[1], list) and isinstance(row[2], list)):
        raise ValueError(f"a row of a history is [table, key, figures], found {str(row)[:80]}")
    table, key, figures = row
    if table not in tables:
        raise ValueError(f"a row of a history names the table {str(table)[:40]!r}; allowed: {', '.join(tables)}")
    if len(key) not in key_lengths or not all(part is None or isinstance(part, str) for part in key):
        raise ValueError(f"a row of a history has the key {str(key)[:80]}; allowed: agent type and kind")
    low, high = bounds
    if not figures or not all(type(figure) in (int, float) and low <= figure <= high for figure in figures):
        raise ValueError(f"a row of a history has the figures {str(figures)[:80]}; allowed: numbers from {low:g} to"
                         f" {high:g}, at least one")
    return table, tuple(key), tuple(float(figure) for figure in figures)
