"""The published score: every gate and every term, one factor at a time, both sides of every boundary."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.unit.test_controller import Server
from tokencake_sglang.core.config import TokenCakeConfig
from tokencake_sglang.core.costs import Costs
from tokencake_sglang.core.plan import CancelOffload, Offload, Release
from tokencake_sglang.core.policy import make_policy
from tokencake_sglang.core.policy.score import BACKOFF_S, BLOCK_TOKENS, CHURN_S, Case, ScorePolicy
from tokencake_sglang.core.types import AgentView, Footprint, PoolView, StallView, WaitingView

CONFIG = TokenCakeConfig(offload_policy="score", min_offload_tokens=64)
COSTS = Costs(upload_base_s=0.0, upload_token_s=2**-11, offload_base_s=0.0, offload_token_s=2**-11, run_s=0.0)
POOL = PoolView(  # 1,024 blocks, 128 free: usage 0.875
    device_total=16_384, device_free=2_048, device_evictable=0, device_dead=0, host_total=65_536, host_free=65_536,
    waiting_requests=1, waiting_head_tokens=0, running_requests=1, loads_in_flight=0, load_slots=13,
    waiting=(WaitingView("w", 4_096, 2_560),), costs=COSTS)
FOOTPRINT = Footprint(device_tokens=512, unshared_device_tokens=512, path_tokens=512)  # 32 blocks, 0.25 s each way
STALL = StallView("tool", 100.0, 120.0, 1)
STALLED = AgentView("a", None, False, STALL, None, None, None, FOOTPRINT)
RELEASE_AT = 120.0 - 1.25 * 0.25
# D = 3 s, T = 0.5 s, 32 blocks, usage 0.7: every gate is open, no penalty, no emergency
CASE = Case(stall_s=3.0, transfer_s=0.5, blocks=32, usage=0.7, free=10, waiting_demand=33, fit_demand=32, waiting=1,
            host_free_tokens=512, host_needed_tokens=512, importance=0.0, near_completion=False, churn_blocks=0,
            churned=False)
IMPORTANT = replace(CASE, importance=8.0, stall_s=20.0)


def decide(now, agent=STALLED, pool=POOL, config=CONFIG):
    return ScorePolicy(config).decide(now, agent, pool)


def terms(**changes):
    return dict(replace(CASE, **changes).terms())


def test_the_config_names_the_policy():
    assert isinstance(make_policy(CONFIG), ScorePolicy)


# -- gates ------------------------------------------------------------------------------------------------------


def test_with_every_gate_open_nothing_is_refused():
    assert CASE.refusal() is None and IMPORTANT.refusal() is None


@pytest.mark.parametrize(
    ("case", "changes", "reason"),
    [
        (CASE, {"waiting": 0}, "nobody waits"),
        (CASE, {"fit_demand": 0}, "no waiting request fits into the memory"),
        (CASE, {"fit_demand": 1}, None),
        (CASE, {"host_free_tokens": 511}, "the host has no room"),
        (CASE, {"stall_s": 0.5}, "the copies take as long as the tool"),
        (CASE, {"stall_s": 0.25}, "the copies take as long as the tool"),
        (CASE, {"stall_s": 0.5 + 2**-10}, "the copies take too much of the stall"),
        (CASE, {"stall_s": 1.5 - 2**-10}, "the copies take too much of the stall"),
        (CASE, {"stall_s": 1.5}, None),
        (CASE, {"stall_s": 0.0499, "transfer_s": 0.0}, "the copies take too much of the stall"),
        (CASE, {"stall_s": 0.05, "transfer_s": 0.0}, None),
        (CASE, {"usage": 0.599, "waiting_demand": 10}, "the device has room"),
        (CASE, {"usage": 0.60, "waiting_demand": 10}, None),
        (CASE, {"usage": 0.599, "waiting_demand": 11}, None),
        (CASE, {"usage": 0.599, "fit_demand": 31}, "the device has room"),
        (CASE, {"usage": 0.60, "fit_demand": 31}, None),
        (IMPORTANT, {"near_completion": True}, "it is too important"),
        (IMPORTANT, {"near_completion": True, "importance": 7.99}, None),
        (IMPORTANT, {"stall_s": 4.5}, None),
        (IMPORTANT, {"stall_s": 4.5 - 2**-10}, "it is too important"),
        (IMPORTANT, {"stall_s": 4.5 - 2**-10, "importance": 7.99}, None),
        (IMPORTANT, {"stall_s": 0.5, "transfer_s": 0.0}, None),
        (IMPORTANT, {"stall_s": 0.499, "transfer_s": 0.0}, "it is too important"),
    ])
def test_each_gate_shuts_at_its_boundary(case, changes, reason):
    assert replace(case, **changes).refusal() == reason


def test_the_gates_are_asked_in_the_published_order():
    shut = {
        "nobody waits": {"waiting": 0}, "no waiting request fits into the memory": {"fit_demand": 0},
        "the host has no room": {"host_free_tokens": 0}, "the copies take as long as the tool": {"stall_s": 0.1},
        "the copies take too much of the stall": {"stall_s": 1.0},
        "the device has room": {"usage": 0.1, "waiting_demand": 0},
        "it is too important": {"importance": 9.0, "near_completion": True}}
    case = CASE
    for reason, changes in reversed(shut.items()):
        case = replace(case, **changes)
        assert case.refusal() == reason


@pytest.mark.parametrize(
    ("changes", "emergency"),
    [({}, True), ({"usage": 0.849}, False), ({"waiting": 0}, False), ({"stall_s": 5.49}, False),
     ({"transfer_s": 2.0, "stall_s": 10.0}, True), ({"transfer_s": 2.0, "stall_s": 9.99}, False)])
def test_an_emergency_is_a_full_device_a_long_stall_and_somebody_who_waits(changes, emergency):
    case = replace(CASE, **{"usage": 0.85, "stall_s": 5.5} | changes)
    assert case.emergency == emergency


# -- terms ------------------------------------------------------------------------------------------------------


def test_the_terms_of_the_plain_case():
    assert terms() == pytest.approx({
        "stall": 5.0, "pressure": 0.6 + 1.0, "fit": 1.0, "upload_safety": 1.0, "cpu": 1.0, "importance": 0.0,
        "near_completion": 0.0, "churn": 0.0})


@pytest.mark.parametrize(
    ("name", "changes", "value"),
    [
        ("stall", {"stall_s": 3.5}, 6.0), ("stall", {"stall_s": 3.6}, 6.0), ("stall", {"stall_s": 3.4}, 5.8),
        ("stall", {"transfer_s": 0.25, "stall_s": 1.0}, 3.0), ("stall", {"transfer_s": 0.125, "stall_s": 1.125}, 4.0),
        ("pressure", {"usage": 0.6, "waiting_demand": 0}, 0.0), ("pressure", {"usage": 0.5, "waiting_demand": 0}, 0.0),
        ("pressure", {"usage": 1.0, "waiting_demand": 0}, 2.4), ("pressure", {"usage": 0.5, "waiting_demand": 66}, 2.0),
        ("pressure", {"usage": 0.5, "waiting_demand": 67}, 2.0), ("pressure", {"usage": 0.5}, 1.0),
        ("fit", {"fit_demand": 16}, 0.5), ("fit", {"fit_demand": 64}, 2.0), ("fit", {"fit_demand": 65}, 2.0),
        ("upload_safety", {"stall_s": 1.0}, 1.0), ("upload_safety", {"stall_s": 0.999}, -1.0),
        ("cpu", {"host_free_tokens": 511}, -4.0),
        ("importance", {"importance": 10.0}, -3.5), ("near_completion", {"near_completion": True}, -2.0),
        ("churn", {"churned": True}, -1.5), ("churn", {"churned": True, "churn_blocks": 64}, -1.5),
        ("churn", {"churned": True, "churn_blocks": 72}, -2.5), ("churn", {"churned": True, "churn_blocks": 96}, -5.5),
        ("churn", {"churned": True, "churn_blocks": 97}, -5.5),
    ])
def test_each_term_alone(name, changes, value):
    plain, changed = terms(), terms(**changes)
    assert changed[name] == pytest.approx(value)
    others = set(plain) - {name, "stall", "pressure", "upload_safety"}
    assert {key: plain[key] for key in others} == {key: changed[key] for key in others}


# -- from views to a case ---------------------------------------------------------------------------------------


def case(agent=STALLED, pool=POOL, config=CONFIG, now=100.0):
    return ScorePolicy(config).case(now, agent, agent.stall, pool)


def test_the_views_give_seconds_and_blocks_of_sixteen_tokens():
    assert case() == Case(
        stall_s=20.0, transfer_s=0.5, blocks=32, usage=0.875, free=128, waiting_demand=160, fit_demand=160, waiting=1,
        host_free_tokens=65_536, host_needed_tokens=512, importance=0.0, near_completion=False, churn_blocks=0,
        churned=False)
    assert case(now=115.0).stall_s == 5.0 and BLOCK_TOKENS == 16


def test_a_request_fits_into_free_dead_and_freed_memory_and_no_more():
    def fit(missing, **changes):
        return case(pool=replace(POOL, waiting=(WaitingView("w", 9_999, missing),), **changes)).fit_demand
    assert fit(2_560) == 160 and fit(2_561) == 0
    assert fit(2_561, device_dead=16) == 161
    assert fit(0) == 1


@pytest.mark.parametrize(("selection", "demand"), [("first_fit", 2), ("best_fit", 4)])
def test_the_first_or_the_largest_fitting_request_justifies_the_offload(selection, demand):
    waiting = tuple(WaitingView("w", 9_999, n) for n in (9_000, 32, 64, 16))
    config = replace(CONFIG, score_selection=selection)
    found = case(pool=replace(POOL, waiting=waiting), config=config)
    assert (found.fit_demand, found.waiting_demand) == (demand, 563 + 2 + 4 + 1)


def test_tokens_that_the_host_has_already_need_no_room_there():
    agent = replace(STALLED, footprint=replace(FOOTPRINT, backed_up_tokens=500))
    assert case(agent).host_needed_tokens == 12
    assert isinstance(decide(100.0, agent, replace(POOL, host_free=12)).action, Offload)
    assert decide(100.0, agent, replace(POOL, host_free=11)).reason == "the host has no room"


@pytest.mark.parametrize(("at", "churned"), [(None, False), (99.5, False), (99.85, True), (100.0, True)])
def test_an_agent_that_was_offloaded_a_moment_ago_churns(at, churned):
    found = case(replace(STALLED, offloaded_at=at, offloaded_tokens=1_280))
    assert (found.churned, found.churn_blocks) == (churned, 80 if churned else 0)
    assert CHURN_S == 0.2


@pytest.mark.parametrize(("given", "used"), [(-1.0, 0.0), (3.0, 3.0), (11.0, 10.0)])
def test_importance_counts_from_0_to_10(given, used):
    assert case(replace(STALLED, importance=given)).importance == used


# -- decisions --------------------------------------------------------------------------------------------------


def test_under_pressure_a_long_stall_with_a_fitting_waiter_offloads_until_the_return_is_near():
    decision = decide(100.0, pool=replace(POOL, device_free=3_072))
    assert (decision.action, decision.wake_at) == (Offload(RELEASE_AT), RELEASE_AT)
    assert decision.reason == "the score is high enough"
    figures = dict(decision.figures)
    assert figures.pop("score") == pytest.approx(sum(figures.values()))


def test_an_emergency_is_named():
    assert decide(100.0).reason == "the score is high enough, in an emergency"


def test_a_refusal_looks_again_after_the_back_off_and_no_later_than_the_return_is_near():
    decision = decide(100.0, pool=replace(POOL, waiting=()))
    assert (decision.action, decision.reason, decision.wake_at) == (None, "nobody waits", 100.0 + BACKOFF_S)
    assert decide(119.5, pool=replace(POOL, waiting=())).wake_at == RELEASE_AT
    assert BACKOFF_S == 0.4


@pytest.mark.parametrize(("importance", "allowed"), [(4.7, True), (4.9, False)])
def test_the_score_has_to_reach_one(importance, allowed):
    # stall 2, pressure 0.06 + 0.06, fit 0.06, safety 1, cpu 1, churn -1.5: 2.68 less 0.35 of the importance
    agent = replace(
        STALLED, stall=StallView("tool", 100.0, 101.5, 1), importance=importance, offloaded_at=100.0,
        offloaded_tokens=16)
    pool = replace(POOL, device_free=6_400, waiting=(WaitingView("w", 32, 32),))
    decision = decide(100.0, agent, pool)
    score = dict(decision.figures)["score"]
    assert isinstance(decision.action, Offload) == allowed == (score >= 1.0)
    assert allowed or decision.reason == "the score is too low"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [({"path_tokens": 0}, "it has no prefix to use again"),
     ({"unshared_device_tokens": 63}, "too little unshared KV on the device")])
def test_an_agent_without_anything_to_move_sleeps_until_the_return_is_near(changes, reason):
    decision = decide(100.0, replace(STALLED, footprint=replace(FOOTPRINT, **changes)))
    assert (decision.action, decision.reason) == (None, reason)
    assert decision.wake_at >= RELEASE_AT


@pytest.mark.parametrize("now", [RELEASE_AT, 119.9, 500.0])
def test_when_the_return_is_near_the_lease_ends_and_nothing_is_uploaded(now):
    agent = replace(STALLED, footprint=Footprint(host_tokens=512, restore_tokens=512, path_tokens=512))
    assert decide(now, replace(agent, lease_until=RELEASE_AT)).action == Release()
    assert decide(now, agent).action is None


@pytest.mark.parametrize(("now", "wake"), [(105.0, RELEASE_AT), (RELEASE_AT, None)])
def test_an_offload_under_way_is_waited_for(now, wake):
    decision = decide(now, replace(STALLED, move="offload", lease_until=RELEASE_AT))
    assert (decision.action, decision.reason, decision.wake_at) == (None, "a move is under way", wake)


def test_the_return_cancels_the_offload_or_ends_the_lease():
    back = replace(STALLED, stall=None, returned_at=110.0, lease_until=RELEASE_AT)
    assert decide(110.0, replace(back, move="offload")).action == CancelOffload()
    assert decide(110.0, back).action == Release()
    assert decide(110.0, replace(STALLED, active=True, move="offload")).action == CancelOffload()
    assert decide(110.0, replace(back, returned_at=None)).action == Release()


def test_the_controller_tells_when_the_last_offload_ended_and_what_it_took_and_forgets_it_with_the_agent():
    server = Server()
    server.stalled()
    assert server.controller.view(server.agent()).offloaded_at is None
    server.mechanism.land("a")
    server.at(101.0)
    view = server.controller.view(server.agent())
    assert (view.offloaded_at, view.offloaded_tokens) == (101.0, 200)
    server.send("agent_finished")
    server.ask()
    assert server.controller.view(server.agent()).offloaded_at is None


def test_a_whole_stall_under_the_score_moves_once_and_ends_with_no_lease_and_no_upload():
    server = Server(offload_policy="score")
    waits = WaitingView("w", 20_000, 20_000)

    class Crowded(type(server.mechanism)):
        def pool(self, demand=True):
            return replace(super().pool(demand), waiting_requests=1, waiting=(waits,))

        def footprint(self, key):
            return replace(super().footprint(key), path_tokens=200)

    server.mechanism.__class__ = Crowded
    server.mechanism.free = 30_000
    server.stalled()
    server.mechanism.land("a")
    for now in (101.0, 119.5, 119.95, 121.0, 130.0):
        server.at(now)
    server.finish()
    server.at(131.0)
    assert server.mechanism.actions() == ["Offload", "Release"] and not server.mechanism.protected
    record = server.controller.records[0]
    assert record.missing_tokens == 200 and dict(record.first.decision.figures)["score"] > 1.0
