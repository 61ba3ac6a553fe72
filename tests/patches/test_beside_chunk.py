"""0008-beside-chunk.patch on SGLang's own PrefillAdder: each test fails without the lines that it names."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from tests.support.prefill_adder import PAGE, adder

ROOM, CHUNK, LONG, SHORT = 512, 64, 200, 16


def keeps(tokens):
    return SimpleNamespace(
        running_growth=lambda reqs, counted: 8.0 * len(reqs),
        new_request_growth=lambda req, admitted, counted: min(8, counted),
        tokens_beside_chunk=lambda req: tokens)


def prompt(tiered, length, first):
    req = tiered.request(range(first, first + length))
    req.init_next_round_input(tiered.cache)
    return req


@pytest.mark.parametrize(("kept", "computed"), [((), CHUNK), ((0,), CHUNK), ((20,), 44), ((20, 30), 34), ((99,), PAGE)])
def test_the_rest_of_a_prompt_leaves_what_an_extension_keeps_for_others_and_has_at_least_a_page(
        tiered, kept, computed):
    """In `add_chunked_req` and `_tokens_beside_chunk`."""
    found, long = adder(tiered, *map(keeps, kept), chunk=CHUNK), prompt(tiered, LONG, 1000)
    assert found.add_chunked_req(long) is long, "it goes on in the next batch"
    assert long.extend_range.length == computed


@pytest.mark.parametrize(("kept", "goes"), [(SHORT, True), (0, False)])
def test_a_short_prompt_goes_whole_into_what_was_left_to_it(tiered, kept, goes):
    """In `add_chunked_req`."""
    found, short = adder(tiered, keeps(kept), chunk=CHUNK), prompt(tiered, SHORT, 5000)
    found.add_chunked_req(prompt(tiered, LONG, 1000))
    found.add_one_req(short, True, None)
    assert (short in found.can_run_list) is goes and found.new_chunked_req is None


def test_one_that_does_not_fit_whole_is_not_begun_beside_it(tiered):
    """In `add_one_req`: the scheduler computes one prompt at a time in chunks, and stops at a second."""
    found = adder(tiered, keeps(SHORT), chunk=CHUNK)
    found.add_chunked_req(prompt(tiered, LONG, 1000))
    assert found.add_one_req(prompt(tiered, LONG, 5000), True, None).name == "OTHER"
    assert len(found.can_run_list) == 1 and found.new_chunked_req is None


def test_behind_a_prompt_that_ends_another_one_may_begin(tiered):
    """In `add_one_req`."""
    found, last = adder(tiered, keeps(SHORT), chunk=CHUNK), prompt(tiered, SHORT, 1000)
    assert found.add_chunked_req(last) is None
    long = prompt(tiered, LONG, 5000)
    found.add_one_req(long, False, None)
    assert found.new_chunked_req is long and long.extend_range.length == CHUNK - SHORT


def test_no_extension_keeps_anything_by_itself():
    from sglang.srt.managers.scheduler_extension import SchedulerExtension

    assert SchedulerExtension().tokens_beside_chunk(object()) == 0
