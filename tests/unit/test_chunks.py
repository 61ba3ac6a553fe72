"""How many prompt tokens are computed beside decoding requests."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tokencake_sglang.core.costs import Costs
from tokencake_sglang.core.spatial.chunks import MIN_PROMPT_TOKENS, balanced_chunk

COSTS = Costs(compute_token_s=1e-4, compute_pair_s=1e-8, decode_base_s=0.02, decode_request_s=2e-4, decode_token_s=1e-7)


def test_a_chunk_takes_as_long_as_the_decoding_beside_it():
    tokens = balanced_chunk(COSTS, 10, 110_000, 0)
    decoding_s = 0.02 + 0.002 + 0.011
    assert COSTS.compute_s(tokens) <= decoding_s < COSTS.compute_s(tokens + 1)


def test_decoding_requests_are_tokens_of_it_and_compute_too():
    costs = replace(COSTS, decode_request_s=1e-4)  # as much as a token computes
    more = balanced_chunk(costs, 100, 110_000, 0) - balanced_chunk(costs, 10, 110_000, 0)
    assert more == pytest.approx(90, abs=1)


@pytest.mark.parametrize(("change", "larger"), [
    ({"context": 220_000}, True), ({"requests": 40}, True), ({"position": 20_000}, False)])
def test_it_grows_with_what_decodes_and_shrinks_with_what_a_prompt_token_costs(change, larger):
    usual = {"requests": 10, "context": 110_000, "position": 0}
    before, after = balanced_chunk(COSTS, **usual), balanced_chunk(COSTS, **{**usual, **change})
    assert (after > before) is larger and after != before


@pytest.mark.parametrize("costs", [
    replace(COSTS, compute_token_s=1.0), replace(COSTS, compute_pair_s=1.0),
    replace(COSTS, decode_base_s=0.0, decode_token_s=0.0)])
def test_a_prompt_goes_on_however_dear_it_is(costs):
    assert balanced_chunk(costs, 30, 1000, 10) == 30 + MIN_PROMPT_TOKENS


def test_costs_of_nothing_give_a_size_all_the_same():
    assert balanced_chunk(Costs(*[0.0] * len(Costs().to_tuple())), 1, 1, 1) == 1 + MIN_PROMPT_TOKENS
    assert balanced_chunk(replace(COSTS, compute_token_s=0.0, compute_pair_s=0.0), 1, 1, 1) > 10**8


def test_before_anything_is_measured_it_is_of_the_size_that_small_servers_want():
    assert 128 <= balanced_chunk(Costs(), 1, 5000, 0) <= 512
