"""When copies have to begin on one link: as late as lets all of them be back in time."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokencake_sglang.core.upload_plan import (
    FIRST_OVERRUN_S,
    OVERRUN_MOST_S,
    PLANNED_MOST,
    LinkPlan,
    Overrun,
    latest_starts,
)


@pytest.mark.parametrize(("jobs", "starts"), [
    ([], []),
    ([(10.0, 2.0)], [8.0]),
    ([(10.0, 2.0), (20.0, 3.0)], [8.0, 17.0]),  # far apart: each as if it were alone
    ([(10.0, 2.0), (11.0, 3.0)], [6.0, 8.0]),  # the second takes the link when the first would still need it
    ([(10.0, 2.0), (10.5, 1.0), (11.0, 3.0)], [5.0, 7.0, 8.0]),
    ([(10.0, 0.0), (11.0, 3.0)], [8.0, 8.0]),
])
def test_a_copy_begins_earlier_than_alone_only_as_far_as_the_link_is_taken(jobs, starts):
    assert latest_starts(jobs) == starts


@given(st.lists(st.tuples(st.floats(0.0, 20.0), st.floats(0.01, 3.0)), max_size=12))
def test_begun_then_all_are_in_time_one_after_another_and_none_could_begin_later(jobs):
    jobs = sorted(jobs)
    starts = latest_starts(jobs)
    ends = [start + copy_s for start, (_, copy_s) in zip(starts, jobs, strict=True)]
    for index, (ready_by, _) in enumerate(jobs):
        following = starts[index + 1] if index + 1 < len(jobs) else math.inf
        assert ends[index] <= min(ready_by, following) + 1e-9
        assert ends[index] >= min(ready_by, following) - 1e-9


def plan_of(**jobs: tuple[float, float]) -> LinkPlan:
    plan = LinkPlan()
    for key, (ready_by, copy_s) in jobs.items():
        plan.set(key, ready_by, copy_s, is_held=True)
    return plan


def test_a_plan_holds_a_copy_until_it_has_to_begin():
    plan = plan_of(a=(10.0, 2.0), b=(11.0, 3.0))
    assert plan.next_at == 6.0 and plan.take_due(5.9) == [] and plan.holds("a")
    assert plan.take_due(6.0) == ["a"] and not plan.holds("a")
    assert plan.next_at == 8.0 and plan.holds("b") and plan.take_due(6.0) == []


def test_a_copy_that_goes_on_takes_its_part_of_the_link():
    plan = plan_of(a=(10.0, 2.0))
    plan.set("b", 11.0, 3.0, is_held=False)
    assert plan.next_at == 6.0
    plan.set("b", 11.0, 0.5, is_held=False)  # most of it has landed
    assert plan.next_at == 8.0
    plan.remove("b")
    assert plan.next_at == 8.0


def test_a_newer_wish_takes_the_place_of_the_older_and_a_copy_that_is_gone_counts_for_nothing():
    plan = plan_of(a=(10.0, 2.0), b=(11.0, 3.0))
    plan.set("b", 30.0, 3.0, is_held=True)
    assert plan.next_at == 8.0
    plan.remove("a")
    assert plan.next_at == 27.0 and plan.take_due(27.0) == ["b"]
    plan.remove("b")
    plan.remove("b")
    assert plan.next_at is None
    plan.set("a", 10.0, 2.0, is_held=True)
    plan.clear()
    assert plan.next_at is None and not plan.holds("a") and plan.take_due(math.inf) == []


def test_only_the_copies_that_are_to_be_back_first_are_reckoned():
    plan = plan_of(**{f"a{number}": (10.0 + number, 0.5) for number in range(PLANNED_MOST)}, late=(1000.0, 5000.0))
    assert plan.next_at == 9.5


def test_the_overrun_of_pieces_is_a_moving_mean_of_bounded_values():
    overrun = Overrun()
    assert overrun.mean_s == FIRST_OVERRUN_S
    for _ in range(200):
        overrun.observe(0.1)
    assert overrun.mean_s == pytest.approx(0.1)
    overrun.observe(60.0)
    assert 0.1 < overrun.mean_s <= 0.1 * 0.9 + OVERRUN_MOST_S * 0.1 + 1e-9
    for _ in range(200):
        overrun.observe(-5.0)
    assert overrun.mean_s == pytest.approx(0.0, abs=1e-6)
