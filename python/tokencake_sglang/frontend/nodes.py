"""The paper's ready function nodes as tools: each has its kind and its expected duration, from the artifact.

All of them take a function of yours, as a decorator or directly: `search = tc.nodes.search(my_search)`. Those for
files, the user's confirmation and tests have a plain function of their own: `read = tc.nodes.file_read()`.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tokencake_sglang.core.graph import TOOL_SECONDS
from tokencake_sglang.frontend.tool import Stage, Tool

#: Stages and their seconds (artifact, base time first); a kind that is missing here is one step of TOOL_SECONDS.
STAGES: dict[str, tuple[Stage, ...]] = {
    "search": (Stage("call", 2.0), Stage("query processing", 0.5), Stage("execution", 1.0), Stage("results", 0.5)),
    "data_analysis": (Stage("load", 1.0), Stage("analysis", 1.0)),
    "user_confirm": (Stage("call", 2.0), Stage("send", 0.5), Stage("answer", 1.0)),
    "external_test": (Stage("call", 1.0), Stage("style", 0.5), Stage("compile", 1.0), Stage("functions", 2.0),
                      Stage("report", 1.0)),
}
TEST_LIMIT_S = 600.0


def file_read(fn: Callable[..., Any] | None = None, **options: Any) -> Tool:
    """Read a file: `(path) -> text`. `options` here and below are those of `tool`: name, predict_time, stages."""
    return _ready("file_read", fn or _read, options)


def file_write(fn: Callable[..., Any] | None = None, **options: Any) -> Tool:
    """Write a file: `(path, content) -> number of characters`."""
    return _ready("file_write", fn or _write, options)


def file_query(fn: Callable[..., Any] | None = None, **options: Any) -> Tool:
    """Look something up in a file: `(path, text) -> the lines that contain the text`."""
    return _ready("file_query", fn or _lines_with, options)


def search(fn: Callable[..., Any], **options: Any) -> Tool:
    """Ask a search engine; the function is yours."""
    return _ready("search", fn, options)


def data_analysis(fn: Callable[..., Any], **options: Any) -> Tool:
    """A computation on data in several stages; the function is yours."""
    return _ready("data_analysis", fn, options)


def user_confirm(fn: Callable[..., Any] | None = None, **options: Any) -> Tool:
    """Ask the user: `(question) -> bool`, on the terminal unless you give a function."""
    return _ready("user_confirm", fn or _confirm, options)


def external_test(fn: Callable[..., Any] | None = None, **options: Any) -> Tool:
    """Run a test program: `(command, folder=".") -> (passed, output)`; `command` is a list of words, no shell."""
    return _ready("external_test", fn or _run_test, options)


def _ready(kind: str, fn: Callable[..., Any], options: dict[str, Any]) -> Tool:
    """A Tool of this kind. Durations that the caller gives replace the ready ones."""
    if isinstance(fn, Tool) or not callable(fn):
        raise TypeError(f"nodes.{kind}: found {fn!r}; allowed is a function")
    options = {"name": kind, "kind": kind, **options}
    says_p50 = not isinstance(options.get("hint"), (str, type(None)))
    if "predict_time" not in options and "stages" not in options and not says_p50:
        options |= {"stages": STAGES[kind]} if kind in STAGES else {"predict_time": TOOL_SECONDS[kind]}
    return Tool(fn, **options)


def _read(path: str) -> str:
    return Path(path).read_text(encoding="utf-8")


def _write(path: str, content: str) -> int:
    return Path(path).write_text(content, encoding="utf-8")


def _lines_with(path: str, text: str) -> list[str]:
    return [line for line in _read(path).splitlines() if text in line]


def _confirm(question: str) -> bool:
    return input(f"{question} [y/n] ").strip().lower() in ("y", "yes")


def _run_test(command: Sequence[str], folder: str = ".") -> tuple[bool, str]:
    """Raises TimeoutExpired after TEST_LIMIT_S seconds, which the program sees as a ToolError."""
    done = subprocess.run(list(command), cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True, errors="replace", timeout=TEST_LIMIT_S)
    return done.returncode == 0, done.stdout
