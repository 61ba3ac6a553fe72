"""Turns after tools beside first prompts in chunks, as the launcher starts TokenCake."""

from __future__ import annotations

import pytest

from tests.emulator.conftest import JOBS
from tests.emulator.specs import HICACHE

AGENTS = {"agents": 3, "turns": 5, "context_tokens": 20_000, "output_tokens": 30, "tool_wait": 1.5, "qps": 0.5,
          "arrival": "poisson"}
CHUNKS = {"enable_mixed_chunk": True, "chunked_prefill_size": 1024}


@pytest.fixture(scope="module")
def results(emulations):
    def spec(**settings):
        configuration = {"name": "turns", "server_args": {**HICACHE, **CHUNKS}, "tokencake": settings}
        return {"workload": {"name": "tool_turns", "seed": 1, "params": AGENTS}, "configuration": configuration,
                "pool_tokens": 100_000, "samples": 20}

    beside = {"order": "program", "chunks": "balanced"}
    return [emulations.run(JOBS + "run_spec", spec(**settings), mutation) for settings, mutation in (
        (beside, ""), (beside, "nobody_beside_a_long_prompt"))]


def test_a_turn_after_a_tool_does_not_wait_for_the_end_of_anothers_long_prompt(results):
    def slowest_turn(result):
        return max(call["first_token_s"] - call["submitted_s"] for call in result["calls"] if call["after_tool_s"])

    beside, behind = map(slowest_turn, results)
    assert beside < behind / 3


def test_the_outputs_are_the_same_and_nothing_is_computed_again(results):
    beside, behind = results
    assert beside["output_sha256"] == behind["output_sha256"]
    assert beside["counts"]["recomputed_tokens"] == beside["counts"]["retracted"] == 0
