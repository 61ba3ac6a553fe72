"""A full-text search engine over the documentation strings of this machine's Python: real SQLite FTS5, built once."""

from __future__ import annotations

import ast
import os
import re
import sqlite3
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

LAYOUT = 1
SHOWN_WORDS = 70
SKIPPED_FOLDERS = ("site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "__pycache__", "turtledemo")


class SearchIndexError(RuntimeError):
    """The index cannot be built or read on this machine; the message says why."""


@dataclass(frozen=True)
class Hit:
    title: str
    text: str


def default_path(cache_dir: Path) -> Path:
    """One index per Python version, because its text differs."""
    version = ".".join(map(str, sys.version_info[:3]))
    return cache_dir / f"stdlib-docs-{version}-v{LAYOUT}.sqlite"


def documents(root: Path) -> Iterator[tuple[str, str]]:
    """(dotted name, documentation string) of every module, class and function below `root`, in a fixed order."""
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if any(part in SKIPPED_FOLDERS for part in parts):
            continue
        try:
            tree = ast.parse(path.read_text(encoding="utf-8", errors="replace"))
        except (SyntaxError, ValueError, OSError):
            continue
        module = ".".join(p for p in parts if p != "__init__")
        yield from _documented(tree, module)


def _documented(node: ast.AST, name: str) -> Iterator[tuple[str, str]]:
    text = ast.get_docstring(node) if isinstance(
        node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) else None
    if text and len(text) > 40:
        yield name, text
    for child in getattr(node, "body", []):
        if isinstance(child, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            yield from _documented(child, f"{name}.{child.name}")


def build(path: Path, root: Path | None = None) -> int:
    """Write the index to `path`, whole or not at all; returns the number of documents. Raises SearchIndexError."""
    root = root or Path(sysconfig.get_paths()["stdlib"])
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, draft = tempfile.mkstemp(dir=path.parent, suffix=".draft")
    os.close(handle)
    try:
        with sqlite3.connect(draft) as db:
            db.execute("CREATE VIRTUAL TABLE docs USING fts5(title, body, tokenize='porter')")
            db.executemany("INSERT INTO docs VALUES (?, ?)", documents(root))
            count = int(db.execute("SELECT count(*) FROM docs").fetchone()[0])
        db.close()
        if count == 0:
            raise SearchIndexError(f"no documented Python sources found below {root}; the search index needs some.")
        os.replace(draft, path)
    except sqlite3.OperationalError as error:
        raise SearchIndexError(
            f"this Python's SQLite cannot build a full-text index ({error}); it needs FTS5.") from error
    finally:
        Path(draft).unlink(missing_ok=True)
    return count


class SearchIndex:
    """Read-only access to an index; safe to use from many threads (each search opens its own connection)."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def open(cls, cache_dir: Path) -> SearchIndex:
        path = default_path(cache_dir)
        if not path.exists():
            print(f"building the search index {path.name} ...", flush=True)
            print(f"  {build(path)} documents", flush=True)
        return cls(path)

    def search(self, query: str, limit: int = 3) -> list[Hit]:
        """The best documents for any of the words in `query`; none for a query without words."""
        words = list(dict.fromkeys(re.findall(r"[A-Za-z0-9]{2,}", query)))[:16]
        if not words:
            return []
        expression = " OR ".join(f'"{word}"' for word in words)
        db = sqlite3.connect(self.path)
        try:
            rows = db.execute("SELECT title, body FROM docs WHERE docs MATCH ? ORDER BY bm25(docs, 4.0, 1.0), rowid"
                              " LIMIT ?", (expression, limit)).fetchall()
        finally:
            db.close()
        return [Hit(title, _shortened(body)) for title, body in rows]


def _shortened(body: str) -> str:
    words = body.split()
    return " ".join(words[:SHOWN_WORDS]) + (" ..." if len(words) > SHOWN_WORDS else "")
