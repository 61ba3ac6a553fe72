"""What clients say of a request and its agent, on the real cache and queue: programs, order, and what KV is worth."""

from __future__ import annotations

import pytest

from tests.engine.test_life_cycle import Server

ONE, TWO = list(range(300, 332)), list(range(500, 532))


@pytest.fixture
def server(make):
    server = Server(make(device_tokens=192, host_tokens=256), offload_policy="cost")
    server.wait()
    return server


def queue(server, tokens, **metadata):
    req = server.h.request(tokens, metadata["agent_id"])
    req.agent_metadata = metadata
    server.h.waiting_queue.append(req)
    server.extension.on_request_added(req)
    return req


def serve(server, tokens, **metadata):
    server.h.finish(server.run(queue(server, tokens, **metadata)))
    server.wait()


@pytest.mark.parametrize(("said", "stays"), [({}, False), ({"cache_ttl_s": "100.0"}, True)])
def test_kv_that_is_expected_within_its_time_outlives_kv_that_was_used_later(server, said, stays):
    serve(server, ONE, agent_id="a", **said)
    server.wait(20.0)
    serve(server, TWO, agent_id="b")
    server.wait(40.0)
    server.wait(1.0)
    server.h.evict(32)
    assert (server.h.on_device(ONE) == 32, server.h.on_device(TWO) == 32) == (stays, not stays)
    server.h.evict(64)
    assert server.h.on_device(ONE) == server.h.on_device(TWO) == 0  # it is no pin


def test_an_agent_and_its_sub_agents_are_one_program_in_the_queue_and_in_the_state(server):
    serve(server, ONE, agent_id="lead")
    queue(server, TWO, agent_id="sub", parent_agent_id="lead", program_id="lead")
    queue(server, ONE, agent_id="stranger")
    _, state = server.control("state")
    assert {a["agent"]: (a["parent"], a["program"]) for a in state["agents"]} == {
        "lead": (None, "lead"), "sub": ("lead", "lead"), "stranger": (None, "stranger")}
    assert [(p["program"], p["requests"]) for p in state["queue"]["programs"]] == [("lead", 1), ("stranger", 1)]
    for req in list(server.h.waiting_queue):
        server.run(req)
        server.h.finish(req)


def test_requests_of_one_program_wait_in_the_order_of_their_priority(server):
    low = queue(server, ONE, agent_id="a", program_id="p", priority="1")
    other = queue(server, ONE, agent_id="b")
    high = queue(server, ONE, agent_id="c", program_id="p", priority="50")
    server.extension.order_waiting_queue(server.h.waiting_queue)
    assert server.h.waiting_queue == [high, low, other]
    for req in (high, low, other):
        server.run(req)
        server.h.finish(req)


def test_a_wrong_hint_is_no_hint(server):
    serve(server, ONE, agent_id="a", priority="x", cache_ttl_s="nan", expected_output_tokens="-1", parent_agent_id="a")
    _, state = server.control("state")
    assert state["agents"][0]["used_until"] is None and state["agents"][0]["program"] == "a"


def test_the_end_of_a_program_leaves_its_kv_dead(server):
    serve(server, ONE, agent_id="lead")
    serve(server, TWO, agent_id="sub", parent_agent_id="lead")
    assert server.control("event", event="program_finished", agent_id="sub")[0] == 200
    server.wait()
    assert server.h.cache.owners.dead_evictable_tokens(10**6) == 64 and len(server.controller.agents) == 0
