"""How long a request waits in a queue that SGLang orders."""

from __future__ import annotations

import pytest

from tokencake_sglang.core.spatial.pace import MEMORY_S
from tokencake_sglang.core.spatial.places import QueuePlaces
from tokencake_sglang.core.spatial.scheduler import LONGEST_WAIT_S


@pytest.fixture
def places() -> QueuePlaces:
    """Two requests a second were admitted, and three wait."""
    places = QueuePlaces()
    for number in range(int(2 * MEMORY_S)):
        places.joined(f"before-{number}")
        places.admitted(100.0, f"before-{number}")
    places.ordered(["first", "second", "third"])
    return places


def test_the_wait_is_the_place_in_the_queue_at_the_pace_of_the_last_admissions(places):
    assert [places.wait_s([rid]) for rid in ("first", "second", "third")] == [0.5, 1.0, 1.5]


def test_of_several_requests_the_first_counts_and_one_that_does_not_wait_has_no_wait(places):
    assert places.wait_s(["third", "running", "second"]) == 1.0
    assert places.wait_s(["running"]) == places.wait_s([]) == 0.0


def test_one_that_has_just_joined_counts_as_the_first_until_the_queue_is_ordered(places):
    places.joined("new")
    assert places.wait_s(["new"]) == 0.5
    places.ordered(["first", "second", "third", "new"])
    assert places.wait_s(["new"]) == 2.0


def test_one_that_has_left_the_queue_waits_no_more(places):
    places.ordered(["third"])
    assert (places.wait_s(["first"]), places.wait_s(["third"])) == (0.0, 0.5)
    places.admitted(100.0, "third")
    assert places.wait_s(["third"]) == 0.0


def test_the_chunks_of_one_prompt_are_one_admission(places):
    places.admitted(100.0, "first")
    pace = places.pace.per_s
    places.admitted(100.0, "first")
    assert places.pace.per_s == pace


def test_no_wait_is_told_that_is_longer_than_the_longest():
    places = QueuePlaces()
    places.ordered([str(number) for number in range(100)])
    assert places.wait_s(["99"]) == LONGEST_WAIT_S
