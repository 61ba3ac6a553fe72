"""0006-prefill-estimates.patch on SGLang's own PrefillAdder: each test fails without the lines that it names."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from tests.support.prefill_adder import PAGE, adder

ROOM, ASKED, PROMPT = 128, 64, 16


def counts(running=None, new=None):
    """An extension that counts so, each time as a function of what SGLang counts; None: as SGLang does."""
    told = []

    def running_growth(reqs, tokens):
        told.append((reqs, tokens))
        return tokens if running is None else running

    def new_request_growth(req, admitted, tokens):
        told.append((req, list(admitted), tokens))
        return tokens if new is None else min(tokens, new)

    return SimpleNamespace(running_growth=running_growth, new_request_growth=new_request_growth, told=told)


def waiting(tiered, first=100, asked=ASKED):
    req = tiered.request(range(first, first + PROMPT))
    req.sampling_params.max_new_tokens = asked
    req.init_next_round_input(tiered.cache)
    return req


@pytest.mark.parametrize(("running", "counted"), [((), 32), ((None,), 32), ((10,), 10), ((90,), 90), ((90, None), 90)])
def test_running_requests_count_with_what_an_extension_says_more_or_less(tiered, running, counted):
    """In `__init__`."""
    req, extensions = waiting(tiered), [counts(one) for one in running]
    found = adder(tiered, *extensions, running=[req], mixed=3)
    assert found.rem_total_token_offset == 3 + counted
    assert all(extension.told[0][0] == [req] for extension in extensions)
    assert [extension.told[0][1] for extension in extensions] in ([], [32], [32, 90])


@pytest.mark.parametrize(("new", "counted"), [((), ASKED), ((10,), 10), ((90,), ASKED), ((30, 10), 10)])
def test_an_admitted_request_takes_of_the_room_what_an_extension_says(tiered, new, counted):
    """In `_update_prefill_budget`."""
    found = adder(tiered, *(counts(new=one) for one in new))
    found.add_one_req(waiting(tiered), False, None)
    assert found.rem_total_token_offset == PROMPT + counted + PAGE


@pytest.mark.parametrize(("new", "admitted"), [((), 0), ((10,), 1), ((112,), 0)])
def test_a_request_that_asks_for_more_than_the_device_has_goes_if_what_is_said_fits(tiered, new, admitted):
    """In `add_one_req`."""
    found = adder(tiered, *(counts(new=one) for one in new))
    found.add_one_req(waiting(tiered, asked=4 * ROOM), False, None)
    assert len(found.can_run_list) == admitted


def test_a_request_is_counted_beside_those_that_were_admitted_before_it(tiered):
    """In `add_one_req` and `_update_prefill_budget`."""
    extension = counts(new=5)
    found, first, second = adder(tiered, extension), waiting(tiered), waiting(tiered, first=500)
    for req in (first, second):
        found.add_one_req(req, False, None)
    assert extension.told[1:] == [
        (first, [], ASKED), (first, [], ASKED), (second, [first], ASKED), (second, [first], ASKED)]
