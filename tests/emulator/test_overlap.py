"""Passes go on while an upload is on the link, in virtual time: the whole scheduler, its loops and its streams."""

from __future__ import annotations

from typing import Any

import pytest

from tests.emulator.conftest import JOBS
from tests.emulator.test_returns import AGENTS, spec

SLOW = "qwen2.5-14b@a100-80gb?h2d_bytes_per_s=3e9&d2h_bytes_per_s=3e9"
LONG_NS = 150_000_000  # an upload of that length lasts for several decode steps


@pytest.fixture(scope="module", params=[True, False], ids=["overlap", "normal"])
def seen(request, emulations) -> dict[str, Any]:
    long_answers = {"name": "tool_turns", "seed": 1, "params": {**AGENTS, "output_tokens": 100}}
    run = spec("cost", profile=SLOW, overlap=request.param, workload=long_answers)
    return emulations.submit(JOBS + "run_watching_uploads", run, parent=0).result()


def within(seen: dict[str, Any], begin: int, end: int) -> list[list[Any]]:
    return [one for one in seen["passes"] if one[3] and begin < one[0] and one[1] < end]


def test_decode_passes_begin_and_end_while_an_upload_is_on_the_link(seen):
    long = [(begin, end) for begin, end in seen["uploads"] if end - begin >= LONG_NS]
    busy = [passes for begin, end in long if len(passes := within(seen, begin, end)) >= 3]
    assert len(busy) >= 3, f"{len(long)} long uploads, {len(busy)} of them beside decode passes"


def test_no_decode_pass_waits_for_an_upload_or_is_longer_beside_one(seen):
    beside = [one for begin, end in seen["uploads"] for one in within(seen, begin, end)]
    assert beside and all(ended - began == length for began, ended, length, _ in beside)
    others = [length for _, _, length, is_decode in seen["passes"] if is_decode]
    assert max(one[2] for one in beside) <= max(others)


def test_decode_passes_follow_one_another_as_closely_beside_an_upload_as_without_one(seen):
    """The gap from the end of a pass to the begin of the next: what a scheduler that waits for a copy would stretch."""
    def gaps(passes: list[list[Any]]) -> list[int]:
        return sorted(later[0] - earlier[1] for earlier, later in zip(passes, passes[1:], strict=False))

    inside = [gap for begin, end in seen["uploads"] for gap in gaps(within(seen, begin, end))]
    usual = gaps([one for one in seen["passes"] if one[3]])
    assert len(inside) >= 5 and inside[len(inside) // 2] <= usual[len(usual) // 2] + 1_000_000
