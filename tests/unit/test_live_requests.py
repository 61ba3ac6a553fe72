"""Whether a request waits or runs, wherever it stands."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from tokencake_sglang.engine.requests import NEAR, LiveRequests, count_on_device, on_device, runs_any


def req(rid, reason=None):
    return SimpleNamespace(rid=rid, finished_reason=reason, finished=lambda: reason is not None)


def scheduler(waiting=(), running=(), last=None, chunked=None):
    return SimpleNamespace(
        waiting_queue=list(waiting), running_batch=SimpleNamespace(reqs=list(running)),
        last_batch=None if last is None else SimpleNamespace(reqs=list(last)), chunked_req=chunked)


WAITING = [req(f"w{number}") for number in range(3 * NEAR)]
RUNNING = [req("runs"), req("ended", "stop")]
FULL = scheduler([req("aborted", "abort"), *WAITING], RUNNING, [req("last")], req("chunked"))


@pytest.mark.parametrize("rid", ["w0", f"w{NEAR}", f"w{3 * NEAR - 1}", "runs", "last", "chunked"])
def test_a_request_that_waits_or_runs_is_found_wherever_it_is(rid):
    assert rid in LiveRequests(FULL)


@pytest.mark.parametrize("rid", ["ended", "aborted", "gone", ""])
def test_one_that_has_ended_or_vanished_is_not(rid):
    live = LiveRequests(FULL)
    assert rid not in live and rid not in live


@pytest.mark.parametrize(("last", "chunked", "runs"), [
    (None, None, False), ([], None, False), ([req("l")], None, True), (None, req("c"), True),
    ([req("l", "stop")], req("c", "abort"), False)])
def test_those_on_the_device_are_counted_as_they_are_listed(last, chunked, runs):
    given = scheduler(running=[req("r", "stop")], last=last, chunked=chunked)
    assert count_on_device(given) == len(on_device(given))
    assert runs_any(given) is runs
