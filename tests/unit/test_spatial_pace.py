"""How fast waiting requests are admitted, by the time in which somebody waits."""

from __future__ import annotations

import pytest

from tokencake_sglang.core.spatial.pace import FASTEST, SLOWEST, Pace


def test_while_somebody_always_waits_the_pace_is_that_of_the_admissions():
    pace = Pace()
    pace.joined(0.0)
    for number in range(1, 101):
        pace.left(0.5 * number, waiting=3, admitted=True)
    assert pace.per_s == pytest.approx(2.0, rel=0.05)


def test_time_in_which_nobody_waits_does_not_count():
    pace = Pace()
    for number in range(50):  # one request in a minute, which is admitted after a fifth of a second
        pace.joined(60.0 * number)
        pace.left(60.0 * number + 0.2, waiting=0, admitted=True)
    assert pace.per_s == pytest.approx(5.0, rel=0.05)


def test_requests_that_never_wait_are_as_fast_as_is_told():
    pace = Pace()
    for number in range(50):
        pace.joined(60.0 * number)
        pace.left(60.0 * number, waiting=0, admitted=True)
    assert pace.per_s == FASTEST


def test_a_request_that_goes_away_counts_by_the_time_that_it_waited():
    pace = Pace()
    pace.joined(0.0)
    pace.left(1.0, waiting=1, admitted=True)
    assert pace.per_s == pytest.approx(1.0, rel=0.1)
    pace.left(2.0, waiting=0, admitted=False)
    assert pace.per_s == pytest.approx(0.5, rel=0.1)
    pace.joined(100.0)
    pace.left(100.0, waiting=0, admitted=False)
    assert pace.per_s == pytest.approx(0.5, rel=0.1)


def test_the_last_moments_count_most():
    pace = Pace()
    pace.joined(0.0)
    for number in range(1, 101):
        pace.left(0.1 * number, waiting=1, admitted=True)
    for number in range(1, 31):
        pace.left(10.0 + 2.0 * number, waiting=1, admitted=True)
    assert pace.per_s == pytest.approx(0.5, rel=0.15)


def test_nothing_is_known_before_the_first_admission():
    pace = Pace()
    assert pace.per_s == SLOWEST
    pace.joined(0.0)
    assert pace.per_s == SLOWEST
