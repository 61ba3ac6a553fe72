"""How long a request waits in a queue that SGLang orders."""

from __future__ import annotations

import pytest

from tokencake_sglang.core.spatial.pace import MEMORY_S
from tokencake_sglang.core.spatial.places import QueuePlaces
from tokencake_sglang.core.spatial.scheduler import LONGEST_WAIT_S

NOW = 10 * MEMORY_S


@pytest.fixture
def places() -> QueuePlaces:
    """Two requests a second were admitted while others waited, and three wait."""
    places, before = QueuePlaces(), [f"before-{number}" for number in range(int(20 * MEMORY_S))]
    waiting = ["first", "second", "third"]
    for rid in before + waiting:
        places.joined(0.0, rid)
    for number, rid in enumerate(before, start=1):
        places.ordered(NOW, [rid, *waiting])
        places.admitted(number / 2, rid)
    places.ordered(NOW, waiting)
    return places


def test_the_wait_is_the_place_in_the_queue_at_the_pace_of_the_last_admissions(places):
    assert [places.wait_s([rid]) for rid in ("first", "second", "third")] == pytest.approx([0.5, 1.0, 1.5], rel=0.03)


def test_of_several_requests_the_first_counts_and_one_that_does_not_wait_has_no_wait(places):
    assert places.wait_s(["third", "running", "second"]) == places.wait_s(["second"]) > 0
    assert places.wait_s(["running"]) == places.wait_s([]) == 0.0


def test_one_that_has_just_joined_counts_as_the_first_until_the_queue_is_ordered(places):
    places.joined(NOW, "new")
    assert places.wait_s(["new"]) == places.wait_s(["first"])
    places.ordered(NOW, ["first", "second", "third", "new"])
    assert places.wait_s(["new"]) == pytest.approx(4 * places.wait_s(["first"]))


def test_one_that_has_left_the_queue_waits_no_more(places):
    one = places.wait_s(["first"])
    places.ordered(NOW, ["third"])
    assert (places.wait_s(["first"]), places.wait_s(["third"])) == (0.0, one)
    places.admitted(NOW, "third")
    assert places.wait_s(["third"]) == 0.0


def test_the_chunks_of_one_prompt_are_one_admission(places):
    places.admitted(NOW, "first")
    pace = places.pace.per_s
    places.admitted(NOW, "first")
    assert places.pace.per_s == pace


def test_no_wait_is_told_that_is_longer_than_the_longest():
    places = QueuePlaces()
    places.joined(0.0, "0")
    places.admitted(LONGEST_WAIT_S, "0")
    places.ordered(LONGEST_WAIT_S, [str(number) for number in range(100)])
    assert places.wait_s(["99"]) == LONGEST_WAIT_S


@pytest.mark.parametrize("went_away", [True, False])
def test_time_in_which_nobody_waits_does_not_count(places, went_away):
    pace = places.pace.per_s
    if went_away:
        places.ordered(NOW, [])
    else:
        for rid in ("first", "second", "third"):
            places.admitted(NOW, rid)
        pace = places.pace.per_s
    places.joined(NOW + 3600, "late")
    places.admitted(NOW + 3600, "late")
    assert places.pace.per_s >= pace
