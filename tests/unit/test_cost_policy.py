"""The policy `cost`: one factor at a time, both sides of every boundary."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tokencake_sglang.core.config import TokenCakeConfig
from tokencake_sglang.core.costs import Costs
from tokencake_sglang.core.forecast import LEVELS, Forecast
from tokencake_sglang.core.plan import Backup, CancelOffload, UploadWish
from tokencake_sglang.core.policy import make_policy
from tokencake_sglang.core.policy.cost import PLAN_AHEAD_S, REPLAN_MIN_S, RETURN_GAP_S, SHORT_WAIT_S, CostPolicy
from tokencake_sglang.core.types import AgentView, Footprint, PoolView, StallView

CONFIG = TokenCakeConfig(offload_policy="cost", min_offload_tokens=64)
COSTS = Costs(upload_base_s=0.0, upload_token_s=0.01, run_s=0.0)  # 200 tokens: 2 s, so the lead is 2.15 s
FULL = PoolView(
    device_total=10_000, device_free=1_000, device_evictable=5_000, device_dead=0, host_total=20_000, host_free=20_000,
    waiting_requests=0, waiting_head_tokens=0, running_requests=0, loads_in_flight=0, load_slots=13, costs=COSTS)
ROOMY = replace(FULL, device_free=2_000)
COPIED = Footprint(device_tokens=300, host_tokens=300, unshared_device_tokens=200, backed_up_tokens=200)
UNCOPIED = replace(COPIED, host_tokens=0, backed_up_tokens=0)
AWAY = Footprint(device_tokens=100, host_tokens=300, restore_tokens=200)
WAITS = AgentView("a", None, False, None, None, None, None, COPIED)
BACK = replace(WAITS, returned_at=110.0, footprint=AWAY)
NOW = 110.0


def decide(agent, pool=FULL, now=NOW):
    return CostPolicy(CONFIG).decide(now, agent, pool)


def waits(low_s: float, median_s: float, **changes) -> AgentView:
    """An agent that returns in `low_s` with 5 % probability and in `median_s` in the median."""
    left = tuple(low_s if level <= 0.05 else median_s for level in LEVELS)
    stall = StallView("tool", 100.0, NOW + median_s, 1, Forecast(left, 10.0 + median_s, "history"))
    return replace(WAITS, stall=stall, **changes)


def test_the_config_names_the_policy():
    assert isinstance(make_policy(CONFIG), CostPolicy)


@pytest.mark.parametrize(("move", "action"), [(None, None), ("upload", None), ("backup", None),
                                              ("offload", CancelOffload())])
def test_kv_of_an_agent_with_a_request_is_used_now(move, action):
    decision = decide(replace(waits(1.0, 60.0), active=True, move=move))
    assert (decision.action, decision.next_use, decision.wake_at) == (action, NOW, None)


@pytest.mark.parametrize(("wait_s", "again_s"), [(40.0, 20.0), (0.4, SHORT_WAIT_S)])
def test_an_agent_that_waits_in_the_queue_is_looked_at_again_because_others_may_go_before_it(wait_s, again_s):
    decision = decide(replace(WAITS, active=True, queue_wait_s=wait_s))
    assert (decision.next_use, decision.wake_at) == (NOW + wait_s, NOW + again_s)


def test_an_agent_without_kv_on_any_tier_is_looked_at_again_at_its_next_event_only():
    for agent in (replace(WAITS, active=True, queue_wait_s=40.0), waits(0.1, 60.0), waits(30.0, 60.0)):
        assert decide(agent).wake_at is not None
        none = decide(replace(agent, footprint=Footprint()))
        assert (none.action, none.wake_at, none.wish) == (None, None, None)
        assert decide(replace(agent, footprint=Footprint(host_tokens=1))).wake_at is not None


@pytest.mark.parametrize(("now", "next_use", "wake_at"), [
    (100.0, 100.0, 100.25),  # its answer has just ended: no rest yet
    (110.0, 120.0, 115.0),  # as long as it has rested
    (130.0, 160.0, 145.0),
    (150.0, 185.0, 167.5),  # the middle of what is left, which is nearer
    (219.8, 219.9, 220.0),
])
def test_idle_kv_within_its_time_is_expected_as_long_as_it_has_rested_or_at_the_middle_of_the_rest(
        now, next_use, wake_at):
    decision = decide(replace(WAITS, idle_since=100.0, used_until=220.0), now=now)
    assert decision.next_use == pytest.approx(next_use) and decision.wake_at == pytest.approx(wake_at)
    assert decision.action is None


def test_idle_kv_whose_time_is_over_is_ordinary():
    decision = decide(replace(WAITS, idle_since=100.0, used_until=NOW))
    assert (decision.next_use, decision.wake_at) == (None, None)


def test_idle_kv_within_its_time_gets_its_copy_as_other_kv():
    assert decide(replace(WAITS, idle_since=100.0, used_until=220.0, footprint=UNCOPIED)).action == Backup()


@pytest.mark.parametrize("low_s", [2.0, 30.0, 59.0])
def test_waiting_kv_is_expected_at_the_median_and_looked_at_again_when_its_agent_may_have_returned(low_s):
    decision = decide(waits(low_s, 60.0))
    assert (decision.action, decision.next_use, decision.wake_at) == (None, NOW + 60.0, NOW + low_s + REPLAN_MIN_S)


@pytest.mark.parametrize("changes", [
    {"footprint": UNCOPIED}, {"move": "backup"}, {"queue_wait_s": 1.1}])
def test_where_a_decision_may_change_before_it_is_looked_at_again_half_way(changes):
    agent = waits(59.0, 60.0, **changes)
    assert decide(agent).wake_at == NOW + 0.5 * (60.0 + agent.queue_wait_s)
    assert decide(waits(59.0, 60.0, queue_wait_s=1.0)).wake_at == NOW + 60.0 + REPLAN_MIN_S


def test_kv_that_is_away_is_looked_at_again_when_its_upload_can_be_planned():
    assert decide(waits(59.0, 60.0, footprint=AWAY)).wake_at == pytest.approx(NOW + 59.0 - 2.15 - PLAN_AHEAD_S)
    planned = decide(waits(7.1, 7.2, footprint=AWAY))
    assert planned.wish is not None and planned.wake_at == NOW + 3.6, "more of it may leave" 


def test_a_return_that_is_due_is_looked_at_again_soon_but_not_at_once():
    assert decide(waits(0.1, 0.2)).wake_at == NOW + REPLAN_MIN_S


@pytest.mark.parametrize(("now", "left"), [(105.0, 5.0), (110.0, 10.0), (125.0, 25.0)])
def test_without_a_forecast_the_point_estimate_counts_and_a_late_call_lasts_as_long_again(now, left):
    agent = replace(WAITS, stall=StallView("tool", 100.0, 110.0, 1))
    assert decide(agent, now=now).next_use == now + left


@pytest.mark.parametrize(("footprint", "pool", "action"), [
    (UNCOPIED, FULL, Backup()),
    (UNCOPIED, ROOMY, None),  # a fifth of the pool is free: memory is not short
    (UNCOPIED, replace(ROOMY, device_free=1_999), Backup()),
    (UNCOPIED, replace(FULL, device_dead=1_000), None),
    (COPIED, FULL, None),
    (replace(COPIED, backed_up_tokens=137), FULL, None),
    (replace(COPIED, backed_up_tokens=136), FULL, Backup()),
])
def test_copies_are_made_while_an_agent_is_away_and_memory_is_short(footprint, pool, action):
    assert decide(waits(30.0, 60.0, footprint=footprint), pool).action == action
    assert decide(replace(WAITS, footprint=footprint), pool).action == action


def test_no_copy_is_asked_for_while_a_move_is_under_way():
    assert decide(waits(30.0, 60.0, footprint=UNCOPIED, move="upload")).action is None


def wanted_by(start_by: float, **changes) -> UploadWish:
    return UploadWish(200, pytest.approx(start_by), copy_s=2.0, **changes)


@pytest.mark.parametrize(("low_s", "wake_at"), [
    (2.15, NOW + 5.0),  # it is due, and looked at again half way to the median
    (2.25, NOW + 0.1),  # planned, and looked at again when it is due
    (7.1, NOW + 4.95)])
def test_an_upload_is_wished_for_ahead_so_that_it_can_be_planned_and_says_when_it_has_to_begin(low_s, wake_at):
    decision = decide(waits(low_s, 10.0, footprint=AWAY))
    assert decision.action is None and decision.wake_at == pytest.approx(wake_at)
    assert decision.wish == wanted_by(NOW + low_s - 2.15)


def test_an_upload_is_not_yet_planned_long_before_its_return_is_near():
    decision = decide(waits(7.2, 30.0, footprint=AWAY))
    assert decision.wish is None and decision.wake_at == pytest.approx(NOW + 7.2 - 2.15 - PLAN_AHEAD_S)


def test_copies_on_the_host_are_made_while_an_upload_is_planned_only():
    missing = replace(UNCOPIED, restore_tokens=200)
    assert decide(waits(2.25, 10.0, footprint=missing)).action == Backup()
    assert decide(waits(2.15, 10.0, footprint=missing)).action is None


@pytest.mark.parametrize(("missing", "move", "wanted"), [
    (200, None, True), (10, None, True), (9, None, False),  # SGLang loads back nothing shorter than 10
    (200, "upload", True),  # a piece is under way, and this much is left
    (200, "offload", False), (200, "backup", False)])
def test_what_is_missing_is_wanted_back_unless_another_move_is_under_way(missing, move, wanted):
    footprint = replace(AWAY, restore_tokens=missing)
    for agent in (waits(0.1, 1.0, footprint=footprint, move=move), replace(BACK, footprint=footprint, move=move)):
        wish = decide(agent).wish
        assert (wish is not None) == wanted
        assert wish is None or (wish.tokens, wish.is_due) == (missing, True)


def test_a_wish_says_when_its_copy_has_to_begin_and_how_important_the_agent_is():
    agent = waits(1.0, 10.0, footprint=AWAY, importance=7.0)
    assert decide(agent).wish == wanted_by(NOW + 1.0 - 2.15, importance=7.0)
    assert decide(replace(BACK, queue_wait_s=4.0)).wish == wanted_by(NOW + 4.0 - 2.15)


EARLY, DUE = waits(30.0, 60.0, footprint=AWAY), waits(1.0, 10.0, footprint=AWAY)
LATER_WISH = wanted_by(NOW + 30.0 - 2.15, is_due=False)


@pytest.mark.parametrize(("upload", "early", "due", "back"), [
    ("timer", None, wanted_by(NOW - 1.15), True),
    ("at-return", None, None, True),
    ("at-stall", LATER_WISH, wanted_by(NOW - 1.15, is_due=False), True),
    ("hybrid", LATER_WISH, wanted_by(NOW - 1.15), True),
    ("none", None, None, False),
])
def test_the_setting_says_when_missing_kv_is_wanted_back(upload, early, due, back):
    policy = CostPolicy(TokenCakeConfig(upload=upload))
    assert [policy.decide(NOW, agent, FULL).wish for agent in (EARLY, DUE)] == [early, due]
    assert (policy.decide(NOW, BACK, FULL).wish is not None) == back


def test_an_agent_that_has_returned_is_expected_now_for_a_while():
    decision = decide(BACK)
    assert (decision.next_use, decision.wake_at) == (NOW, NOW + RETURN_GAP_S)
    late = decide(BACK, now=NOW + RETURN_GAP_S)
    assert (late.action, late.wish, late.next_use, late.wake_at) == (None, None, None, None)


def test_nobody_knows_when_an_agent_without_an_open_call_comes_again():
    assert decide(WAITS).next_use is None


def test_kv_of_an_agent_is_used_only_when_its_turn_in_the_queue_comes():
    assert decide(replace(WAITS, active=True, queue_wait_s=40.0)).next_use == NOW + 40.0
    assert decide(replace(BACK, queue_wait_s=40.0)).next_use == NOW + 40.0
    assert decide(waits(30.0, 60.0, queue_wait_s=40.0)).next_use == NOW + 100.0


def test_an_upload_waits_for_the_turn_of_the_agents_next_request():
    due = waits(1.0, 60.0, footprint=AWAY)
    assert decide(due).wish is not None
    assert decide(replace(due, queue_wait_s=40.0)).wish is None
