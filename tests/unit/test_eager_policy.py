"""The eager policy: one factor at a time, both sides of every boundary."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tokencake_sglang.core.config import TokenCakeConfig
from tokencake_sglang.core.plan import CancelOffload, Offload, Release, Upload
from tokencake_sglang.core.policy import make_policy
from tokencake_sglang.core.policy.eager import (
    HOST_LEASE_MAX_S,
    HOST_LEASE_MIN_S,
    LATE_RETRY_S,
    RETRY_S,
    EagerPolicy,
)
from tokencake_sglang.core.policy.none import NonePolicy
from tokencake_sglang.core.types import AgentView, Footprint, PoolView, StallView
from tokencake_sglang.core.uploads import MIN_UPLOAD_TOKENS

CONFIG = TokenCakeConfig(stall_floor_s=0.5, upload_lead_s=0.25, lease_s=5.0, min_offload_tokens=64)
POOL = PoolView(
    device_total=10_000, device_free=1_000, device_evictable=5_000, device_dead=0, host_total=20_000, host_free=20_000,
    waiting_requests=0, waiting_head_tokens=0, running_requests=0, loads_in_flight=0, load_slots=13)
ON_DEVICE = Footprint(device_tokens=300, host_tokens=300, unshared_device_tokens=200, restore_tokens=0)
ON_HOST = Footprint(device_tokens=100, host_tokens=300, unshared_device_tokens=0, restore_tokens=200)
STALL = StallView(kind="tool", started_at=100.0, predicted_end=120.0, open_calls=1)
HOST_LEASE_END = 180.0  # 100 + 4 * 20
STALLED = AgentView("a", None, False, STALL, None, None, None, ON_DEVICE)
OFFLOADED = replace(STALLED, footprint=ON_HOST, lease_until=HOST_LEASE_END)
BACK = replace(STALLED, stall=None, returned_at=110.0, footprint=ON_HOST, lease_until=HOST_LEASE_END)
SERVED = replace(BACK, returned_at=None)


def decide(now, agent, pool=POOL, config=CONFIG):
    return EagerPolicy(config).decide(now, agent, pool)


def stalled_for(length: float, **changes) -> AgentView:
    return replace(STALLED, stall=StallView("tool", 100.0, 100.0 + length, 1), **changes)


def test_the_config_names_the_policy():
    assert isinstance(make_policy(TokenCakeConfig(offload_policy="eager")), EagerPolicy)
    assert isinstance(make_policy(TokenCakeConfig(offload_policy="none")), NonePolicy)


@pytest.mark.parametrize("agent", [STALLED, OFFLOADED, BACK, SERVED, replace(STALLED, active=True)])
def test_the_policy_none_moves_nothing_and_never_wakes(agent):
    decision = NonePolicy(CONFIG).decide(1e6, agent, POOL)
    assert (decision.action, decision.wake_at) == (None, None)


# -- while a request of it waits or runs ------------------------------------------------------------------------


@pytest.mark.parametrize("move", [None, "upload"])
def test_an_agent_that_is_being_served_is_left_alone(move):
    decision = decide(105.0, replace(STALLED, active=True, move=move))
    assert (decision.action, decision.reason) == (None, "it is being served")


def test_an_offload_is_cancelled_when_the_next_request_is_here():
    decision = decide(105.0, replace(STALLED, active=True, move="offload"))
    assert (decision.action, decision.reason) == (CancelOffload(), "its next request is here")


# -- the stall has begun ----------------------------------------------------------------------------------------


def test_a_stall_longer_than_the_floor_offloads_and_wakes_a_lead_before_the_predicted_return():
    decision = decide(100.0, STALLED)
    assert decision.action == Offload(HOST_LEASE_END)
    assert decision.reason == "the stall is longer than the floor"
    assert decision.wake_at == 119.75


def test_a_stall_as_long_as_the_floor_offloads():
    assert isinstance(decide(100.0, stalled_for(0.5)).action, Offload)


def test_a_stall_shorter_than_the_floor_keeps_its_kv():
    decision = decide(100.0, stalled_for(0.49))
    assert (decision.action, decision.reason) == (None, "the stall is shorter than the floor")
    assert decision.wake_at == pytest.approx(100.24)


def test_as_many_unshared_tokens_as_the_least_offload():
    agent = replace(STALLED, footprint=replace(ON_DEVICE, unshared_device_tokens=64))
    assert isinstance(decide(100.0, agent).action, Offload)


def test_fewer_unshared_tokens_than_the_least_stay():
    agent = replace(STALLED, footprint=replace(ON_DEVICE, unshared_device_tokens=63))
    decision = decide(100.0, agent)
    assert (decision.action, decision.reason) == (None, "too little unshared KV on the device")
    assert decision.wake_at == 119.75


def test_shared_tokens_do_not_count_towards_an_offload():
    agent = replace(STALLED, footprint=Footprint(device_tokens=5_000, unshared_device_tokens=10))
    assert decide(100.0, agent).action is None


@pytest.mark.parametrize("move", ["offload", "upload"])
def test_while_a_move_is_under_way_no_second_one_starts(move):
    decision = decide(105.0, replace(STALLED, move=move))
    assert (decision.action, decision.reason, decision.wake_at) == (None, "a move is under way", 119.75)


@pytest.mark.parametrize(
    ("length", "lease"),
    [(1.0, HOST_LEASE_MIN_S), (15.0, 60.0), (15.5, 62.0), (899.5, 3598.0), (900.0, 3600.0), (5000.0, HOST_LEASE_MAX_S)])
def test_the_host_lease_is_four_times_the_expected_length_between_a_minute_and_an_hour(length, lease):
    assert decide(100.0, stalled_for(length)).action == Offload(100.0 + lease)


# -- the return is near -----------------------------------------------------------------------------------------


def test_the_upload_starts_exactly_a_lead_before_the_predicted_return_and_not_before():
    assert decide(119.74, OFFLOADED).action is None
    decision = decide(119.75, OFFLOADED)
    assert decision.action == Upload(1_000, 125.0)
    assert decision.reason == "the tool is about to return"


def test_nothing_is_offloaded_when_the_return_is_near():
    decision = decide(119.75, STALLED)
    assert (decision.action, decision.reason, decision.wake_at) == (None, "ready for the return", 125.0)


@pytest.mark.parametrize(("missing", "uploads"), [(MIN_UPLOAD_TOKENS - 1, False), (MIN_UPLOAD_TOKENS, True)])
def test_fewer_tokens_than_sglang_loads_back_are_not_uploaded(missing, uploads):
    agent = replace(OFFLOADED, footprint=replace(ON_HOST, restore_tokens=missing))
    assert isinstance(decide(119.8, agent).action, Upload) == uploads


@pytest.mark.parametrize("move", ["offload", "upload"])
def test_no_upload_starts_while_a_move_is_under_way(move):
    assert decide(119.8, replace(OFFLOADED, move=move)).action is None


@pytest.mark.parametrize(
    ("free", "dead", "head", "quota"),
    [(1_000, 0, 0, 1_000), (0, 70, 0, 70), (100, 70, 0, 170), (100, 0, 99, 1), (50, 70, 100, 20)])
def test_an_upload_may_take_free_and_dead_memory_that_the_head_of_the_queue_does_not_need(free, dead, head, quota):
    pool = replace(POOL, device_free=free, device_dead=dead, waiting_head_tokens=head)
    assert decide(119.8, OFFLOADED, pool).action == Upload(quota, 125.0)


@pytest.mark.parametrize(("free", "dead", "head"), [(0, 0, 0), (100, 0, 100), (100, 50, 500)])
def test_without_such_memory_it_waits_and_looks_again_soon(free, dead, head):
    pool = replace(POOL, device_free=free, device_dead=dead, waiting_head_tokens=head, device_evictable=9_000)
    decision = decide(119.8, OFFLOADED, pool)
    assert (decision.action, decision.reason) == (None, "no room to upload into yet")
    assert decision.wake_at == pytest.approx(119.8 + RETRY_S)


@pytest.mark.parametrize(("loads", "uploads"), [(12, True), (13, False), (14, False)])
def test_with_all_load_slots_in_use_it_waits(loads, uploads):
    decision = decide(119.8, OFFLOADED, replace(POOL, loads_in_flight=loads))
    assert isinstance(decision.action, Upload) == uploads


# -- the tool is late -------------------------------------------------------------------------------------------


def test_the_lease_ends_exactly_lease_s_after_the_predicted_return_and_the_memory_goes_back():
    agent = replace(STALLED, lease_until=125.0)
    assert decide(124.99, agent).action is None
    decision = decide(125.0, agent)
    assert decision.action == Offload(HOST_LEASE_END)
    assert decision.reason == "the tool is late: the memory goes back"
    assert decision.wake_at == 125.0 + LATE_RETRY_S


def test_a_late_agent_on_the_host_waits_for_the_end_of_its_host_lease():
    decision = decide(130.0, OFFLOADED)
    assert (decision.action, decision.reason, decision.wake_at) == (None, "the tool is late", HOST_LEASE_END)


def test_at_the_end_of_the_host_lease_the_host_copy_loses_its_protection():
    assert decide(179.99, OFFLOADED).action is None
    decision = decide(180.0, OFFLOADED)
    assert (decision.action, decision.wake_at) == (Release(), None)
    assert decision.reason == "the tool is too late to keep its KV before others"


def test_a_late_agent_without_a_lease_sleeps_for_good():
    decision = decide(180.0, replace(OFFLOADED, lease_until=None))
    assert (decision.action, decision.wake_at) == (None, None)


@pytest.mark.parametrize("move", ["offload", "upload"])
def test_a_late_agent_with_a_move_under_way_waits_for_it(move):
    decision = decide(300.0, replace(STALLED, move=move))
    assert (decision.action, decision.wake_at) == (None, None)


# -- the tool is back -------------------------------------------------------------------------------------------


def test_a_return_during_the_offload_cancels_it_and_looks_again_at_once():
    decision = decide(110.0, replace(BACK, move="offload", footprint=ON_DEVICE))
    assert (decision.action, decision.wake_at) == (CancelOffload(), 110.0)


def test_an_early_return_uploads_at_once_and_holds_the_kv_for_lease_s():
    decision = decide(110.0, BACK)
    assert decision.action == Upload(1_000, 115.0)
    assert decision.reason == "the tool has returned"


def test_a_returned_agent_with_its_kv_on_the_device_waits_for_its_request_until_the_lease_ends():
    decision = decide(110.0, replace(BACK, footprint=ON_DEVICE))
    assert (decision.action, decision.reason, decision.wake_at) == (None, "ready for its next request", 115.0)


@pytest.mark.parametrize("lease", [None, 180.0])
def test_when_no_request_comes_after_the_return_the_lease_ends(lease):
    agent = replace(BACK, footprint=ON_DEVICE, lease_until=lease)
    assert decide(114.99, agent).action is None
    decision = decide(115.0, agent)
    assert decision.action == (None if lease is None else Release())
    assert (decision.reason, decision.wake_at) == ("no request came after the return", None)


@pytest.mark.parametrize("lease", [None, 180.0])
def test_after_its_request_has_been_served_the_lease_ends(lease):
    decision = decide(110.0, replace(SERVED, lease_until=lease))
    assert decision.action == (None if lease is None else Release())
    assert (decision.reason, decision.wake_at) == ("its request has been served", None)


def test_an_agent_that_never_stalled_is_left_alone():
    decision = decide(50.0, AgentView("a", None, False, None, None, None, None, ON_DEVICE))
    assert (decision.action, decision.wake_at) == (None, None)


def test_equal_input_gives_equal_output():
    assert decide(119.8, OFFLOADED) == decide(119.8, OFFLOADED)
