"""Data files: those shipped in `emulator/data`, and a user's own."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any


def read_text(shipped: str, path: str | None = None) -> str:
    """The text of a user's file, or of a shipped one where `path` is None."""
    if path is None:
        return (files("tokencake_sglang.emulator") / "data" / shipped).read_text(encoding="utf-8")
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read the workload file {path}: {error}; give the path of a text file") from error


def read_json(shipped: str, path: str | None, schema: str) -> dict[str, Any]:
    """A JSON object with that `schema`; ValueError says what was found instead."""
    name = path or shipped
    try:
        values = json.loads(read_text(shipped, path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{name}:{error.lineno}: not JSON: {error.msg}") from error
    found = values.get("schema") if isinstance(values, dict) else None
    if found != schema:
        raise ValueError(f'{name}: "schema" is {found!r}, this workload reads {schema!r}')
    return values
