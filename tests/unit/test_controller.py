"""The controller with the eager policy and a mechanism in memory: whole lives of stalls, and what is counted."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.mechanism import MemoryMechanism, Tokens
from tokencake_sglang.core.config import TokenCakeConfig
from tokencake_sglang.core.controller import ACTIVE_RECHECK_S, DECLINED_RETRY_S, KV_LEFT_S, Controller
from tokencake_sglang.core.due import DECISIONS_PER_STEP
from tokencake_sglang.core.plan import CancelOffload, Offload, Release, Upload
from tokencake_sglang.core.timers import TIMER_SLACK
from tokencake_sglang.core.types import PREFILL, AgentIdentity


class Server:
    """A controller and what surrounds it, driven by hand. Agent "a" owns 200 tokens unless said otherwise."""

    def __init__(self, **settings: Any) -> None:
        self.mechanism = MemoryMechanism()
        self.controller = Controller(TokenCakeConfig(**{"offload_policy": "eager", **settings}), self.mechanism)
        self.requests = 0
        self.running: dict[str, str] = {}

    @property
    def counters(self) -> dict[str, int]:
        return self.controller.counters

    def at(self, now: float) -> None:
        """A scheduler step at this time."""
        self.controller.tick(now)
        self.controller.step()

    def ask(self, key: str = "a", lifecycle_id: str | None = None, tokens: int = 200) -> str:
        """A request of the agent joins the queue."""
        self.requests += 1
        rid = self.running[key] = f"r{self.requests}"
        self.mechanism.live.add(rid)
        self.mechanism.tokens.setdefault(key, Tokens(tokens))
        self.controller.request_added(AgentIdentity(agent_id=key, lifecycle_id=lifecycle_id), rid)
        return rid

    def answer(self, key: str = "a") -> None:
        """Its request has been served: its KV is on the device."""
        rid = self.running.pop(key)
        self.mechanism.live.discard(rid)
        self.mechanism.tokens[key].on_device = True
        self.controller.request_ended(key, rid)

    def send(self, event: str, key: str = "a", **fields: Any) -> str:
        defaults = {"stall_started": {"kind": "tool"}, "stall_finished": {"outcome": "ok"}}.get(event, {})
        return self.controller.event({"event": event, "agent_id": key, **defaults, **fields}).result

    def stall(self, key: str = "a", seconds: float | None = 20.0, call_id: str = "c1") -> str:
        fields = {} if seconds is None else {"estimated_duration_s": seconds}
        return self.send("stall_started", key, call_id=call_id, **fields)

    def finish(self, key: str = "a", call_id: str = "c1") -> str:
        return self.send("stall_finished", key, call_id=call_id)

    def stalled(self, key: str = "a", seconds: float | None = 20.0) -> None:
        """At t=100: one request served, one tool call open, the first decision made."""
        self.at(100.0)
        self.ask(key)
        self.at(100.0)
        self.answer(key)
        self.stall(key, seconds)
        self.at(100.0)

    def agent(self, key: str = "a"):
        return self.controller.agents.get(key)

    def moves_add_up(self) -> bool:
        in_flight = list(self.mechanism.moves.values()) + [done.kind for done in self.mechanism.done]
        return all(
            self.counters[f"{kind}s_started"] == self.counters[f"{kind}s_completed"] + in_flight.count(kind)
            for kind in ("offload", "upload"))

    def stalls_add_up(self) -> bool:
        open_calls = sum(len(agent.calls.open) for agent in self.controller.agents)
        return self.counters["stalls_started"] == self.counters["stalls_finished"] + open_calls


@pytest.fixture
def server() -> Server:
    return Server()


def offloaded(server: Server) -> None:
    """The stall of t=100 to 120 with the agent's KV on the host only."""
    server.stalled()
    server.mechanism.land("a")
    server.at(100.1)


# -- partial prefill --------------------------------------------------------------------------------------------


def prefill(server: Server, key: str = "a") -> str:
    server.mechanism.live.add("prefill")
    server.controller.request_added(AgentIdentity(agent_id=key, purpose=PREFILL), "prefill")
    return "prefill"


def test_a_partial_prefill_ends_no_stall_and_the_next_request_does(server):
    server.stalled()
    rid = prefill(server)
    server.at(100.1)
    agent = server.agent()
    assert list(agent.calls.open) == ["c1"] and agent.state == "active" and agent.identity.purpose is None
    server.mechanism.live.discard(rid)
    server.controller.request_ended("a", rid)
    server.at(100.2)
    assert agent.state == "stalled" and server.counters["stalls_finished"] == 0
    assert server.controller.forecaster.lessons == 0
    server.at(103.0)
    server.ask()
    assert server.counters["stalls_finished"] == 1 and server.stalls_add_up()


def test_a_partial_prefill_that_overtakes_the_start_of_its_stall_changes_nothing_of_it(server):
    server.at(100.0)
    server.ask()
    server.answer()
    rid = prefill(server)
    assert server.stall() == "applied"
    server.mechanism.live.discard(rid)
    server.controller.request_ended("a", rid)
    server.at(100.1)
    assert server.agent().state == "stalled"
    assert server.finish() == "applied" and server.stalls_add_up()


def test_an_agent_that_is_back_and_prefills_has_still_not_gone_on(server):
    server.stalled()
    server.at(101.0)
    server.finish()
    assert server.agent().returned_at == 101.0
    prefill(server)
    assert server.agent().returned_at == 101.0


# -- the life of a stall ----------------------------------------------------------------------------------------


def test_a_stall_offloads_uploads_before_the_return_and_releases_after_the_next_request(server):
    offloaded(server)
    server.at(119.7)
    assert server.mechanism.log == [("a", Offload(180.0))]
    server.at(119.75)
    server.mechanism.land("a")
    server.at(119.9)
    assert server.mechanism.log[1:] == [("a", Upload(10_000, 125.0))]
    assert server.agent().lease_until == 125.0 and server.agent().upload_ready
    server.at(120.0)
    server.finish()
    server.at(120.0)
    server.ask()
    server.at(120.1)
    assert "a" in server.mechanism.protected
    server.answer()
    server.at(121.0)
    assert server.mechanism.log[2:] == [("a", Release())]
    assert server.agent().lease_until is None and not server.mechanism.protected
    expected = {
        "stalls_started": 1, "stalls_finished": 1, "offloads_started": 1, "offloads_completed": 1,
        "tokens_offloaded": 200, "uploads_started": 1, "uploads_completed": 1, "tokens_uploaded": 200,
        "uploads_on_time": 1, "leases_ended": 1}
    assert {name: count for name, count in server.counters.items() if count} == expected


def test_a_stall_shorter_than_the_floor_moves_nothing(server):
    server.stalled(seconds=0.4)
    server.at(100.5)
    server.finish()
    server.at(100.5)
    assert server.mechanism.log == []


def expected(server: Server, kind: str = "tool") -> float:
    """What a call with an estimate of 20 s is expected to last."""
    return server.controller.forecaster.predict(None, kind, 20.0, None, 0.0).expected_s


def test_finished_calls_teach_the_forecast_and_failed_ended_and_forgotten_ones_do_not(server):
    server.stalled(seconds=20.0)
    server.at(102.0)
    server.send("stall_finished", call_id="c1", outcome="error")
    assert expected(server) == 20.0
    server.stall(call_id="c2")
    server.at(104.0)
    server.send("agent_finished")
    assert expected(server) == 20.0
    server.ask("forgotten")
    server.answer("forgotten")
    server.stall("forgotten")
    server.at(108.0)
    server.mechanism.land("forgotten")
    for hours in range(1, 5):
        server.at(108.0 + hours * server.controller.config.agent_idle_s)
    assert server.agent("forgotten") is None and expected(server) == 20.0
    server.ask("b")
    server.answer("b")
    server.stall("b")
    server.at(server.controller.now + 2.0)
    server.finish("b")
    assert expected(server) < 12.0


def test_the_next_request_teaches_the_forecast_once(server):
    server.stalled(seconds=20.0)
    server.at(105.0)
    server.ask()
    learnt = expected(server)
    assert learnt < 12.0
    server.at(110.0)
    assert server.finish() == "late_finish"
    assert expected(server) == learnt


def test_stages_of_a_call_move_its_predicted_end_and_wake_the_agent(server):
    server.stalled(seconds=20.0)
    server.send("stall_started", call_id="c2", stages=[
        {"name": "network", "estimated_s": 30.0}, {"name": "rank", "estimated_s": 10.0}])
    assert server.controller.stall_view(server.agent()).predicted_end == 140.0
    server.at(102.0)
    assert server.send("stage_finished", call_id="c2", stage="network") == "applied"
    assert server.controller.next_wake == 102.0
    assert server.controller.stall_view(server.agent()).predicted_end == 120.0
    assert server.send("stage_finished", call_id="c2", stage="parse") == "conflict"
    assert server.send("stage_finished", "nobody", call_id="c2", stage="network") == "unknown_agent"


def test_a_stage_of_an_ended_agent_is_late(server):
    server.stalled()
    server.send("agent_finished")
    assert server.send("stage_finished", call_id="c1", stage="network") == "late_finish"


def test_a_forecast_is_as_of_now_and_the_predicted_end_is_not(server):
    server.stalled(seconds=20.0)
    first = server.controller.stall_view(server.agent())
    server.at(140.0)
    later = server.controller.stall_view(server.agent())
    assert later.predicted_end == first.predicted_end == 120.0
    assert first.forecast.quantile(0.5) == 20.0 and later.forecast.quantile(0.5) > 20.0


def test_a_stall_without_an_estimate_lasts_the_default(server):
    server.stalled(seconds=None)
    assert server.controller.stall_view(server.agent()).predicted_end == 101.0


def test_an_event_before_the_request_has_ended_moves_nothing_until_it_has(server):
    server.at(100.0)
    server.ask()
    server.stall()
    server.at(100.0)
    assert server.mechanism.log == []
    server.answer()
    server.at(100.1)
    assert server.mechanism.actions() == ["Offload"]


def test_an_early_return_during_the_offload_cancels_it(server):
    server.stalled()
    server.at(101.0)
    server.finish()
    server.at(101.0)
    server.at(101.0)
    assert server.mechanism.actions() == ["Offload", "CancelOffload"]
    assert server.agent().move is None and server.moves_add_up()
    assert server.counters["tokens_offloaded"] == 0


def test_a_next_request_during_the_offload_cancels_it(server):
    server.stalled()
    server.at(101.0)
    server.ask()
    server.at(101.0)
    server.at(101.0)
    assert server.mechanism.actions() == ["Offload", "CancelOffload"]
    assert server.agent().move is None and server.moves_add_up()


def test_an_early_return_to_the_host_uploads_at_once_and_counts_as_late(server):
    offloaded(server)
    server.at(105.0)
    server.finish()
    server.at(105.0)
    assert server.mechanism.log[1:] == [("a", Upload(10_000, 110.0))]
    server.mechanism.land("a")
    server.at(105.1)
    assert (server.counters["uploads_on_time"], server.counters["uploads_late"]) == (0, 1)


def test_a_return_during_the_upload_makes_it_late(server):
    offloaded(server)
    server.at(119.8)
    server.finish()
    server.at(119.9)
    server.mechanism.land("a")
    server.at(120.0)
    assert server.mechanism.actions() == ["Offload", "Upload"]
    assert (server.counters["uploads_on_time"], server.counters["uploads_late"]) == (0, 1)


def test_a_next_request_after_the_upload_has_landed_makes_it_on_time(server):
    offloaded(server)
    server.at(119.8)
    server.mechanism.land("a")
    server.at(119.9)
    server.ask()
    assert (server.counters["uploads_on_time"], server.counters["uploads_late"]) == (1, 0)
    server.at(120.0)
    server.answer()
    server.at(121.0)
    assert server.counters["uploads_on_time"] == 1


def test_an_upload_that_is_offloaded_again_because_the_tool_is_late_is_neither_on_time_nor_late(server):
    offloaded(server)
    server.at(119.8)
    server.mechanism.land("a")
    server.at(119.9)
    server.at(125.0)
    assert server.mechanism.log[2:] == [("a", Offload(180.0))]
    server.mechanism.land("a")
    server.at(125.1)
    server.finish()
    assert (server.counters["uploads_on_time"], server.counters["uploads_late"]) == (0, 0)
    server.at(126.0)
    assert server.mechanism.actions() == ["Offload", "Upload", "Offload", "Upload"]


def test_the_host_copy_of_a_tool_that_never_returns_loses_its_protection(server):
    offloaded(server)
    server.mechanism.free = 0  # no upload before the predicted return
    for now in (119.8, 125.0, 179.9):
        server.at(now)
    assert "a" in server.mechanism.protected
    server.at(180.0)
    assert server.mechanism.actions() == ["Offload", "Release"]
    assert not server.mechanism.protected and server.controller.next_wake is None


def test_after_a_return_without_a_next_request_the_lease_ends_by_itself(server):
    offloaded(server)
    server.at(105.0)
    server.finish()
    server.at(105.0)
    server.mechanism.land("a")
    server.at(105.1)
    server.at(109.9)
    assert "a" in server.mechanism.protected
    server.at(110.0)
    assert server.mechanism.actions()[-1] == "Release" and not server.mechanism.protected


def test_an_upload_without_room_waits_for_it(server):
    offloaded(server)
    server.mechanism.free = 0
    server.at(119.75)
    assert server.mechanism.actions() == ["Offload"]
    server.mechanism.free = 300
    server.at(119.8)
    assert server.mechanism.log[1:] == [("a", Upload(300, 125.0))]


# -- several calls, duplicates, unknown agents ------------------------------------------------------------------


def test_with_parallel_calls_the_agent_has_returned_when_the_last_one_has(server):
    offloaded(server)
    server.stall(call_id="c2", seconds=10.0)
    server.at(105.0)
    assert server.finish(call_id="c2") == "applied"
    server.at(105.0)
    assert server.mechanism.actions() == ["Offload"] and server.agent().state == "stalled"
    assert server.finish(call_id="c1") == "applied"
    server.at(106.0)
    assert server.mechanism.actions() == ["Offload", "Upload"]
    assert server.counters["stalls_finished"] == 2


def test_a_next_request_ends_all_open_calls_and_their_finishes_are_late(server):
    server.stalled()
    server.stall(call_id="c2")
    server.ask()
    assert server.counters["stalls_finished"] == 2
    assert [server.finish(call_id=name) for name in ("c1", "c2")] == ["late_finish", "late_finish"]
    assert server.counters["stalls_finished"] == 2 and server.stalls_add_up()


def test_repeated_events_are_answered_and_not_counted(server):
    server.stalled()
    assert server.stall() == "duplicate"
    assert server.stall(seconds=5.0) == "conflict"
    assert server.finish() == "applied"
    assert server.finish() == "duplicate"
    assert (server.counters["stalls_started"], server.counters["stalls_finished"]) == (1, 1)


def test_events_may_name_the_agent_by_a_lifecycle_id_of_one_of_its_requests(server):
    server.ask(lifecycle_id="turn-1")
    server.answer()
    event = {"event": "stall_started", "lifecycle_id": "turn-1", "kind": "tool", "estimated_duration_s": 9.0}
    assert server.controller.event(event).result == "applied"
    assert server.agent().state == "stalled"


@pytest.mark.parametrize("event", ["stall_started", "stall_finished", "agent_finished"])
def test_an_event_about_an_agent_without_requests_is_unknown(server, event):
    fields = {"kind": "tool", "outcome": "ok"}
    reply = server.controller.event({"event": event, "agent_id": "nobody", **fields})
    assert (reply.status, reply.result) == (404, "unknown_agent")
    assert "'nobody'" in reply.message


@pytest.mark.parametrize(
    ("event", "status", "result"),
    [("agent_finished", 200, "duplicate"), ("stall_finished", 200, "late_finish"), ("stall_started", 409, "conflict")])
def test_an_event_about_an_agent_that_has_ended_says_so(server, event, status, result):
    server.stalled()
    server.send("agent_finished")
    reply = server.controller.event({"event": event, "agent_id": "a", "kind": "tool", "outcome": "ok"})
    assert (reply.status, reply.result) == (status, result)


# -- requests: abort, retraction, several at a time -------------------------------------------------------------


def test_a_retracted_request_that_joins_again_ends_no_stall(server):
    server.at(100.0)
    rid = server.ask()
    server.stall()
    server.at(100.0)
    server.controller.request_added(AgentIdentity(agent_id="a"), rid)
    assert len(server.agent().calls.open) == 1 and server.agent().requests == 1


def test_a_request_that_vanished_no_longer_keeps_its_agent_active(server):
    server.at(100.0)
    rid = server.ask()
    server.stall()
    server.at(100.0)
    server.mechanism.live.discard(rid)  # aborted in the queue: nobody tells
    server.at(100.0 + ACTIVE_RECHECK_S)
    assert server.agent().state == "stalled" and server.mechanism.actions() == ["Offload"]


def test_a_lease_ends_by_itself_when_the_request_it_waited_for_vanished(server):
    offloaded(server)
    server.at(119.8)
    server.mechanism.land("a")
    server.at(119.9)
    rid = server.ask()
    server.at(120.0)
    assert "a" in server.mechanism.protected
    server.mechanism.live.discard(rid)
    server.at(120.0 + ACTIVE_RECHECK_S)
    assert server.mechanism.actions()[-1] == "Release" and not server.mechanism.protected


def test_an_agent_with_two_requests_is_active_until_both_have_ended(server):
    server.at(100.0)
    server.ask()
    first = server.running["a"]
    server.ask()
    server.stall()
    server.mechanism.live.discard(first)
    server.controller.request_ended("a", first)
    server.at(100.0)
    assert server.agent().state == "active" and server.mechanism.log == []
    server.answer()
    server.at(100.0)
    assert server.mechanism.actions() == ["Offload"]


def test_the_end_of_an_unknown_request_or_of_an_unknown_agent_is_harmless(server):
    server.controller.request_ended("nobody", "r1")
    server.ask()
    server.controller.request_ended("a", "r99")
    assert list(server.agent().rids) == [server.running["a"]]


# -- declines ---------------------------------------------------------------------------------------------------


def test_a_declined_offload_is_counted_by_reason_and_tried_again(server):
    server.mechanism.declines["offload"] = "host_full"
    server.stalled()
    server.at(100.0 + DECLINED_RETRY_S - 0.01)
    assert server.mechanism.actions() == ["Offload"]
    server.at(100.0 + DECLINED_RETRY_S)
    assert server.mechanism.actions() == ["Offload", "Offload"]
    assert server.counters["offloads_declined"] == 2 and server.counters["offloads_started"] == 0
    assert server.controller.declined == {"host_full": 2}
    assert server.agent().move is None and server.agent().lease_until is None
    server.mechanism.declines.clear()
    server.at(100.6)
    assert server.counters["offloads_started"] == 1


def test_a_declined_upload_is_counted_and_tried_again(server):
    offloaded(server)
    server.mechanism.declines["upload"] = "load_slots_busy"
    server.at(119.8)
    server.at(119.9)
    assert server.counters["uploads_declined"] == 2 and server.controller.declined == {"load_slots_busy": 2}
    server.mechanism.declines.clear()
    server.at(120.0)
    assert server.counters["uploads_started"] == 1


def test_a_lease_that_is_over_ends_even_when_its_renewal_is_declined(server):
    offloaded(server)
    server.at(119.8)
    server.mechanism.land("a")
    server.at(119.9)
    server.mechanism.declines["offload"] = "host_full"
    server.at(124.9)
    assert "a" in server.mechanism.protected
    server.at(125.0)
    assert server.mechanism.actions()[2:] == ["Offload", "Release"]
    assert not server.mechanism.protected and server.agent().lease_until is None


def test_an_offload_that_moved_nothing_is_tried_again_after_a_while_and_not_in_every_step(server):
    server.stalled()
    for _ in range(5):
        server.mechanism.tokens["a"].count, kept = 0, server.mechanism.tokens["a"].count
        if server.mechanism.moves:
            server.mechanism.land("a")
        server.mechanism.tokens["a"] = Tokens(kept)  # all of it was in use by somebody: still on the device
        server.at(100.0)
    assert server.counters["offloads_started"] == 1
    server.at(100.0 + DECLINED_RETRY_S)
    assert server.counters["offloads_started"] == 2


@pytest.mark.parametrize(("policy", "times"), [("cost", 1), ("score", 0)])
def test_an_agent_whose_kv_has_left_the_device_is_looked_at_once_a_moment_later(policy, times):
    server = Server(offload_policy=policy)
    server.stalled(seconds=500.0)
    server.controller.due.look_again(server.agent(), 400.0)
    seen = []
    server.controller.observe = lambda now, *_: seen.append(now)
    for now in (100.0, 100.1):
        server.at(now)
        server.controller.kv_left("a")
    server.controller.kv_left("nobody")
    for now in (100.0 + KV_LEFT_S - 0.01, 100.0 + KV_LEFT_S, 101.0):
        server.at(now)
    assert seen == [100.0 + KV_LEFT_S] * times


def test_kv_that_leaves_puts_no_look_off_and_asks_for_none_while_the_agent_has_a_request():
    server = Server(offload_policy="cost")
    server.stalled(seconds=500.0)
    server.controller.due.look_again(server.agent(), 100.1)
    server.controller.kv_left("a")
    assert server.agent().wake_at == 100.1
    server.ask()
    server.at(100.2)
    server.controller.kv_left("a")
    assert server.agent().wake_at is None


# -- bounds -----------------------------------------------------------------------------------------------------


def test_one_step_decides_for_boundedly_many_agents_and_the_next_ones_for_the_rest(server):
    names = [f"a{i}" for i in range(2 * DECISIONS_PER_STEP + 10)]
    for name in names:
        server.ask(name)
        server.answer(name)
        server.stall(name)
    started = []
    for _ in range(3):
        before = len(server.mechanism.log)
        server.at(100.0)
        started.append(len(server.mechanism.log) - before)
    assert started == [DECISIONS_PER_STEP, DECISIONS_PER_STEP, 10]
    assert [name for name, _ in server.mechanism.log] == names


def test_timers_do_not_grow_with_the_number_of_decisions(server):
    server.stalled(seconds=80_000.0)
    for i in range(3 * TIMER_SLACK):
        server.stall(call_id=f"other {i}", seconds=70_000.0)
        server.at(100.0)
        server.finish(call_id=f"other {i}")
        server.at(100.0)
    assert server.controller.due.timers <= TIMER_SLACK + 5


def test_nothing_waits_for_time_when_nothing_is_going_on(server):
    assert server.controller.next_wake is None
    server.stalled()
    assert server.controller.next_wake is not None
    server.send("agent_finished")
    server.at(100.2)
    assert server.controller.next_wake is None


def test_time_never_goes_back(server):
    server.controller.tick(100.0)
    server.controller.tick(90.0)
    assert server.controller.now == 100.0


# -- the end of agents ------------------------------------------------------------------------------------------


def test_an_agent_that_has_finished_owns_and_protects_nothing(server):
    offloaded(server)
    assert server.send("agent_finished") == "applied"
    assert server.mechanism.forgotten == ["a"] and not server.mechanism.protected
    assert server.agent() is None and server.counters["agents_ended"] == 1
    assert server.stalls_add_up() and server.counters["stalls_finished"] == 1


@pytest.mark.parametrize("phase", ["offload", "upload"])
def test_an_agent_may_finish_while_its_kv_is_on_its_way(server, phase):
    server.stalled()
    if phase == "upload":
        server.mechanism.land("a")
        server.at(119.8)
    assert list(server.mechanism.moves.values()) == [phase]
    server.send("agent_finished")
    for key in list(server.mechanism.moves):
        server.mechanism.land(key)
    server.at(120.0)
    assert server.moves_add_up() and not server.mechanism.moves
    assert (server.counters["uploads_on_time"], server.counters["uploads_late"]) == (0, 0)


def test_what_the_last_request_of_a_finished_agent_leaves_is_dropped_when_it_ends(server):
    server.at(100.0)
    rid = server.ask()
    server.send("agent_finished")
    server.controller.request_ended("a", rid)  # its insert has tagged nodes with "a" once more
    assert server.mechanism.forgotten == ["a", "a"]


def test_idle_agents_are_forgotten_with_their_open_calls():
    server = Server(agent_idle_s=10.0)
    server.stalled(seconds=20.0)
    server.mechanism.land("a")
    server.mechanism.free = 0
    server.at(129.9)
    assert server.agent() is not None
    server.at(130.1)
    assert server.agent() is None and server.counters["agents_forgotten"] == 1
    assert server.mechanism.forgotten == ["a"] and server.stalls_add_up()
    assert server.send("stall_finished", call_id="c1") == "unknown_agent"


def test_an_agent_whose_request_is_being_served_is_not_forgotten_however_long_it_takes():
    server = Server(agent_idle_s=10.0)
    server.at(100.0)
    server.ask()
    for now in (100.0, 111.0, 130.0, 200.0):
        server.at(now)
    assert server.agent() is not None
    server.answer()
    server.at(201.0)
    assert server.agent().state == "idle"


def test_an_agent_whose_request_vanished_is_forgotten():
    server = Server(agent_idle_s=10.0)
    server.at(100.0)
    rid = server.ask()
    server.at(100.0)
    server.mechanism.live.discard(rid)
    server.at(111.0)
    assert server.agent() is None


def test_there_are_never_many_more_agents_than_allowed():
    server = Server(max_agents=10)
    for i in range(50):
        server.ask(f"a{i}")
        server.answer(f"a{i}")
    server.at(100.0)
    assert len(server.controller.agents) == 10
    assert [agent.key for agent in server.controller.agents] == [f"a{i}" for i in range(40, 50)]


def test_agents_with_a_request_stay_even_beyond_the_limit():
    server = Server(max_agents=2)
    server.ask("busy")
    for i in range(5):
        server.ask(f"a{i}")
        server.answer(f"a{i}")
    server.at(100.0)
    assert sorted(agent.key for agent in server.controller.agents) == ["a4", "busy"]


# -- flush ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", ["offload", "host", "upload"])
def test_a_flush_ends_moves_and_leases_and_keeps_agents_and_calls(server, phase):
    server.stalled()
    if phase != "offload":
        server.mechanism.land("a")
        server.at(101.0)
    if phase == "upload":
        server.at(119.8)
    server.mechanism.flush()
    server.controller.reset()
    assert server.agent().move is None and server.agent().lease_until is None and not server.agent().upload_ready
    assert list(server.agent().calls.open) == ["c1"]
    server.at(121.0)
    assert server.moves_add_up()
    assert server.finish() == "applied"
    assert server.counters["uploads_on_time"] == 0


def test_a_policy_given_by_hand_is_asked():
    class Stubborn:
        def decide(self, now, agent, pool):
            from tokencake_sglang.core.plan import Decision

            return Decision(CancelOffload(), "always")

    mechanism = MemoryMechanism()
    controller = Controller(TokenCakeConfig(), mechanism, Stubborn())
    controller.request_added(AgentIdentity(agent_id="a"), "r1")
    controller.step()
    assert mechanism.log == [("a", CancelOffload())]


# -- stalls that were inferred from answers -----------------------------------------------------------------------


def test_an_inferred_stall_is_a_stall_and_is_counted_apart():
    server = Server()
    server.ask(), server.answer()
    assert server.send("stall_started", call_id="c1", inferred=True) == "applied"
    assert (server.counters["stalls_started"], server.counters["stalls_inferred"]) == (1, 1)
    server.at(1.0)
    server.ask()
    assert server.counters["stalls_finished"] == 1 and server.controller.agents.get("a").calls.open == {}


def test_a_client_that_reports_its_calls_is_believed_instead():
    server = Server()
    server.ask(), server.answer()
    server.send("stall_started", call_id="c1", inferred=True)
    assert server.send("stall_started", call_id="c1", kind="search") == "applied"
    (call,) = server.controller.agents.get("a").calls.open.values()
    assert (call.kind, call.inferred) == ("search", False)
    assert server.send("stall_started", call_id="c2", inferred=True) == "ignored"
    assert server.counters["stalls_started"] - server.counters["stalls_finished"] == 1


def test_a_request_that_ends_some_calls_leaves_the_others_open():
    server = Server()
    server.ask(), server.answer()
    for call_id in ("c1", "c2"):
        server.send("stall_started", call_id=call_id, inferred=True)
    server.controller.request_added(AgentIdentity(agent_id="a"), "r9", ["c2", "unknown"])
    assert list(server.controller.agents.get("a").calls.open) == ["c1"]
    assert len(server.controller.records) == 0, "the stall goes on"
    server.controller.request_added(AgentIdentity(agent_id="a"), "r10", [])
    assert list(server.controller.agents.get("a").calls.open) == ["c1"]
    server.controller.request_added(AgentIdentity(agent_id="a"), "r11")
    assert server.controller.agents.get("a").calls.open == {} and len(server.controller.records) == 1


def test_a_session_that_never_returns_is_released_and_teaches_that_people_stay_away():
    server = Server(agent_idle_s=100.0, offload_policy="cost")
    use = []
    for number in range(6):
        key, start = f"s{number}", 10_000.0 * number
        server.at(start)
        server.ask(key), server.answer(key)
        server.send("stall_started", key, call_id="turn", kind="human", inferred=True)
        server.at(start)
        use.append(server.mechanism.expected[key] - start)
        if number == 0:
            server.at(90.0)
            assert server.mechanism.expected[key] > use[-1] + 20.0, "it is away for longer than was thought"
        for later in range(200, 9000, 100):
            server.at(start + later)
        assert server.controller.agents.get(key) is None and key in server.mechanism.forgotten
    assert use[-1] > 2 * use[0] and server.counters["stalls_finished"] == 6


def test_a_call_that_was_inferred_is_given_up_although_its_session_lives_on():
    server = Server(agent_idle_s=100.0)
    server.ask(), server.answer()
    server.send("stall_started", call_id="lost", inferred=True)
    for now in (50.0, 99.0, 101.0):
        server.at(now)
        server.controller.request_added(AgentIdentity(agent_id="a"), f"r{now}", [])
        assert ("lost" in server.controller.agents.get("a").calls.open) is (now < 100.0)
    assert server.send("stall_finished", call_id="lost") == "late_finish"
