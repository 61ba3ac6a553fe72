"""Who goes beside the rest of a long prompt: one condition at a time."""

from __future__ import annotations

import pytest

from tokencake_sglang.core.spatial.beside import BESIDE_SHARE, BESIDE_TOKENS, LONG_REST, Candidate, go_beside

REST, ROOM, MOST = 5000, 10_000, 4096


def short(rid="s", prompt_tokens=200, total_tokens=3000):
    return Candidate(rid, prompt_tokens, total_tokens)


def room() -> int:
    return ROOM


def test_a_short_request_goes_beside_a_long_prompt():
    assert go_beside(REST, room, MOST, [short()]) == ({"s": None}, 200)


@pytest.mark.parametrize(("one", "goes"), [
    (short(prompt_tokens=BESIDE_TOKENS), True), (short(prompt_tokens=BESIDE_TOKENS + 1), False),
    (short(total_tokens=ROOM), True), (short(total_tokens=ROOM + 1), False)])
def test_it_goes_if_its_tokens_fit_into_the_batch_and_all_of_it_onto_the_device(one, goes):
    assert bool(go_beside(REST, room, MOST, [one])[0]) is goes


@pytest.mark.parametrize(("rest", "goes"), [(LONG_REST, True), (LONG_REST - 1, False)])
def test_nobody_goes_beside_a_prompt_of_which_little_is_left(rest, goes):
    assert bool(go_beside(rest, room, MOST, [short()])[0]) is goes


@pytest.mark.parametrize(("rest", "goes"), [(201, True), (200, False)])
def test_whoever_needs_as_much_as_is_left_of_the_long_prompt_waits_for_its_end(rest, goes, monkeypatch):
    monkeypatch.setattr("tokencake_sglang.core.spatial.beside.LONG_REST", 0)
    assert bool(go_beside(rest, room, MOST, [short()])[0]) is goes


def test_others_have_a_part_of_a_batch_however_small_it_is():
    most = int(200 / BESIDE_SHARE)
    assert go_beside(REST, room, most, [short()])[1] == 200
    assert go_beside(REST, room, most - 2, [short()])[1] == 0


def test_several_go_together_in_the_order_of_the_queue_and_nobody_overtakes_one_that_does_not_fit():
    waiting = [short("a"), short("b"), short("long", prompt_tokens=400), short("c", prompt_tokens=10)]
    assert go_beside(REST, room, MOST, waiting) == ({"a": None, "b": None}, 400)


def test_each_leaves_less_room_to_the_next():
    waiting = [short("a", total_tokens=6000), short("b", total_tokens=6000), short("c", total_tokens=4000)]
    assert list(go_beside(REST, room, MOST, waiting)[0]) == ["a"]


def test_without_room_beside_what_the_long_prompt_needs_nobody_goes():
    assert go_beside(REST, lambda: -1, MOST, [short(total_tokens=0)]) == ({}, 0)


def test_room_is_reckoned_once_and_only_if_somebody_would_go():
    asked = []
    for waiting in ([short(prompt_tokens=BESIDE_TOKENS + 1)], [short("a"), short("b")]):
        go_beside(REST, lambda: asked.append(ROOM) or ROOM, MOST, waiting)
        go_beside(LONG_REST - 1, lambda: asked.append(ROOM) or ROOM, MOST, waiting)
    assert len(asked) == 1
