"""Actions of clients on the real cache: KV is kept, moved and brought back, and a request still gets its memory."""

from __future__ import annotations

import pytest

from tests.engine.test_life_cycle import PROMPT, Server

OTHER = list(range(500, 564))


@pytest.fixture(params=["eager", "cost"])
def server(make, request):
    return Server(make(device_tokens=192, host_tokens=256), offload_policy=request.param)


def act(server, action, agent="a", **fields):
    status, body = server.control("actions", actions=[{"action": action, "agent_id": agent, **fields}])
    assert status == 200
    return body["outcomes"][0]


def test_a_demotion_takes_an_idle_agents_kv_off_the_device_and_a_prefetch_brings_it_back_as_it_was(server):
    done = server.serve(PROMPT)
    answer = act(server, "demote")
    assert (answer["outcome"], answer["tokens"]) == ("accepted", len(done))
    server.wait(0.1)
    server.wait(0.1)
    assert server.h.on_device(done) == 0 and server.h.on_host(done) == len(done)
    assert act(server, "prefetch")["outcome"] == "accepted"
    server.wait(0.1)
    server.wait(5.0)
    assert server.h.on_device(done) == len(done)
    server.h.expect_slots(server.h.match(done).device_indices, done)
    assert server.counters["uploads_completed"] == 1 and server.counters["uploads_late"] == 0
    assert server.h.cache.owners.protected == {}


def test_a_request_during_a_demotion_keeps_its_kv(server):
    done = server.serve(PROMPT)
    act(server, "demote")
    req = server.run(server.queue(done + [7, 8]))
    server.wait(0.1)
    server.wait(0.1)
    assert server.h.on_device(done) == len(done) and act(server, "demote")["outcome"] == "deferred"
    server.h.decode(req, 3)
    server.h.finish(req)
    server.wait(0.1)


def test_kept_kv_is_evicted_after_all_other_and_is_no_pin(server):
    kept = server.serve(list(range(800, 832)), "kept", steps=0)
    assert act(server, "retain", "kept", for_s=60.0)["outcome"] == "accepted"
    server.wait(1.0)
    later = server.serve(OTHER, "later", steps=0)
    server.h.evict(len(later))
    assert server.h.on_device(kept) == len(kept) and server.h.on_device(later) == 0
    server.h.evict(len(kept))
    assert server.h.on_device(kept) == 0
    server.h.audit()
    server.wait(60.0)
    assert server.h.cache.owners.protected == {}


def test_more_than_its_share_of_the_device_is_not_kept(server):
    done = server.serve(PROMPT)
    assert 0.25 * 192 < len(done) and act(server, "retain", for_s=60.0)["outcome"] == "rejected"
    assert server.h.cache.owners.protected == {}


def test_a_tool_wait_and_a_better_estimate_steer_the_policy_as_events_do(make):
    server = Server(make(device_tokens=192, host_tokens=256))
    done = server.serve(PROMPT)
    assert act(server, "tool_wait", kind="search", estimated_duration_s=50.0, call_id="c")["outcome"] == "accepted"
    server.wait(0.1)
    server.wait(0.1)
    assert server.h.on_device(done) == 0
    server.wait(1.0)
    assert act(server, "resume_estimate", resume_in_s=1.2)["outcome"] == "accepted"
    for _ in range(8):
        server.wait(0.25)
    assert server.h.on_device(done) == len(done)


def test_the_live_state_shows_what_was_asked_and_until_when_kv_is_kept(server):
    server.serve(PROMPT[:16], steps=0)
    act(server, "retain", for_s=30.0)
    act(server, "demote", "nobody")
    _, state = server.control("state")
    assert [(one["agent"], one["action"], one["outcome"]) for one in state["actions"]] == [
        ("nobody", "demote", "missing"), ("a", "retain", "accepted")]
    assert state["agents"][0]["kept_until"] == server.now + 30.0
    assert state["counters"]["actions_accepted"] == state["counters"]["actions_missing"] == 1
