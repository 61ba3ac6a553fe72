"""Run the coding example against a server URL, or start a server for a model first."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from coding.program import make_app  # noqa: E402
from common.cli import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main(
        "coding", "Architect, parallel programmers, reviewer, tester, revisor; tools write files and run pytest.",
        lambda args: make_app(args.tool_delay, args.seed)))
