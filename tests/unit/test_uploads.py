"""The order of uploads, their pieces and the room that they may take: one factor at a time."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokencake_sglang.core.costs import Costs
from tokencake_sglang.core.plan import Outcome, Upload, UploadWish
from tokencake_sglang.core.types import PoolView
from tokencake_sglang.core.upload_plan import FIRST_OVERRUN_S
from tokencake_sglang.core.uploads import (
    AGEING,
    CRITICAL_S,
    MIN_UPLOAD_TOKENS,
    UPLOAD_RETRY_S,
    UploadQueue,
    chunk_tokens,
    even_piece,
    room_for,
)

COSTS = Costs(upload_base_s=0.05, upload_token_s=0.001, run_s=0.0)  # 200 tokens in a quarter of a second
POOL = PoolView(
    device_total=10_000, device_free=3_000, device_evictable=5_000, device_dead=0, host_total=20_000, host_free=20_000,
    waiting_requests=0, waiting_head_tokens=0, running_requests=0, loads_in_flight=0, load_slots=13, costs=COSTS)
CHUNK, LEAST = 200, 50


def queue_of(**wishes: UploadWish) -> UploadQueue:
    queue = UploadQueue()
    for key, wish in wishes.items():
        queue.want(100.0, key, wish)
    return queue


def wish(start_by=100.0, tokens=CHUNK, **changes) -> UploadWish:
    return UploadWish(tokens, start_by, **changes)


def all_that_go(queue: UploadQueue, pool: PoolView = POOL, now: float = 100.0) -> list[str]:
    """The agents in the order in which their pieces go, each landing before the next."""
    order = []
    while (piece := queue.next(now, pool)) is not None:
        queue.answered(now, piece[0], Outcome(True, piece[1].max_tokens))
        queue.drop(piece[0])
        queue.ended(now, piece[0])
        order.append(piece[0])
    return order


# -- order ------------------------------------------------------------------------------------------------------


def test_the_agent_that_is_to_be_back_first_goes_first():
    assert all_that_go(queue_of(a=wish(103.0), b=wish(101.0), c=wish(102.0))) == ["b", "c", "a"]


@pytest.mark.parametrize(("ahead", "order"), [(0.9, ["b", "a"]), (1.1, ["a", "b"])])
def test_the_critical_path_goes_first_by_a_bounded_time(ahead, order):
    assert all_that_go(queue_of(a=wish(100.0), b=wish(100.0 + ahead * CRITICAL_S, importance=10.0))) == order


@pytest.mark.parametrize(("waited_s", "order"), [(9.0, ["new", "old"]), (11.0, ["old", "new"])])
def test_who_has_waited_goes_before_one_whose_copy_begins_earlier_by_less(waited_s, order):
    queue = UploadQueue()
    queue.want(100.0, "old", wish(100.0))
    queue.want(100.0 + waited_s, "old", wish(200.0 + 10.0 * AGEING))
    queue.want(100.0 + waited_s, "new", wish(200.0))
    assert all_that_go(queue) == order


def test_nobody_starves_behind_agents_that_are_more_urgent_each_time():
    queue, now = UploadQueue(), 100.0
    for number in range(100):  # the late tool's return is always 2 s away, everybody else's copy is due at once
        queue.want(now, "late", wish(now + 2.0))
        queue.want(now, f"n{number}", wish(now))
        key, piece = queue.next(now, POOL)
        if key == "late":
            break
        queue.answered(now, key, Outcome(True, piece.max_tokens))
        queue.drop(key)
        queue.ended(now, key)
        now += 0.25
    assert key == "late" and now - 100.0 <= 2.0 / AGEING + 0.25


def test_what_is_due_goes_before_what_only_fills_free_memory():
    assert all_that_go(queue_of(early=wish(90.0, is_due=False), due=wish(110.0))) == ["due", "early"]


def test_an_agent_has_one_place_however_often_it_is_decided_about():
    queue = queue_of(a=wish(101.0), b=wish(102.0))
    for _ in range(1000):
        queue.want(100.0, "a", wish(103.0))
    assert len(queue) == 2 and len(queue._heaps[True]) < 100
    assert all_that_go(queue) == ["b", "a"]


# -- the time to begin --------------------------------------------------------------------------------------------


def later(ready_by: float, copy_s: float, **changes) -> UploadWish:
    return wish(ready_by - copy_s, copy_s=copy_s, **changes)


def test_a_copy_of_known_length_waits_until_it_has_to_begin_and_wakes_the_server_then():
    queue = queue_of(a=later(101.0, 0.25))
    begin = 100.75 - FIRST_OVERRUN_S
    assert not queue.any_to_start(begin - 0.01) and queue.next(begin - 0.01, POOL) is None
    assert queue.next_at == pytest.approx(begin)
    assert queue.any_to_start(begin) and queue.next(begin, POOL)[0] == "a" and queue.next_at is None


def test_of_two_copies_that_want_the_link_at_once_the_first_begins_earlier():
    queue = queue_of(a=later(101.0, 0.25), b=later(101.1, 0.25))
    begin = 101.1 - 0.5 - 2 * FIRST_OVERRUN_S
    assert queue.next_at == pytest.approx(begin)
    assert all_that_go(queue, now=begin) == ["a"]
    assert queue.next_at == pytest.approx(101.1 - 0.25 - FIRST_OVERRUN_S)


def test_the_next_piece_waits_until_what_is_left_has_to_begin():
    queue = queue_of(a=later(110.0, 0.75, tokens=600))
    assert queue.next(109.5, POOL) == ("a", Upload(200, None, displaces=True, min_tokens=LEAST))
    queue.answered(109.5, "a", Outcome(True, 200))
    queue.ended(109.6, "a")
    queue.want(109.6, "a", later(110.0, 0.2, tokens=150))
    assert not queue.any_to_start(109.6)
    assert queue.next_at == pytest.approx(109.8 - queue._overrun.mean_s)
    assert queue.any_to_start(109.8)


def test_a_copy_that_waits_while_its_agents_piece_lands_begins_once():
    queue = queue_of(a=later(100.2, 0.25, tokens=400))
    queue.answered(100.0, queue.next(100.0, POOL)[0], Outcome(True, 200))
    queue.want(100.1, "a", later(101.0, 0.25))  # its tool is later than it was thought
    assert not queue.any_to_start(101.0)  # the piece is still under way
    queue.ended(101.0, "a")
    assert all_that_go(queue, now=101.0) == ["a"]


def test_pieces_that_take_longer_than_reckoned_make_the_next_ones_begin_earlier():
    queue, now = queue_of(a=wish()), 100.0
    for _ in range(50):
        queue.answered(now, queue.next(now, POOL)[0], Outcome(True, 200))
        now += COSTS.upload_s(200) + 0.1
        queue.ended(now, "a")
        queue.want(now, "a", wish())
    queue.want(now, "a", later(now + 10.0, 0.25))
    assert queue.next_at == pytest.approx(now + 10.0 - 0.25 - 0.1, abs=0.01)


# -- pieces -----------------------------------------------------------------------------------------------------


def test_a_piece_is_a_quarter_of_a_second_of_the_link_but_never_too_short_for_sglang():
    assert chunk_tokens(COSTS) == CHUNK
    assert chunk_tokens(replace(COSTS, upload_base_s=9.0)) == MIN_UPLOAD_TOKENS
    assert chunk_tokens(Costs(upload_token_s=0.0)) > 10**6


@pytest.mark.parametrize(("tokens", "piece"), [(1, 1), (200, 200), (201, 101), (400, 200), (401, 134), (1000, 200)])
def test_pieces_are_equal_so_that_no_rest_is_too_short_to_load(tokens, piece):
    assert even_piece(tokens, CHUNK) == piece


def test_a_piece_may_displace_only_when_it_is_due():
    assert queue_of(a=wish(tokens=300)).next(100.0, POOL) == ("a", Upload(150, None, displaces=True, min_tokens=LEAST))
    early = queue_of(a=wish(tokens=300, is_due=False)).next(100.0, POOL)
    assert early == ("a", Upload(150, None, displaces=False, min_tokens=LEAST))


def test_the_next_piece_goes_when_the_last_has_landed_and_the_agent_still_wants_it():
    queue = queue_of(a=wish(tokens=600))
    key, piece = queue.next(100.0, POOL)
    queue.answered(100.0, key, Outcome(True, piece.max_tokens))
    assert queue.next(100.0, POOL) is None
    queue.want(100.1, "a", wish(tokens=400))  # decided again while the first is under way
    assert queue.next(100.1, POOL) is None
    queue.ended(100.3, "a")
    assert queue.next(100.3, POOL)[1].max_tokens == 200
    queue.drop("a")
    assert queue.next(100.3, POOL) is None


def test_a_more_urgent_agent_goes_between_two_pieces_of_another():
    queue = queue_of(a=wish(101.0, tokens=600))
    key, piece = queue.next(100.0, POOL)
    queue.answered(100.0, key, Outcome(True, piece.max_tokens))
    queue.want(100.1, "b", wish(99.0))
    queue.ended(100.3, "a")
    assert queue.next(100.3, POOL)[0] == "b"


def test_short_pieces_fill_the_link_and_no_more_wait_on_it_than_a_piece():
    queue = queue_of(**{f"a{i}": wish(100.0 + i, tokens=80) for i in range(5)})
    started = 0
    while (piece := queue.next(100.0, POOL)) is not None:
        queue.answered(100.0, piece[0], Outcome(True, 80))
        started += 1
    assert started == 3  # 160 tokens leave room for one more


# -- room -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("change", "due", "early"), [
    ({}, 8_000, 1_000),
    ({"device_free": 2_000}, 7_000, 0),
    ({"device_dead": 500}, 8_000, 1_500),
    ({"waiting_head_tokens": 700}, 7_300, 300),
    ({"admission_tokens": 700}, 7_300, 300),
    ({"admission_tokens": 700, "waiting_head_tokens": 900}, 7_100, 100),
    ({"admission_tokens": 8_001}, -1, -7_001),
])
def test_the_head_of_the_queue_has_its_memory_first_and_what_is_not_due_leaves_some_free(change, due, early):
    pool = replace(POOL, **change)
    assert (room_for(pool, True), room_for(pool, False)) == (due, early)


@pytest.mark.parametrize(("room", "tokens"), [(49, None), (50, 50), (199, 199), (200, 200), (5_000, 200)])
def test_a_piece_takes_the_room_there_is_and_waits_for_a_quarter_of_one(room, tokens):
    piece = queue_of(a=wish()).next(100.0, replace(POOL, admission_tokens=8_000 - room))
    assert (None if piece is None else piece[1].max_tokens) == tokens


def test_a_short_rest_waits_for_its_own_length_only():
    pool = replace(POOL, admission_tokens=8_000 - 20)
    assert queue_of(a=wish(tokens=20)).next(100.0, pool)[1] == Upload(20, None, displaces=True, min_tokens=20)


@pytest.mark.parametrize(("loads", "starts"), [(12, True), (13, False)])
def test_slots_for_the_loads_of_batches_stay_free(loads, starts):
    assert (queue_of(a=wish()).next(100.0, replace(POOL, loads_in_flight=loads)) is not None) == starts


# -- declines, and the end --------------------------------------------------------------------------------------


def test_a_declined_upload_lets_the_next_one_go_and_is_tried_again_later():
    queue = queue_of(a=wish(100.0), b=wish(101.0))
    queue.answered(100.0, queue.next(100.0, POOL)[0], Outcome(False, reason="no_room"))
    assert queue.next(100.0, POOL)[0] == "b" and queue.next_at == 100.0 + UPLOAD_RETRY_S
    assert queue.next(100.0 + UPLOAD_RETRY_S, POOL)[0] == "a" and queue.next_at is None


def test_when_nothing_is_wanted_nobody_is_woken():
    queue = queue_of(a=wish())
    queue.answered(100.0, queue.next(100.0, POOL)[0], Outcome(False, reason="no_room"))
    queue.drop("a")
    assert queue.next_at is None and not queue


def test_a_flush_forgets_what_was_under_way():
    queue = queue_of(a=wish(tokens=600), b=wish())
    queue.answered(100.0, queue.next(100.0, POOL)[0], Outcome(True, 200))
    queue.clear()
    assert queue.next(100.0, POOL) is None
    queue.want(100.0, "a", wish())
    assert queue.next(100.0, POOL)[0] == "a"


EVENTS = st.lists(st.tuples(
    st.sampled_from(("want", "want early", "drop", "start", "decline", "land")), st.sampled_from("abcd"),
    st.integers(10, 900), st.floats(0.0, 1.0)), max_size=60)


@given(EVENTS, st.integers(0, 9_000))
def test_whatever_happens_a_piece_is_of_the_most_urgent_wish_fits_and_leaves_the_head_its_memory(events, head):
    queue, wishes, flying, now = UploadQueue(), {}, set(), 100.0
    pool = replace(POOL, admission_tokens=head)
    for what, key, tokens, passed in events:
        now += passed
        if what.startswith("want"):
            wishes[key] = UploadWish(tokens, now + passed, is_due=what == "want")
            queue.want(now, key, wishes[key])
        elif what == "drop":
            wishes.pop(key, None)
            queue.drop(key)
        elif what == "land":
            flying.discard(key)
            queue.ended(now, key)
        elif (piece := queue.next(now, pool)) is not None:
            chosen, upload = piece
            assert chosen in wishes and chosen not in flying
            assert upload.min_tokens <= upload.max_tokens <= min(CHUNK, wishes[chosen].tokens)
            assert upload.max_tokens <= room_for(pool, upload.displaces)
            queue.answered(now, chosen, Outcome(what == "start", upload.max_tokens if what == "start" else 0))
            flying |= {chosen} if what == "start" else set()
        assert len(queue) == len(wishes)
