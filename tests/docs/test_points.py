"""The table of points in docs/testing.md names tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ROW = re.compile(r"^\| (\d+) \| [^|]* \| `(tests/[\w/]+\.py)`: (.+) \|$", re.MULTILINE)


def rows():
    found = ROW.findall((ROOT / "docs/testing.md").read_text())
    return [(int(point), path, re.findall(r"`(\w+)`", tests)) for point, path, tests in found]


def test_every_test_that_is_named_exists():
    missing = [(path, test) for _, path, tests in rows() for test in tests
               if not re.search(rf"^\s*def {test}\(", (ROOT / path).read_text(), re.MULTILINE)]
    assert missing == []


def test_points_are_in_order_and_begin_and_end_as_the_page_says():
    points = [point for point, _, _ in rows()]
    assert points == sorted(points) and (points[0], points[-1]) == (7, 37)
    assert all(tests for _, _, tests in rows())
