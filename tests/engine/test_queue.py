"""The program queue on the real cache: order, accounts, prompts in chunks that must wait, requests that vanish."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from tests.engine.test_life_cycle import PROMPT, Server
from tokencake_sglang.core.spatial.ledger import SHARED
from tokencake_sglang.engine.ipc import TokenCakeTickReq


@pytest.fixture
def server(make):
    return Server(make(device_tokens=192, host_tokens=256))


def in_order(server):
    server.extension.order_waiting_queue(server.h.waiting_queue)
    return [req.rid for req in server.h.waiting_queue]


def queue(server, agent, rid, prompt=PROMPT):
    req = server.h.request(prompt, agent, rid)
    server.h.waiting_queue.append(req)
    server.extension.on_request_added(req)
    return req


def test_the_queue_is_put_in_the_order_of_the_programs(server):
    for agent, rid in (("a", "a1"), ("b", "b1"), ("a", "a2")):
        queue(server, agent, rid)
    assert in_order(server) == ["a1", "a2", "b1"]


def test_plain_requests_take_turns_with_agents(server):
    for agent, rid in (("a", "a1"), ("a", "a2"), (None, "plain")):
        queue(server, agent, rid)
    assert in_order(server) == ["a1", "plain", "a2"]


@pytest.mark.parametrize(("header", "order"), [
    ("x-tenant", ["g1", "modest", "g2", "g3"]), ("", ["g1", "g2", "g3", "modest"])])
def test_tenants_take_turns_where_they_are_told_apart(make, header, order):
    server = Server(make(device_tokens=192, host_tokens=256), tenant_header=header)
    for rid, tenant in (("g1", "greedy"), ("g2", "greedy"), ("g3", "greedy"), ("modest", "modest")):
        req = server.h.request(PROMPT, None, rid)
        req.agent_metadata = {"tenant": tenant}
        server.h.waiting_queue.append(req)
        server.extension.on_request_added(req)
    assert in_order(server) == order


def test_with_the_order_of_sglang_nothing_is_touched(make):
    server = Server(make(device_tokens=192, host_tokens=256), order="sglang")
    for agent, rid in (("a", "a1"), ("b", "b1"), ("a", "a2")):
        queue(server, agent, rid)
    assert in_order(server) == ["a1", "b1", "a2"]
    assert not server.extension.holds_back(server.h.waiting_queue[0])


def test_with_the_order_of_sglang_kv_of_waiting_agents_is_expected_by_their_places_in_its_queue(make):
    server = Server(make(device_tokens=192, host_tokens=256), order="sglang", offload_policy="cost")
    server.wait()
    for agent in "abc":
        server.serve(PROMPT, agent)
    reqs = {agent: queue(server, agent, f"{agent}1") for agent in "abc"}
    queue_now = server.h.waiting_queue
    server.extension.order_waiting_queue(queue_now)
    server.wait()
    expected = server.h.cache.owners.next_use
    assert expected["a"] < expected["b"] < expected["c"]
    queue_now[:] = [reqs["c"], reqs["a"], reqs["b"]]
    server.extension.order_waiting_queue(queue_now)
    server.wait(server.controller.agents.get("c").wake_at - server.now)
    assert expected["c"] < expected["a"] < expected["b"]
    queue_now.remove(reqs["c"])
    server.extension.on_requests_admitted([reqs["c"]])
    server.extension.order_waiting_queue(queue_now)
    assert server.controller.queue_wait_s("c") == 0.0 < server.controller.queue_wait_s("a")
    assert server.controller.queue_wait_s("nobody") == 0.0


def test_an_agent_whose_kv_was_given_up_goes_behind_one_whose_kv_is_here(make, monkeypatch):
    monkeypatch.setattr("tokencake_sglang.core.spatial.affinity.CLASS_TOKENS", 16)
    server = Server(make(device_tokens=192, host_tokens=16))
    server.wait()
    owners, long = server.h.cache.owners, range(3000, 3064)
    server.serve(long, "a")
    server.h.evict(192)
    assert owners.lost["a"] >= 64 > owners.path_tokens("a")
    server.serve(PROMPT, "b")
    first = queue(server, "a", "a1", long)
    queue(server, "b", "b1")
    assert in_order(server) == ["b1", "a1"]
    server.h.waiting_queue.remove(first)
    server.extension.queue.request_ended(first)
    server.serve(long, "a")
    assert "a" not in owners.lost, "it is computed again"
    queue(server, "a", "a2", long)
    assert in_order(server) == ["a2", "b1"]


def test_kv_that_is_given_up_or_computed_again_while_a_request_waits_moves_it_in_the_next_step(make, monkeypatch):
    monkeypatch.setattr("tokencake_sglang.core.spatial.affinity.CLASS_TOKENS", 16)
    server = Server(make(device_tokens=192, host_tokens=16))
    server.wait()
    long = range(3000, 3064)
    server.serve(long, "a")
    server.serve(PROMPT, "b")
    queue(server, "a", "a1", long)
    queue(server, "b", "b1")
    assert in_order(server) == ["a1", "b1"]
    server.h.evict(64)
    assert server.h.cache.owners.lost.keys() == {"a"}
    assert in_order(server) == ["b1", "a1"]
    server.serve(long, "a")
    assert in_order(server) == ["a1", "b1"]
    server.h.evict(192)
    lost = server.h.cache.owners.lost
    assert lost["a"] == lost["b"] and in_order(server) == ["a1", "b1"]
    server.controller.mechanism.forget("b")
    assert in_order(server) == ["b1", "a1"], "it begins anew"


@pytest.mark.parametrize(("mixed", "chunk", "chunks", "waits"), [
    (True, 128, "fixed", False), (True, 8192, "balanced", False), (True, 8192, "fixed", True),
    (False, 128, "fixed", True), (False, 128, "balanced", True)])
def test_nobody_waits_at_the_door_where_prompts_are_computed_beside_decoding_in_small_chunks(
        make, mixed, chunk, chunks, waits):
    harness = make(device_tokens=128, host_tokens=32, write_through=True)
    harness.is_mixed_chunk, harness.chunked_prefill_size = mixed, chunk
    server = Server(harness, chunks=chunks)
    server.wait()
    server.serve(PROMPT, "old", steps=26)
    assert server.h.admit(server.h.request(range(2000, 2008)))
    young = queue(server, "young", "y1")
    in_order(server)
    assert server.extension.holds_back(young) == waits


def test_the_wait_of_an_agent_whose_request_runs_is_over_until_it_waits_again(make):
    server = Server(make(device_tokens=192, host_tokens=256), offload_policy="cost")
    server.wait()
    server.serve(PROMPT, "old")
    server.serve(PROMPT, "young")
    reqs = [queue(server, agent, f"{agent}1") for agent in ("old", "young")]
    server.extension.order_waiting_queue(server.h.waiting_queue)
    server.wait()
    waits, expected = server.controller.queue_wait_s, server.h.cache.owners.next_use
    assert waits("old") == 0.0 < waits("young") and expected["young"] == server.now + waits("young")
    server.h.waiting_queue.remove(reqs[1])
    reqs[1].extend_range = SimpleNamespace(length=16)
    server.extension.on_requests_admitted([reqs[1]])
    assert waits("young") == 0.0
    server.h.waiting_queue.append(reqs[1])
    server.extension.on_request_added(reqs[1])  # it was retracted
    server.extension.order_waiting_queue(server.h.waiting_queue)
    server.wait(1.0)
    assert expected["young"] == server.now + waits("young") > server.now, "decided about without any other event"


@pytest.mark.parametrize("runs", [True, False])
def test_a_young_program_waits_while_an_older_one_needs_both_tiers_and_something_runs(make, runs):
    server = Server(make(device_tokens=128, host_tokens=32, write_through=True))
    server.wait()
    server.serve(PROMPT, "old", steps=26)
    if runs:
        plain = server.h.request(range(2000, 2008))
        assert server.h.admit(plain)
        server.h.forward(plain)
    young = queue(server, "young", "y1")
    in_order(server)
    assert server.extension.holds_back(young) == runs == server.extension.holds_back(young)
    assert server.counters["denied_by_door"] == runs, "each request once"
    reasons = [one["reason"] for one in server.control("state")[1]["queue"]["waiting"] if one["rid"] == "y1"]
    assert reasons == ["door" if runs else "memory"]


def test_a_program_is_not_taken_for_a_new_one_after_a_request_that_ran_long_without_any_message(server, monkeypatch):
    extension = server.extension

    def iteration(now, *messages):
        monkeypatch.setattr("tokencake_sglang.engine.extension.time.monotonic", lambda: now)
        for message in extension.extend_received(list(messages)):
            if isinstance(message, TokenCakeTickReq):
                server.h._request_dispatcher(message)
        server.h.step()

    iteration(1000.0, "a1 and b1")
    running = server.run(queue(server, "a", "a1"))
    queue(server, "b", "b1")
    for now in range(1001, 1031):
        iteration(float(now))
    server.h.finish(running)
    iteration(1030.5, "a2")
    queue(server, "a", "a2")
    assert in_order(server) == ["a2", "b1"]


@pytest.mark.parametrize(("kind", "keeps_its_age"), [("search", True), ("human", False), ("user_confirm", False)])
def test_a_program_that_waits_for_a_person_begins_anew_and_one_that_waits_for_a_tool_does_not(
        server, kind, keeps_its_age):
    """It is not at it meanwhile, so it keeps nobody at the door either."""
    server.serve(PROMPT, "a")
    before = server.extension.queue.spatial.programs.get("a").arrived_at
    server.control("event", event="stall_started", agent_id="a", kind=kind, estimated_duration_s=90.0, call_id="c")
    server.wait(60.0)
    queue(server, "a", "next")
    assert (server.extension.queue.spatial.programs.get("a").arrived_at == before) == keeps_its_age


def test_memory_is_accounted_to_programs_and_what_ended_is_nobodys(server):
    ledger = server.h.cache.owners.ledger
    one = server.serve(PROMPT, "a")
    server.serve(PROMPT, "b")
    assert ledger.held("a") + ledger.held("b") == ledger.total >= len(one)
    server.control("event", event="agent_finished", agent_id="a")
    server.control("event", event="agent_finished", agent_id="b")
    assert ledger.accounts == {SHARED: ledger.total}
    assert server.extension.queue.program_of == {"": SHARED}


def test_a_request_that_was_aborted_in_the_queue_is_forgotten(server):
    gone, stays = queue(server, "a", "gone"), queue(server, "b", "stays")
    server.h.waiting_queue.remove(gone)
    assert in_order(server) == ["stays"]
    assert server.extension.queue.spatial.rids() == [stays.rid]


def test_an_ended_request_leaves_the_queue_and_teaches_its_length(server):
    server.serve(PROMPT, "a", steps=4)
    spatial = server.extension.queue.spatial
    assert spatial.num_requests == 0 and spatial.lengths.expected("", 1000) < 64


def test_the_live_state_shows_programs_pools_and_who_waits(server):
    server.serve(PROMPT, "a")
    queue(server, "a", "a1")
    queue(server, "b", "b1")
    queue(server, None, "plain")
    in_order(server)
    status, state = server.control("state")
    shown = state["queue"]
    assert status == 200 and [p["program"] for p in shown["programs"]] == ["a", "b", "plain"]
    assert shown["programs"][0]["kv_tokens"] == server.h.cache.owners.ledger.held("a") > 0
    assert [p["waiting"] for p in shown["programs"]] == [1, 1, 1]
    assert [one["reason"] for one in shown["waiting"]] == ["memory", "order", "order"]
    assert {(pool["tenant"], pool["class"]) for pool in shown["pools"]} == {("", "agents"), ("", "plain")}


def test_a_flush_empties_the_accounts(server):
    server.serve(PROMPT, "a")
    server.h.cache.reset()
    assert server.h.cache.owners.ledger.accounts == {}


def test_a_graph_that_was_posted_orders_the_requests_of_a_program_and_shows_in_the_state(server):
    plan = {"nodes": [{"name": "short", "tokens": 10}, {"name": "long", "tokens": 100}]}
    status, posted = server.control("graph", **plan)
    assert (status, posted["status"]) == (200, "applied")
    for agent, node in (("a", "short"), ("b", "long")):
        req = server.h.request(PROMPT, agent, node)
        req.agent_metadata |= {"app_id": "run", "graph_id": posted["graph_id"], "node_id": node}
        server.h.waiting_queue.append(req)
        server.extension.on_request_added(req)
    assert in_order(server) == ["long", "short"]
    server.extension.on_requests_admitted([
        SimpleNamespace(rid="short", extend_range=SimpleNamespace(length=8))])
    report = server.control("state", agents=10)[1]
    assert report["queue"]["waiting"] == [
        {"rid": "long", "program": "run", "path_s": 2.5, "reason": "memory"}]
    assert [run["nodes_running"] for run in report["runs"]] == [["short", "long"]]
    assert report["counters"]["critical_inversions"] == 1 and report["num_graphs"] == 1
    assert report["queue"]["critical_inversions"] == [
        {"at": server.controller.now, "program": "run", "rid": "short", "path_s": 0.25, "passed": "long",
         "passed_path_s": 2.5, "reason": "memory"}]
    assert server.control("show_graph", graph_id=posted["graph_id"])[1]["critical_path"] == ["long"]
    assert server.control("graph", nodes=[])[0] == 400 and server.control("show_graph", graph_id="?")[0] == 404
