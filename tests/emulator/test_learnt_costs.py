"""What the server learns of its costs in an emulated run is what the run's profile charges."""

from __future__ import annotations

import pytest

from tests.emulator.specs import TOKENCAKE, code_writer

JOB = "tests.emulator.cost_jobs:learnt_costs"


@pytest.fixture(scope="module")
def learnt(emulations):
    started = {overlap: emulations.submit(JOB, code_writer(TOKENCAKE, overlap=overlap, oracle=False, samples=0))
               for overlap in (False, True)}
    return {overlap: run.result() for overlap, run in started.items()}


@pytest.mark.parametrize("overlap", [False, True], ids=["normal", "overlap"])
def test_copies_and_passes_cost_what_the_profile_says_in_both_loops(learnt, overlap):
    result = learnt[overlap]
    assert result["samples"] > 100
    for tokens, upload_s, offload_s, told_upload_s, told_offload_s in result["copies"]:
        assert told_upload_s == pytest.approx(upload_s, rel=0.2), tokens
        assert told_offload_s == pytest.approx(offload_s, rel=0.2), tokens
    for new, position, seconds, told_s in result["passes"]:
        assert told_s == pytest.approx(seconds, rel=0.2), (new, position)


@pytest.mark.parametrize("overlap", [False, True], ids=["normal", "overlap"])
def test_decode_steps_and_arithmetic_cost_what_the_profile_says_in_both_loops(learnt, overlap):
    host_s = 0.0 if overlap else learnt[overlap]["step_overhead_s"]  # nothing hides it in the ordinary loop
    for requests, context, seconds, told_s in learnt[overlap]["decodes"]:
        assert told_s == pytest.approx(seconds + host_s, rel=0.1), (requests, context)
    for tokens, seconds, told_s in learnt[overlap]["arithmetic"]:
        assert told_s == pytest.approx(seconds, rel=0.2), tokens


@pytest.mark.parametrize("overlap", [False, True], ids=["normal", "overlap"])
def test_policies_see_what_was_learnt_within_the_share_that_is_told(learnt, overlap):
    result = learnt[overlap]
    for seen, learnt_last in zip(result["told"], result["figures"], strict=True):
        assert seen == pytest.approx(learnt_last, rel=0.15, abs=1e-9)


def test_a_server_knows_its_copies_before_its_first_request_as_a_real_one_does(emulations):
    first = emulations.run("tests.emulator.cost_jobs:first_costs", code_writer(TOKENCAKE))
    assert first["samples"] == 6
    for tokens, upload_s, offload_s, told_upload_s, told_offload_s in first["copies"]:
        assert told_upload_s == pytest.approx(upload_s, rel=0.02), tokens
        assert told_offload_s == pytest.approx(offload_s, rel=0.02), tokens
