"""Algorithm 1: one factor at a time, both sides of every boundary."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.unit.test_controller import Server
from tokencake_sglang.core.config import TokenCakeConfig
from tokencake_sglang.core.costs import Costs
from tokencake_sglang.core.forecast import LEVELS, Forecast
from tokencake_sglang.core.plan import CancelOffload, Offload, Release, Upload
from tokencake_sglang.core.policy import make_policy
from tokencake_sglang.core.policy.eager import RETRY_S
from tokencake_sglang.core.policy.paper import RECHECK_S, PaperPolicy, best_fit, throughput
from tokencake_sglang.core.policy.published import LEAD_FACTOR, LEAD_MIN_S
from tokencake_sglang.core.types import AgentView, Footprint, PoolView, StallView, WaitingView
from tokencake_sglang.core.uploads import MIN_UPLOAD_TOKENS

CONFIG = TokenCakeConfig(offload_policy="paper", lease_s=5.0, min_offload_tokens=64)
# Exact in binary: 256 tokens take 0.5 s each way, and 1,024 tokens are computed in a second.
COSTS = Costs(upload_base_s=0.0, upload_token_s=2**-9, offload_base_s=0.0, offload_token_s=2**-9, run_s=0.0,
              prefill_base_s=0.0, prefill_token_s=2**-10)
FITS = WaitingView("w", 19_456, 19_456)  # 19 s of prefill: exactly the window of a stall of 20 s
POOL = PoolView(
    device_total=100_000, device_free=1_000, device_evictable=0, device_dead=0, host_total=200_000, host_free=200_000,
    waiting_requests=1, waiting_head_tokens=0, running_requests=1, loads_in_flight=0, load_slots=13, waiting=(FITS,),
    costs=COSTS)
ON_DEVICE = Footprint(device_tokens=256, unshared_device_tokens=256, path_tokens=256)
ON_HOST = Footprint(host_tokens=256, restore_tokens=256, path_tokens=256)
STALL = StallView("tool", 100.0, 120.0, 1)
STALLED = AgentView("a", None, False, STALL, None, None, None, ON_DEVICE)
OFFLOADED = replace(STALLED, footprint=ON_HOST, lease_until=180.0)
BACK = replace(OFFLOADED, stall=None, returned_at=110.0)
UPLOAD_AT = 120.0 - 1.25 * 0.5


def decide(now, agent, pool=POOL, config=CONFIG):
    return PaperPolicy(config).decide(now, agent, pool)


def queue(*tokens):
    return replace(POOL, waiting=tuple(WaitingView(f"w{i}", n, n) for i, n in enumerate(tokens)))


def expected(seconds):
    forecast = Forecast((1.0,) * len(LEVELS), seconds, "history")
    return replace(STALLED, stall=replace(STALL, forecast=forecast))


def test_the_config_names_the_policy():
    assert isinstance(make_policy(CONFIG), PaperPolicy)


def test_throughput_is_the_rate_of_prefill_and_a_prefill_that_costs_nothing_is_no_error():
    assert throughput(COSTS) == 1024.0
    assert throughput(replace(COSTS, prefill_token_s=0.0)) > 1e8


@pytest.mark.parametrize(
    ("tokens", "chosen"),
    [((), None), ((101,), None), ((100,), 0), ((50, 100, 70), 1), ((70, 101, 50), 0), ((60, 60), 0)])
def test_the_best_fit_is_the_longest_request_that_is_not_longer_than_the_window_allows(tokens, chosen):
    waiting = queue(*tokens).waiting
    assert best_fit(waiting, 100.0) is (None if chosen is None else waiting[chosen])


def test_a_request_that_can_be_served_while_the_tool_runs_offloads():
    decision = decide(100.0, STALLED)
    assert decision.action == Offload(180.0)
    assert (decision.reason, decision.wake_at) == ("a waiting request can be served meanwhile", UPLOAD_AT)
    assert dict(decision.figures) == {
        "remaining_s": 20.0, "transfer_s": 1.0, "capacity_tokens": 19_456.0, "fit_tokens": 19_456.0}


def test_a_request_longer_by_one_token_does_not():
    decision = decide(100.0, STALLED, queue(19_457))
    assert (decision.action, decision.reason) == (None, "no waiting request can be served meanwhile")
    assert decision.wake_at == 100.0 + RECHECK_S


def test_without_a_waiting_request_nothing_is_ever_offloaded():
    decision = decide(100.0, STALLED, queue())
    assert (decision.action, decision.reason, decision.wake_at) == (None, "nobody waits", 100.0 + RECHECK_S)


def test_it_looks_again_no_later_than_the_return_is_near():
    assert decide(UPLOAD_AT - 0.1, STALLED, queue()).wake_at == UPLOAD_AT


@pytest.mark.parametrize(("length", "offloads"), [(1.0, False), (1.0 + 2**-10, True)])
def test_the_tool_has_to_take_longer_than_both_copies(length, offloads):
    agent = replace(STALLED, stall=StallView("tool", 100.0, 100.0 + length, 1))
    decision = decide(100.0, agent, queue(1))
    assert isinstance(decision.action, Offload) == offloads
    assert offloads or decision.reason == "the copies take as long as the tool"


def test_time_that_has_passed_shrinks_the_window():
    assert isinstance(decide(105.0, STALLED, queue(14 * 1024)).action, Offload)
    assert decide(105.0, STALLED, queue(14 * 1024 + 1)).action is None


def test_a_forecast_counts_by_its_expected_length():
    assert isinstance(decide(102.0, expected(10.0), queue(7 * 1024)).action, Offload)
    assert decide(102.0, expected(10.0), queue(7 * 1024 + 1)).action is None


@pytest.mark.parametrize(("tokens", "offloads"), [(63, False), (64, True)])
def test_fewer_unshared_tokens_than_the_least_stay(tokens, offloads):
    agent = replace(STALLED, footprint=replace(ON_DEVICE, unshared_device_tokens=tokens))
    decision = decide(100.0, agent)
    assert isinstance(decision.action, Offload) == offloads
    assert offloads or decision.reason == "too little unshared KV on the device"


def test_the_upload_starts_one_and_a_quarter_copies_before_the_predicted_end_and_not_before():
    assert decide(UPLOAD_AT - 1e-6, OFFLOADED).action is None
    decision = decide(UPLOAD_AT, OFFLOADED)
    assert (decision.action, decision.reason) == (Upload(1_000, 125.0), "the tool is about to return")
    assert LEAD_FACTOR == 1.25


@pytest.mark.parametrize(("now", "uploads"), [(119.89, False), (119.91, True)])
def test_the_lead_of_a_short_copy_is_a_tenth_of_a_second(now, uploads):
    agent = replace(OFFLOADED, footprint=replace(ON_HOST, restore_tokens=MIN_UPLOAD_TOKENS))
    assert isinstance(decide(now, agent).action, Upload) == uploads
    assert LEAD_MIN_S == 0.1


def test_nothing_is_offloaded_when_the_return_is_near():
    decision = decide(UPLOAD_AT, STALLED)
    assert (decision.action, decision.reason, decision.wake_at) == (None, "ready for the return", 125.0)


@pytest.mark.parametrize(("missing", "uploads"), [(MIN_UPLOAD_TOKENS - 1, False), (MIN_UPLOAD_TOKENS, True)])
def test_fewer_tokens_than_sglang_loads_back_are_not_uploaded(missing, uploads):
    for now, agent in ((119.95, OFFLOADED), (110.0, BACK)):
        agent = replace(agent, footprint=replace(ON_HOST, restore_tokens=missing))
        assert isinstance(decide(now, agent).action, Upload) == uploads


@pytest.mark.parametrize(
    ("changes", "room"),
    [({}, 1_000), ({"device_dead": 5}, 1_005), ({"waiting_head_tokens": 999}, 1), ({"waiting_head_tokens": 1_000}, 0),
     ({"loads_in_flight": 12}, 1_000), ({"loads_in_flight": 13}, 0)])
def test_an_upload_takes_memory_that_nobody_waits_for_and_a_free_slot_or_looks_again_soon(changes, room):
    decision = decide(UPLOAD_AT, OFFLOADED, replace(POOL, **changes))
    assert decision.action == (Upload(room, 125.0) if room else None)
    assert decision.wake_at == UPLOAD_AT + RETRY_S


@pytest.mark.parametrize(("now", "wake"), [(105.0, UPLOAD_AT), (119.9, 125.0), (125.0, None)])
@pytest.mark.parametrize("move", ["offload", "upload"])
def test_while_a_move_is_under_way_no_second_one_starts(move, now, wake):
    footprint = replace(ON_DEVICE, restore_tokens=0)
    decision = decide(now, replace(STALLED, move=move, footprint=footprint))
    assert (decision.action, decision.reason, decision.wake_at) == (None, "a move is under way", wake)


def test_a_late_agent_on_the_device_loses_its_protection_when_the_lease_ends():
    agent = replace(STALLED, lease_until=125.0)
    assert decide(124.99, agent).action is None
    decision = decide(125.0, agent)
    assert (decision.action, decision.wake_at) == (Release(), None)
    assert decide(125.0, STALLED).action is None


def test_a_late_agent_on_the_host_keeps_its_copy_for_four_times_the_length():
    decision = decide(125.0, OFFLOADED)
    assert (decision.action, decision.reason, decision.wake_at) == (None, "the tool is late", 180.0)
    assert decide(180.0, OFFLOADED).action == Release()


@pytest.mark.parametrize("move", [None, "upload"])
def test_an_agent_that_is_being_served_is_left_alone(move):
    assert decide(105.0, replace(STALLED, active=True, move=move)).action is None


def test_an_offload_is_cancelled_by_the_next_request_and_by_an_early_return():
    assert decide(105.0, replace(STALLED, active=True, move="offload")).action == CancelOffload()
    decision = decide(110.0, replace(BACK, move="offload"))
    assert (decision.action, decision.wake_at) == (CancelOffload(), 110.0)


def test_an_early_return_uploads_at_once_and_the_lease_ends_when_no_request_comes():
    assert decide(110.0, BACK).action == Upload(1_000, 115.0)
    assert decide(110.0, replace(BACK, footprint=ON_DEVICE)).wake_at == 115.0
    assert decide(115.0, BACK).action == Release()


@pytest.mark.parametrize("lease", [None, 180.0])
def test_after_its_request_has_been_served_the_lease_ends(lease):
    decision = decide(110.0, replace(BACK, returned_at=None, lease_until=lease))
    assert decision.action == (None if lease is None else Release())


def test_a_whole_stall_under_algorithm_1_moves_when_somebody_comes_to_wait_and_is_back_in_time():
    server = Server(offload_policy="paper")
    queue: list[WaitingView] = []

    class Crowded(type(server.mechanism)):
        def pool(self, demand=True):
            return replace(super().pool(demand), waiting_requests=len(queue), waiting=tuple(queue))

    server.mechanism.__class__ = Crowded
    server.stalled()
    assert server.mechanism.actions() == []
    queue.append(WaitingView("w", 1_000, 1_000))
    server.at(100.0 + RECHECK_S)
    server.mechanism.land("a")
    server.at(101.0)
    queue.clear()
    server.at(119.91)
    server.mechanism.land("a")
    server.at(119.95)
    server.finish()
    assert server.mechanism.actions() == ["Offload", "Upload"] and server.counters["uploads_on_time"] == 1
