"""Rows of a history as `Forecaster.dump` writes them: [table, key, figures]."""

from __future__ import annotations

import math
from typing import Any


def check_row(row: Any, tables: tuple[str, ...], key_lengths: tuple[int, int]) -> tuple[str, tuple, tuple[float, ...]]:
    """Table, key and figures of a row. ValueError when it is none: other types, no figure, one that is not finite."""
    if not (isinstance(row, list) and len(row) == 3 and isinstance(row[1], list) and isinstance(row[2], list)):
        raise ValueError(f"a row of a history is [table, key, figures], found {str(row)[:80]}")
    table, key, figures = row
    if table not in tables:
        raise ValueError(f"a row of a history names the table {str(table)[:40]!r}; allowed: {', '.join(tables)}")
    fits = key_lengths[0] <= len(key) <= key_lengths[1] and all(part is None or isinstance(part, str) for part in key)
    if not fits:
        raise ValueError(f"a row of a history has the key {str(key)[:80]}; allowed: agent type and kind")
    if not figures or not all(type(figure) in (int, float) and math.isfinite(figure) for figure in figures):
        raise ValueError(f"a row of a history has the figures {str(figures)[:80]}; allowed: finite numbers, at least one")
    return table, tuple(key), tuple(float(figure) for figure in figures)
