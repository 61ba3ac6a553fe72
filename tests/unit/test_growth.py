"""How much more memory requests hold at a time than now."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokencake_sglang.core.spatial.growth import most_at_once


def simulated(left, frees):
    """Step by step: everyone generates a token, then those that are done give everything back."""
    now = most = 0
    for step in range(1, max(left, default=0) + 1):
        now += sum(step <= one for one in left)
        most = max(most, now)
        now -= sum(one + more for one, more in zip(left, frees, strict=True) if one == step)
    return most


@pytest.mark.parametrize(("left", "frees", "most"), [
    ([], [], 0),
    ([30], [500], 30),
    ([30, 50], [0, 0], 60),  # the first gives back its 30, the other takes 20 more
    ([30, 30], [500, 500], 60),
    ([10, 100, 100], [500, 0, 0], 30),  # what the first gives back is enough for all
    ([10, 100, 100], [20, 0, 0], 180),  # 30 before its end, then 20 + 10 of 180 are there again
    ([10, 400], [0, 0], 400),
    ([0.5, 0.5], [0, 0], 1.0),
])
def test_it_is_the_most_before_enough_has_been_given_back(left, frees, most):
    assert most_at_once(left, frees.__getitem__) == most


@given(st.lists(st.tuples(st.integers(1, 40), st.integers(0, 60)), max_size=8))
def test_it_is_what_a_simulation_of_every_step_finds(requests):
    left, frees = [one for one, _ in requests], [more for _, more in requests]
    assert most_at_once(left, frees.__getitem__) == simulated(left, frees)


@given(st.lists(st.tuples(st.integers(1, 40), st.integers(0, 60)), max_size=8), st.integers(1, 40))
def test_one_more_request_never_lowers_it_and_adds_no_more_than_it_generates(requests, own):
    left, frees = [one for one, _ in requests], [more for _, more in requests]
    alone, together = most_at_once(left, frees.__getitem__), most_at_once([*left, own], [*frees, 0].__getitem__)
    assert alone <= together <= alone + own


def test_those_that_end_after_enough_was_given_back_are_not_asked():
    asked = []
    most_at_once([10.0, 20.0, 30.0], lambda i: asked.append(i) or 1000)
    assert asked == [0]
