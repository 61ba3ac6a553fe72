"""0006-prefill-estimates.patch on SGLang's own PrefillAdder: each test fails without the lines that it names."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from tests.support.cache_fixture import CacheHarness
from tests.support.transfer_clock import TransferClock

ROOM, RATIO, ASKED, PROMPT, PAGE = 128, 0.5, 64, 16, 1


@pytest.fixture
def tiered(monkeypatch):
    clock = TransferClock()
    clock.install(monkeypatch)
    return CacheHarness(clock, device_tokens=ROOM)


def expects(tokens):
    return SimpleNamespace(expected_new_tokens=lambda req: tokens)


def adder(tiered, *extensions, running=()):
    from sglang.srt.managers.schedule_policy import PrefillAdder

    return PrefillAdder(
        PAGE, tiered.cache, tiered.allocator, SimpleNamespace(reqs=list(running)), RATIO, 10**6, None,
        extensions=extensions)


def waiting(tiered, first=100, asked=ASKED):
    req = tiered.request(range(first, first + PROMPT))
    req.sampling_params.max_new_tokens = asked
    req.init_next_round_input(tiered.cache)
    return req


@pytest.mark.parametrize(("expected", "counted"), [((), 32), ((10,), 10), ((90, 10, 30), 10), ((40,), 32)])
def test_a_running_request_counts_with_the_smallest_expectation_but_never_more_than_its_share(
        tiered, expected, counted):
    """In `_get_running_request_total_token_offset`, `_expected_new_tokens` and `__init__`."""
    found = adder(tiered, *map(expects, expected), running=[waiting(tiered)])
    assert found.rem_total_token_offset == counted


def test_a_ratio_of_nothing_leaves_no_count_and_no_error(tiered):
    """In `_get_running_request_total_token_offset`."""
    found = adder(tiered, expects(10))
    found.new_token_ratio = 0.0
    assert found._get_running_request_total_token_offset(waiting(tiered)) == 0


@pytest.mark.parametrize(("expected", "counted"), [((), ASKED), ((10,), 10), ((90,), ASKED)])
def test_an_admitted_request_takes_of_the_room_what_is_expected_of_it(tiered, expected, counted):
    """In `_update_prefill_budget`."""
    found = adder(tiered, *map(expects, expected))
    found.add_one_req(waiting(tiered), False, None)
    assert found.rem_total_token_offset == PROMPT + counted + PAGE


@pytest.mark.parametrize(("expected", "admitted"), [((), 0), ((10,), 1), ((112,), 0)])
def test_a_request_that_asks_for_more_than_the_device_has_goes_if_what_is_expected_fits(tiered, expected, admitted):
    """In `add_one_req`."""
    found = adder(tiered, *map(expects, expected))
    found.add_one_req(waiting(tiered, asked=4 * ROOM), False, None)
    assert len(found.can_run_list) == admitted
