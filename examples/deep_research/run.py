"""Run the deep-research example against a server URL, or start a server for a model first."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common.cli import CACHE_DIR, main  # noqa: E402
from deep_research.index import SearchIndex  # noqa: E402
from deep_research.program import make_app  # noqa: E402

SEARCHERS = 3

if __name__ == "__main__":
    sys.exit(main(
        "research", "Planner, parallel searchers with summaries, reflector, writer; the search tool is a real index.",
        lambda args: make_app(SearchIndex.open(CACHE_DIR), SEARCHERS, args.tool_delay, args.seed)))
