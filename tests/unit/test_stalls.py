"""CallTable: the answer to every event about an agent's tool calls."""

from __future__ import annotations

import itertools

import pytest

from tokencake_sglang.core.config import TokenCakeConfig
from tokencake_sglang.core.forecast import make_forecaster
from tokencake_sglang.core.forecast.curve import SHORTEST_S
from tokencake_sglang.core.stalls import CLOSED_CALLS_KEPT, OPEN_CALLS_MAX, CallTable, Lesson
from tokencake_sglang.core.types import StallView


@pytest.fixture
def calls() -> CallTable:
    return CallTable()


def start(calls, call_id="c1", kind="search", estimate=2.0, now=10.0):
    return calls.start(now, call_id, kind, estimate)


def view(calls, now=10.0, forecast="quantile") -> StallView | None:
    return calls.view(now, make_forecaster(TokenCakeConfig(forecast=forecast)), "planner")


# -- start ------------------------------------------------------------------------------------------------------


def test_a_first_start_is_applied(calls):
    reply = start(calls)
    assert (reply.status, reply.result) == (200, "applied")
    assert list(calls.open) == ["c1"]


def test_the_same_start_again_is_a_duplicate_and_changes_nothing(calls):
    start(calls, now=10.0)
    reply = start(calls, now=11.0)
    assert (reply.status, reply.result) == (200, "duplicate")
    assert calls.open["c1"].started_at == 10.0


@pytest.mark.parametrize("change", [{"kind": "shell"}, {"estimate": 3.0}, {"estimate": None}])
def test_a_start_of_an_open_call_with_other_content_is_a_conflict(calls, change):
    start(calls)
    reply = start(calls, **change)
    assert (reply.status, reply.result) == (409, "conflict")
    assert calls.open["c1"].kind == "search" and calls.open["c1"].estimated_duration_s == 2.0


def test_a_start_of_an_ended_call_is_a_duplicate_and_does_not_open_it_again(calls):
    start(calls)
    calls.finish(12.0, "c1", "ok")
    assert start(calls).result == "duplicate"
    assert start(calls, kind="shell").result == "conflict"
    assert not calls.open


def test_an_estimate_sets_the_predicted_end(calls):
    start(calls, estimate=2.5, now=10.0)
    assert view(calls).predicted_end == 12.5


def test_without_an_estimate_the_default_sets_the_predicted_end(calls):
    start(calls, kind="tool", estimate=None, now=10.0)
    assert view(calls).predicted_end == 11.0


def test_an_estimate_of_zero_is_an_estimate(calls):
    start(calls, estimate=0.0, now=10.0)
    assert view(calls).predicted_end == pytest.approx(10.0, abs=SHORTEST_S)


def test_more_open_calls_than_allowed_are_refused_until_one_ends(calls):
    for i in range(OPEN_CALLS_MAX):
        assert start(calls, call_id=f"c{i}").result == "applied"
    refused = start(calls, call_id="one more")
    assert (refused.status, refused.result) == (409, "conflict")
    calls.finish(12.0, "c0", "ok")
    assert start(calls, call_id="one more").result == "applied"


# -- finish -----------------------------------------------------------------------------------------------------


def test_a_finish_of_an_open_call_is_applied(calls):
    start(calls)
    reply = calls.finish(12.0, "c1", "ok")
    assert (reply.status, reply.result) == (200, "applied")
    assert not calls.open


def test_the_same_finish_again_is_a_duplicate(calls):
    start(calls)
    calls.finish(12.0, "c1", "ok")
    reply = calls.finish(12.0, "c1", "ok")
    assert (reply.status, reply.result) == (200, "duplicate")


def test_a_second_finish_with_another_outcome_is_a_conflict_and_the_first_stands(calls):
    start(calls)
    calls.finish(12.0, "c1", "error")
    assert calls.finish(12.0, "c1", "ok").result == "conflict"
    assert calls.finish(12.0, "c1", "error").result == "duplicate"


@pytest.mark.parametrize("call_id", ["c1", None])
def test_a_finish_before_any_start_is_a_conflict(calls, call_id):
    reply = calls.finish(12.0, call_id, "ok")
    assert (reply.status, reply.result) == (409, "conflict")


def test_a_finish_of_an_unknown_call_leaves_the_open_one_open(calls):
    start(calls)
    assert calls.finish(12.0, "c2", "ok").result == "conflict"
    assert list(calls.open) == ["c1"]


def test_a_finish_after_the_next_request_is_late_once_and_then_a_duplicate(calls):
    start(calls)
    assert calls.end_all() == 1
    late = calls.finish(12.0, "c1", "ok")
    assert (late.status, late.result) == (200, "late_finish")
    assert calls.finish(12.0, "c1", "ok").result == "duplicate"
    assert calls.finish(12.0, "c1", "error").result == "conflict"


def test_a_start_that_comes_after_its_implicit_end_does_not_open_the_call_again(calls):
    start(calls)
    calls.end_all()
    assert start(calls).result == "duplicate"
    assert not calls.open


def test_ending_all_of_no_calls_ends_none(calls):
    assert calls.end_all() == 0


# -- calls without an id ----------------------------------------------------------------------------------------


def test_an_unnamed_call_is_started_and_finished_without_an_id(calls):
    assert start(calls, call_id=None).result == "applied"
    assert calls.finish(12.0, None, "ok").result == "applied"
    assert not calls.open


def test_an_unnamed_start_while_the_unnamed_call_is_open_is_the_same_call(calls):
    start(calls, call_id=None)
    assert start(calls, call_id=None).result == "duplicate"
    assert start(calls, call_id=None, estimate=9.0).result == "conflict"


def test_an_unnamed_start_after_the_finish_is_a_new_call(calls):
    for _ in range(3):
        assert start(calls, call_id=None).result == "applied"
        assert calls.finish(12.0, None, "ok").result == "applied"


def test_an_unnamed_finish_ends_the_one_open_call_even_if_that_has_a_name(calls):
    start(calls, call_id="c1")
    assert calls.finish(12.0, None, "ok").result == "applied"
    assert calls.finish(12.0, "c1", "ok").result == "duplicate"


def test_an_unnamed_finish_with_several_open_calls_is_a_conflict_that_asks_for_the_id(calls):
    start(calls, call_id="c1")
    start(calls, call_id="c2")
    reply = calls.finish(12.0, None, "ok")
    assert reply.result == "conflict" and "call_id" in reply.message
    assert len(calls.open) == 2


def test_an_unnamed_finish_with_nothing_open_is_about_the_call_that_ended_last(calls):
    start(calls, call_id="c1")
    calls.finish(12.0, "c1", "ok")
    start(calls, call_id="c2")
    calls.end_all()
    assert calls.finish(12.0, None, "ok").result == "late_finish"
    assert calls.finish(12.0, None, "ok").result == "duplicate"


# -- several calls ----------------------------------------------------------------------------------------------


def test_calls_taken_together_start_with_the_first_and_end_with_the_last(calls):
    start(calls, call_id="long", kind="shell", estimate=60.0, now=11.0)
    start(calls, call_id="short", kind="search", estimate=1.0, now=10.0)
    found = view(calls, now=11.0)
    assert (found.kind, found.started_at, found.predicted_end, found.open_calls) == ("shell", 10.0, 71.0, 2)
    calls.finish(12.0, "long", "ok")
    found = view(calls, now=12.0)
    assert (found.kind, found.started_at, found.predicted_end, found.open_calls) == ("search", 10.0, 11.0, 1)
    calls.finish(12.0, "short", "ok")
    assert view(calls) is None


def test_the_order_of_starts_and_finishes_of_different_calls_does_not_matter(calls):
    finals = set()
    for order in itertools.permutations([("start", "a"), ("start", "b"), ("finish", "a"), ("finish", "b")]):
        if order.index(("start", "a")) > order.index(("finish", "a")):
            continue
        if order.index(("start", "b")) > order.index(("finish", "b")):
            continue
        table = CallTable()
        for what, name in order:
            reply = start(table, call_id=name) if what == "start" else table.finish(12.0, name, "ok")
            assert reply.result == "applied", order
        finals.add((tuple(table.open), tuple(sorted(table.closed))))
    assert finals == {((), ("a", "b"))}


# -- memory -----------------------------------------------------------------------------------------------------


def test_only_so_many_ended_calls_are_remembered(calls):
    for i in range(3 * CLOSED_CALLS_KEPT):
        start(calls, call_id=f"c{i}")
        calls.finish(12.0, f"c{i}", "ok")
    assert len(calls.closed) == CLOSED_CALLS_KEPT
    assert calls.finish(12.0, f"c{3 * CLOSED_CALLS_KEPT - 1}", "ok").result == "duplicate"
    assert calls.finish(12.0, "c0", "ok").result == "conflict"


def test_unnamed_calls_do_not_grow_without_bound_either(calls):
    for _ in range(3 * CLOSED_CALLS_KEPT):
        start(calls, call_id=None)
        calls.finish(12.0, None, "ok")
    assert len(calls.closed) == CLOSED_CALLS_KEPT


def test_as_many_calls_as_may_be_open_can_all_finish_late(calls):
    for i in range(OPEN_CALLS_MAX):
        start(calls, call_id=f"c{i}")
    calls.end_all()
    assert {calls.finish(12.0, f"c{i}", "ok").result for i in range(OPEN_CALLS_MAX)} == {"late_finish"}


# -- stages -----------------------------------------------------------------------------------------------------

STAGES = (("network", 3.0), ("rank", 1.0))


def staged(calls, call_id="c1", stages=STAGES):
    assert calls.start(10.0, call_id, "search", None, stages).result == "applied"


def test_without_an_estimate_the_sum_of_the_stages_is_the_estimate(calls):
    staged(calls)
    assert view(calls).predicted_end == 14.0


def test_the_same_call_with_other_stages_is_a_conflict(calls):
    staged(calls)
    assert calls.start(10.0, "c1", "search", None, STAGES).result == "duplicate"
    assert calls.start(10.0, "c1", "search", None, STAGES[:1]).result == "conflict"


def test_a_stage_is_finished_once_and_moves_the_predicted_end(calls):
    staged(calls)
    assert calls.finish_stage(15.0, "c1", "network").result == "applied"
    assert calls.finish_stage(15.5, "c1", "network").result == "duplicate"
    assert view(calls, now=15.2).predicted_end == pytest.approx(16.0)


def test_stages_may_finish_in_any_order_and_without_a_call_id_while_one_call_is_open(calls):
    staged(calls)
    assert calls.finish_stage(11.0, None, "rank").result == "applied"
    assert view(calls, now=11.0).predicted_end == pytest.approx(14.0)
    assert calls.finish_stage(12.0, None, "network").result == "applied"


@pytest.mark.parametrize(("call_id", "stage", "words"), [
    ("c1", "parse", "no stage 'parse'"), ("c2", "network", "not started"), (None, "network", "which one")])
def test_a_stage_of_an_unknown_call_an_unknown_stage_and_a_stage_of_several_calls_are_conflicts(
        calls, call_id, stage, words):
    staged(calls)
    if call_id is None:
        staged(calls, "another")
    reply = calls.finish_stage(11.0, call_id, stage)
    assert (reply.status, reply.result) == (409, "conflict") and words in reply.message


def test_a_stage_of_an_ended_call_is_late_and_teaches_nothing(calls):
    staged(calls)
    calls.finish_stage(13.0, "c1", "network")
    calls.finish(14.0, "c1", "ok")
    calls.take_lessons()
    assert calls.finish_stage(15.0, "c1", "rank").result == "late_finish"
    assert calls.finish_stage(15.0, "c1", "network").result == "duplicate"
    assert calls.finish_stage(15.0, "c1", "parse").result == "conflict"
    assert calls.take_lessons() == []


# -- what teaches -----------------------------------------------------------------------------------------------


def test_a_finish_teaches_once(calls):
    start(calls, now=10.0)
    assert calls.take_lessons() == []
    calls.finish(13.0, "c1", "ok")
    assert calls.take_lessons() == [Lesson("search", 2.0, 3.0)]
    calls.finish(14.0, "c1", "ok")
    assert calls.take_lessons() == []


@pytest.mark.parametrize("outcome", ["error", "cancelled"])
def test_a_call_that_failed_teaches_nothing(calls, outcome):
    start(calls)
    calls.finish(13.0, "c1", outcome)
    assert calls.take_lessons() == []


def test_the_next_request_teaches_the_length_of_the_only_call_and_a_late_finish_nothing_more(calls):
    start(calls, now=10.0)
    calls.end_all(14.0)
    assert calls.take_lessons() == [Lesson("search", 2.0, 4.0)]
    calls.finish(15.0, "c1", "ok")
    assert calls.take_lessons() == []


def test_the_next_request_teaches_nothing_of_several_calls(calls):
    start(calls, call_id="c1")
    start(calls, call_id="c2")
    calls.end_all(14.0)
    assert calls.take_lessons() == []


def test_the_end_of_an_agent_teaches_nothing(calls):
    start(calls)
    calls.end_all()
    assert calls.take_lessons() == []


def test_each_stage_teaches_and_the_finish_teaches_the_last_one_and_the_whole(calls):
    staged(calls)
    calls.finish_stage(12.0, "c1", "network")
    assert calls.take_lessons() == [Lesson("search/network", 3.0, 2.0)]
    calls.finish(12.5, "c1", "ok")
    assert calls.take_lessons() == [Lesson("search", 4.0, 2.5), Lesson("search/rank", 1.0, 0.5)]


def test_stages_that_were_not_reported_teach_nothing(calls):
    staged(calls)
    calls.finish(12.5, "c1", "ok")
    assert calls.take_lessons() == [Lesson("search", 4.0, 2.5)]


def test_the_only_stage_of_a_call_is_not_learnt_unless_it_was_reported(calls):
    staged(calls, stages=STAGES[:1])
    calls.finish(12.5, "c1", "ok")
    assert calls.take_lessons() == [Lesson("search", 3.0, 2.5)]


@pytest.mark.parametrize(("kinds", "waits"), [
    ((), False), (("human",), False), (("user_confirm", "human"), False), (("search",), True),
    (("human", "search"), True)])
def test_an_agent_waits_for_tools_unless_all_that_it_waits_for_are_people(calls, kinds, waits):
    for kind in kinds:
        calls.start(100.0, kind, kind, 1.0)
    assert calls.waits_for_tools is waits
