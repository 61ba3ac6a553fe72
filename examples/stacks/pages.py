"""The tool of these examples: it reads a page of this project's documentation and says how long it is."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

DOCS = Path(__file__).resolve().parents[2] / "docs"
NAME, DESCRIPTION = "measure_page", "How many words and headings a page of the documentation has."
SCHEMA = {
    "type": "object", "required": ["page"], "additionalProperties": False,
    "properties": {"page": {"type": "string", "enum": ["architecture", "clients", "policies", "forecast"]}}}

Tool = Callable[[str], str]
Ask = Callable[[str, Tool, str], list[str]]


def measure_page(page: str) -> str:
    """How many words and headings a page of the documentation has."""
    text = (DOCS / f"{page}.md").read_text(encoding="utf-8")
    return f"{page}: {len(text.split())} words, {text.count('## ')} headings."


def main(ask: Ask, about: str) -> None:
    """Run one example from the command line."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--url", default="http://127.0.0.1:30000", help="the server, without /v1")
    given = parser.parse_args()
    *calls, text = ask(given.url, measure_page, "Which page of the documentation is long? Measure one, then say.")
    print(f"called {NAME} with {', '.join(calls)}; then said: {text}")
