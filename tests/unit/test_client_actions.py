"""What clients ask for themselves: every action, what it does to a controller, and what it answers."""

from __future__ import annotations

import pytest

from tests.support.mechanism import Tokens
from tests.unit.test_controller import Server
from tokencake_sglang.core.actions import KINDS, RECENT, ClientActions
from tokencake_sglang.core.plan import CancelOffload, Offload, Release, Retain, Upload
from tokencake_sglang.core.retention import RETAIN_MAX_S, RETAIN_SHARE, Retention


class Asked(Server):
    """A server whose clients ask for actions. Agent "a" has been served at t=100 and is idle."""

    def __init__(self, **settings):
        super().__init__(**settings)
        self.actions = ClientActions(self.controller)
        self.at(100.0)
        self.serve("a")

    def serve(self, key, tokens=200):
        self.ask(key, tokens=tokens)
        self.at(self.controller.now)
        self.answer(key)
        self.at(self.controller.now)

    def act(self, action, key="a", /, **fields):
        return self.actions.apply({"action": action, "agent_id": key, **fields})

    def outcome(self, action, key="a", /, **fields):
        return self.act(action, key, **fields)["outcome"]


@pytest.fixture(params=["eager", "cost", "paper", "none"])
def server(request):
    return Asked(offload_policy=request.param)


# -- retain and release -------------------------------------------------------------------------------------------


def test_kept_kv_is_protected_until_its_time_is_over(server):
    answer = server.act("retain", for_s=30.0)
    assert (answer["outcome"], answer["tokens"], answer["until"]) == ("accepted", 200, 130.0)
    server.at(129.9)
    assert "a" in server.mechanism.protected
    server.at(130.0)
    assert "a" not in server.mechanism.protected and server.controller.next_wake is None


def test_a_longer_time_than_allowed_is_clipped(server):
    answer = server.act("retain", for_s=86400.0)
    assert (answer["outcome"], answer["until"]) == ("clipped", 100.0 + RETAIN_MAX_S)
    server.at(100.0 + RETAIN_MAX_S)
    assert not server.mechanism.protected


def test_a_second_retain_sets_another_end(server):
    server.act("retain", for_s=30.0)
    server.act("retain", for_s=5.0)
    server.at(105.0)
    assert not server.mechanism.protected and server.controller.retention.total == 0


def test_the_end_of_a_policys_lease_leaves_what_the_client_keeps():
    server = Asked(offload_policy="eager")
    server.act("retain", for_s=1000.0)
    server.stall(seconds=20.0)
    server.at(100.0)
    server.mechanism.land("a")
    server.finish()
    server.at(125.0)
    server.serve("a")
    assert server.agent().lease_until is None and server.counters["leases_ended"] == 1
    assert "a" in server.mechanism.protected


def test_a_release_ends_what_the_client_keeps_and_not_the_policys_lease():
    server = Asked(offload_policy="eager")
    server.stall(seconds=20.0)
    server.at(100.0)
    server.act("retain", for_s=1000.0)
    assert server.outcome("release") == "accepted"
    assert "a" in server.mechanism.protected and server.agent().lease_until == 180.0


def test_a_release_takes_effect_at_once_and_may_be_repeated(server):
    server.act("retain", for_s=1000.0)
    assert server.outcome("release") == server.outcome("release") == "accepted"
    assert not server.mechanism.protected and server.mechanism.actions()[-1] == "Release"


def test_all_that_is_kept_stays_within_its_share_of_the_device(server):
    most = int(RETAIN_SHARE * 100_000)
    server.serve("b", tokens=most - 200)
    server.serve("c", tokens=1)
    assert [server.outcome("retain", key, for_s=60.0) for key in "abc"] == ["accepted", "accepted", "rejected"]
    assert "c" not in server.mechanism.protected
    server.act("release", "a")
    assert server.outcome("retain", "c", for_s=60.0) == "accepted"


def test_kv_that_outgrows_the_share_ends_the_newest_leases(server):
    server.serve("b")
    for key in "ab":
        server.act("retain", key, for_s=60.0)
    server.mechanism.tokens["a"].count = int(RETAIN_SHARE * 100_000)
    server.controller.mark_due(server.agent("a"))
    server.at(101.0)
    assert list(server.mechanism.protected) == ["a"]
    server.mechanism.tokens["a"].count += 1
    server.controller.mark_due(server.agent("a"))
    server.at(102.0)
    assert not server.mechanism.protected and len(server.controller.retention) == 0


def test_a_lease_ends_with_its_agent_and_with_a_flush(server):
    server.serve("b")
    for key in "ab":
        server.act("retain", key, for_s=60.0)
    server.send("agent_finished", "a")
    assert "a" not in server.controller.retention and server.controller.retention.total == 200
    server.mechanism.flush()
    server.controller.reset()
    assert len(server.controller.retention) == 0 and server.controller.retention.total == 0


# -- demote and prefetch ------------------------------------------------------------------------------------------


def test_a_demotion_moves_the_kv_to_the_host_and_no_policy_takes_it_back(server):
    answer = server.act("demote")
    assert (answer["outcome"], answer["tokens"]) == ("accepted", 200)
    server.controller.mark_due(server.agent())
    server.at(100.1)
    assert CancelOffload not in {type(action) for _, action in server.mechanism.log}
    server.mechanism.land("a")
    server.at(100.2)
    assert not server.mechanism.tokens["a"].on_device and server.agent().move is None
    assert not server.mechanism.protected and server.moves_add_up()


def test_the_next_request_of_the_agent_still_stops_its_demotion(server):
    if server.controller.config.offload_policy == "none":
        return  # this policy never stops anything
    server.act("demote")
    server.ask()
    server.at(100.1)
    assert server.mechanism.log[-1] == ("a", CancelOffload())


def test_kv_in_use_is_not_demoted(server):
    server.ask()
    assert server.outcome("demote") == "deferred" and not server.mechanism.moves


@pytest.mark.parametrize(("reason", "outcome"), [
    ("host_full", "deferred"), ("a move is under way", "deferred"), ("nothing_to_move", "rejected")])
def test_a_declined_demotion_says_why(server, reason, outcome):
    server.mechanism.declines["offload"] = reason
    answer = server.act("demote")
    assert answer["outcome"] == outcome and reason in answer["message"]
    assert server.counters["offloads_declined"] == 1 and server.controller.declined == {reason: 1}


def demoted(server):
    server.act("demote")
    server.mechanism.land("a")
    server.at(100.1)


def test_a_prefetch_brings_the_kv_back_and_is_not_counted_as_late(server):
    demoted(server)
    answer = server.act("prefetch")
    assert (answer["outcome"], answer["tokens"]) == ("accepted", 200)
    assert server.mechanism.log[-1] == ("a", Upload(200, None))
    server.mechanism.land("a")
    server.at(100.2)
    assert server.mechanism.tokens["a"].on_device and server.counters["uploads_late"] == 0
    assert not server.mechanism.protected and server.moves_add_up()


def test_a_prefetch_takes_no_more_than_the_room_there_is(server):
    demoted(server)
    server.mechanism.free = 9
    assert server.outcome("prefetch") == "deferred" and not server.mechanism.moves
    server.mechanism.free = 199
    assert server.outcome("prefetch") == "deferred"
    assert server.mechanism.log[-1] == ("a", Upload(199, None))


def test_what_is_on_the_device_needs_no_prefetch(server):
    assert server.act("prefetch")["tokens"] == 0
    server.mechanism.tokens["a"].on_device = False
    server.ask()
    assert server.act("prefetch")["tokens"] == 0 and not server.mechanism.moves


def test_an_agent_whose_kv_is_gone_is_missing_it(server):
    server.mechanism.tokens["a"] = Tokens(0)
    assert [server.outcome(kind, for_s=1.0) for kind in ("retain", "demote", "prefetch")] == ["missing"] * 3


# -- signals ------------------------------------------------------------------------------------------------------


def test_a_tool_wait_opens_a_call_as_its_event_does(server):
    wait = {"kind": "search", "call_id": "c1", "estimated_duration_s": 20.0}
    assert server.outcome("tool_wait", **wait) == server.outcome("tool_wait", **wait) == "accepted"
    assert server.agent().calls.open["c1"].kind == "search" and server.counters["stalls_started"] == 1
    assert server.outcome("tool_wait", **{**wait, "kind": "shell"}) == "rejected"
    assert server.finish() == "applied"


def test_a_resume_estimate_moves_the_forecast_to_where_it_says(server):
    server.stall(seconds=20.0)
    server.at(110.0)
    assert server.outcome("resume_estimate", resume_in_s=60.0) == "accepted"
    server.at(110.0)
    stall = server.controller.stall_view(server.agent())
    assert stall.predicted_end == pytest.approx(170.0, abs=6.0) and stall.started_at == 100.0
    assert 30.0 < stall.forecast.quantile(0.5) < 90.0


def test_a_resume_estimate_is_not_what_is_learnt_from(server):
    server.stall(seconds=20.0)
    server.act("resume_estimate", resume_in_s=500.0)
    seen = []
    server.controller.forecaster.observe = lambda *lesson: seen.append(lesson)
    server.at(120.0)
    server.finish()
    assert seen == [(None, "tool", 20.0, 20.0)]


def test_a_repeated_start_after_a_resume_estimate_is_still_a_duplicate(server):
    server.stall(seconds=20.0)
    server.act("resume_estimate", resume_in_s=500.0)
    assert server.stall(seconds=20.0) == "duplicate"


def test_a_resume_estimate_needs_one_open_call(server):
    assert server.outcome("resume_estimate", resume_in_s=1.0) == "missing"
    server.stall(call_id="c1")
    server.stall(call_id="c2")
    assert server.outcome("resume_estimate", resume_in_s=1.0) == "rejected"
    assert server.outcome("resume_estimate", resume_in_s=1.0, call_id="c3") == "rejected"
    assert server.outcome("resume_estimate", resume_in_s=1.0, call_id="c2") == "accepted"


# -- all of them --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_an_agent_that_is_not_known_is_missing(server, kind):
    answer = server.act(kind, "nobody", for_s=1.0, resume_in_s=1.0, kind="tool")
    assert answer["outcome"] == "missing" and "nobody" in answer["message"]


def test_every_outcome_is_counted_recorded_and_shown(server):
    logged = []
    server.controller.observe = lambda now, key, decision, outcome: logged.append((key, type(decision.action)))
    server.act("retain", for_s=10.0)
    server.act("retain", for_s=1e6)
    server.act("demote")
    server.act("demote", "nobody")
    server.act("demote")
    counts = {name[len("actions_"):]: n for name, n in server.counters.items() if name.startswith("actions_")}
    assert counts == {"accepted": 2, "clipped": 1, "deferred": 1, "rejected": 0, "missing": 1}
    assert [kind for key, kind in logged if key == "a"][:3] == [Retain, Retain, Offload]
    assert [entry["outcome"] for entry in server.actions.recent] == [
        "accepted", "clipped", "accepted", "missing", "deferred"]
    for _ in range(2 * RECENT):
        server.act("release")
    assert len(server.actions.recent) == RECENT


def test_an_agent_may_be_named_by_the_id_of_one_of_its_calls():
    server = Asked()
    server.ask("b", lifecycle_id="call-7")
    server.answer("b")
    assert server.actions.apply({"action": "retain", "lifecycle_id": "call-7", "for_s": 5.0})["outcome"] == "accepted"
    assert list(server.mechanism.protected) == ["b"] and Release not in {type(a) for _, a in server.mechanism.log}


def test_retention_adds_up():
    retention = Retention()
    retention.grant("a", 10.0, 100)
    retention.grant("a", 20.0, 50)
    retention.grant("b", 20.0, 30)
    assert (retention.total, retention.until("a"), len(retention)) == (80, 20.0, 2)
    assert retention.look(5.0, "b", 60, 400) == (["b"], 20.0) and retention.look(5.0, "b", 50, 400) == ([], 20.0)
    assert retention.end("a") and not retention.end("a") and retention.total == 50
