"""The whole slice on one cache: extension, controller, eager policy, mover; time comes in ticks."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from sglang.utils import TypeBasedDispatcher

from tokencake_sglang.core.config import TokenCakeConfig
from tokencake_sglang.engine.extension import TokenCakeExtension
from tokencake_sglang.engine.ipc import TokenCakeControlReq, TokenCakeTickReq

PROMPT = list(range(300, 364))
STALL_S, LEAD_S, LEASE_S = 4.0, 1.0, 2.0


class Server:
    """A harness with the extension; requests go through it as through a scheduler, in iterations."""

    def __init__(self, harness, **settings):
        self.h = harness
        harness._request_dispatcher = TypeBasedDispatcher([])
        harness.ps, harness.tree_cache = SimpleNamespace(tp_rank=0, dp_rank=None), harness.cache
        settings = {"offload_policy": "eager", "min_offload_tokens": 16, "upload_lead_s": LEAD_S, "lease_s": LEASE_S,
                    **settings}
        self.extension = TokenCakeExtension(harness, TokenCakeConfig(**settings))
        self.controller = self.extension.controller
        self.counters = self.controller.counters
        self.now = 100.0
        self.calls = 0

    def wait(self, seconds=0.0, land=True):
        """One iteration `seconds` later; copies that were started before have landed unless told otherwise."""
        self.now += seconds
        if land:
            self.h.clock.complete_all(self.h.writes, self.h.loads)
        self.h._request_dispatcher(TokenCakeTickReq(now=self.now))
        self.h.step()
        self.h.audit()

    def control(self, op, **payload):
        out = self.h._request_dispatcher(TokenCakeControlReq(control_id="c", op=op, payload=json.dumps(payload)))
        return out.status, json.loads(out.body)

    def stall(self, agent="a", seconds=STALL_S):
        self.calls += 1
        status, reply = self.control("event", event="stall_started", agent_id=agent, kind="search",
                                     estimated_duration_s=seconds, call_id=f"c{self.calls}")
        assert (status, reply["status"]) == (200, "applied")

    def back(self, agent="a"):
        return self.control("event", event="stall_finished", agent_id=agent, call_id=None, outcome="ok")

    def queue(self, tokens, agent="a"):
        req = self.h.request(tokens, agent)
        self.h.waiting_queue.append(req)
        self.extension.on_request_added(req)
        return req

    def run(self, req):
        self.h.waiting_queue.remove(req)
        assert self.h.admit(req)
        self.h.forward(req)
        self.h.result(req)
        return req

    def serve(self, tokens, agent="a", steps=4):
        req = self.run(self.queue(tokens, agent))
        self.h.decode(req, steps)
        done = self.h.ids(req)
        self.h.finish(req)
        self.wait()
        return done[: len(done) // self.h.page_size * self.h.page_size]


@pytest.fixture
def server(make):
    return Server(make(device_tokens=192, host_tokens=256))


def all_quiet(server):
    """Nothing is held, locked or protected any more."""
    cache = server.h.cache
    assert server.extension.mover.moves_in_flight() == [] and cache.uploading == {}
    assert cache.owners.protected == {} and cache.protected_size() == 0


def test_a_stall_sends_the_kv_away_brings_it_back_before_the_return_and_the_lease_ends_by_itself(server):
    done = server.serve(PROMPT)
    server.stall()
    server.wait(land=False)
    assert server.h.on_device(done) == len(done)
    server.wait(0.1)
    assert server.h.on_device(done) == 0 and server.counters["tokens_offloaded"] >= len(done)
    server.wait(STALL_S - LEAD_S - 0.2)
    assert server.h.on_device(done) == 0
    server.wait(0.2)
    server.wait(0.1)
    assert server.h.on_device(done) == len(done)
    server.wait(LEAD_S - 0.3)
    assert "a" in server.h.cache.owners.protected
    assert server.back()[1]["status"] == "applied"
    req = server.run(server.queue(done + [1]))
    assert req.cached == len(done) and req.consumer == -1
    server.h.finish(req)
    server.wait()
    assert server.counters["uploads_on_time"] == 1 and server.counters["uploads_late"] == 0
    all_quiet(server)


def test_a_tool_that_never_returns_gives_the_memory_back_and_in_the_end_the_host_lease(server):
    done = server.serve(PROMPT)
    server.stall()
    for _ in range(12):
        server.wait(0.25)
        server.wait()
    for _ in range(12):
        server.wait(1.0)
        server.wait()
    assert server.h.on_device(done) == 0 and server.h.on_host(done) == len(done)
    assert server.counters["offloads_completed"] == 2 and server.counters["uploads_completed"] == 1
    for _ in range(5):
        server.wait(20.0)
    all_quiet(server)
    assert not server.controller.agents.get("a").lease_until


def test_an_early_return_during_the_copies_keeps_the_kv_on_the_device(server):
    done = server.serve(PROMPT)
    server.stall()
    server.wait(land=False)
    assert server.extension.mover.moves_in_flight()
    server.back()
    server.wait(0.01, land=False)
    server.wait(0.01)
    assert server.h.on_device(done) == len(done) and server.counters["offloads_completed"] == 1
    assert server.counters["tokens_offloaded"] == 0
    server.wait(LEASE_S + 0.1)
    server.wait(0.1)
    all_quiet(server)


def test_an_early_return_after_the_kv_has_left_brings_it_back_at_once(server):
    done = server.serve(PROMPT)
    server.stall()
    server.wait()
    server.wait()
    assert server.h.on_device(done) == 0
    server.back()
    server.wait(0.01, land=False)
    req = server.run(server.queue(done + [1]))  # the copy is on its way: the batch waits for it
    assert req.cached == len(done) and req.consumer >= 0
    server.h.finish(req)
    server.wait(0.01)
    assert server.counters["uploads_late"] == 1
    server.wait(LEASE_S + 1)
    all_quiet(server)


def test_a_request_that_comes_while_the_kv_is_leaving_finds_it_whole(server):
    done = server.serve(PROMPT)
    server.stall()
    server.wait(land=False)
    req = server.queue(done + [1])
    server.wait(0.01, land=False)
    server.run(req)
    assert req.cached == len(done)
    server.wait(0.01)
    server.h.decode(req, 4)
    server.h.finish(req)
    server.wait(0.01)
    assert server.counters["tokens_offloaded"] == 0 and server.counters["stalls_finished"] == 1
    server.wait(10)
    all_quiet(server)


def test_an_abort_of_the_returning_request_leaves_no_lease_behind(server):
    done = server.serve(PROMPT)
    server.stall()
    server.wait()
    server.wait()
    server.back()
    server.wait(0.01)
    req = server.run(server.queue(done + [1]))
    server.h.abort(req)
    server.wait(0.01)
    server.wait(LEASE_S + 0.1)
    all_quiet(server)


def test_a_request_aborted_in_the_queue_does_not_keep_its_agent_active(server):
    server.serve(PROMPT)
    req = server.queue(PROMPT + [1])
    server.wait(0.1)
    server.h.waiting_queue.remove(req)  # SGLang tells nobody
    server.stall()
    server.wait(0.1)
    server.wait(0.1)
    assert server.counters["offloads_completed"] == 1


@pytest.mark.parametrize("when", ["before", "leaving", "away", "coming"])
def test_an_agent_that_ends_at_any_moment_leaves_dead_kv_and_nothing_else(server, when):
    done = server.serve(PROMPT)
    if when != "before":
        server.stall()
        server.wait(land=False)
    if when in ("away", "coming"):
        server.wait()
    if when == "coming":
        server.wait(STALL_S - LEAD_S + 0.1, land=False)
        assert server.h.cache.loads_in_flight() == 1
    assert server.control("event", event="agent_finished", agent_id="a")[0] == 200
    server.wait(0.01)
    server.wait(0.01)
    all_quiet(server)
    assert len(server.controller.agents) == 0 and server.h.cache.owners.nodes == {}
    on_device = server.h.on_device(done)
    assert server.h.cache.owners.dead_evictable_tokens(1000) >= on_device
    if when in ("before", "leaving", "coming"):
        assert on_device == len(done)
    assert server.counters["offloads_started"] == server.counters["offloads_completed"]
    assert server.counters["uploads_started"] == server.counters["uploads_completed"]


def test_an_agent_that_ends_before_its_last_request_leaves_no_owner_behind(server):
    req = server.run(server.queue(PROMPT))
    server.h.decode(req, 20)
    server.control("event", event="agent_finished", agent_id="a")
    server.h.abort(req)
    server.wait(0.01)
    assert server.h.cache.owners.nodes == {} and server.h.cache.owners.leaf == {}
    assert server.h.cache.owners.dead_evictable_tokens(1000) >= 64
    server.h.audit()


def test_a_flush_during_a_stall_leaves_a_server_that_goes_on(server):
    done = server.serve(PROMPT)
    server.stall()
    server.wait(land=False)
    server.h.clock.complete_all(server.h.writes, server.h.loads)
    server.h.cache.writing_check()
    server.h.flush()
    server.wait(0.01)
    all_quiet(server)
    server.back()
    assert server.serve(done) == server.serve(done)
    server.stall("a")
    server.wait()


def test_a_request_that_was_just_retracted_holds_no_node_whose_copy_could_be_given_up(server):
    """Its batch is still the scheduler's last one while the host makes room. It stopped the server once."""
    req = server.run(server.queue(PROMPT))
    server.h.running_batch.reqs = [req]
    assert server.h.cache.held_nodes() == [req.last_node]
    server.h.retract(req)
    server.h.running_batch.reqs, server.h.last_batch = [], SimpleNamespace(reqs=[req])
    assert req.last_node is None
    server.h.cache.evict_host(server.extension.mover.measure_pool().host_total)
    assert server.h.cache.held_nodes() == []
    server.h.last_batch = None


def test_a_retracted_request_is_no_return_from_a_stall_and_keeps_its_agent_active(server):
    req = server.run(server.queue(PROMPT))
    server.stall()
    server.wait(0.1)
    server.h.retract(req)
    server.h.waiting_queue.append(req)
    server.extension.on_request_added(req)
    server.wait(0.1)
    assert server.counters["stalls_finished"] == 0 and server.counters["offloads_started"] == 0
    server.run(req)
    server.h.finish(req)
    server.wait(0.1)
    server.wait(0.1)
    assert server.counters["offloads_completed"] == 1


def test_many_agents_stall_and_return_and_every_one_reads_its_own_kv(make):
    server = Server(make(device_tokens=320, host_tokens=512), load_slots=6)
    agents = {f"a{i}": [500 + i] * 32 + list(range(600, 616)) for i in range(6)}
    done = {}
    for turn in range(3):
        for i, (key, tokens) in enumerate(agents.items()):
            done[key] = server.serve(done.get(key, tokens) + [turn], key, steps=2)
            server.stall(key, STALL_S + i * 0.1)
            server.wait(0.05, land=i % 2 == 0)
        for _ in range(40):
            server.wait(0.1, land=True)
        for key in agents:
            server.back(key)
            server.wait(0.01, land=False)
    assert server.counters["offloads_completed"] >= 12 and server.counters["uploads_completed"] >= 6
    for key in agents:
        server.control("event", event="agent_finished", agent_id=key)
    server.wait()
    server.wait()
    all_quiet(server)
    assert server.h.cache.owners.nodes == {}


def test_time_goes_to_all_ranks_only_while_something_waits_for_it(server):
    assert server.extension.extend_received([]) == []
    message = object()
    first, second = server.extension.extend_received([message])
    assert isinstance(first, TokenCakeTickReq) and second is message
    server.serve(PROMPT)
    server.stall()
    server.wait()
    server.extension._last_tick = 0.0
    assert isinstance(server.extension.extend_received([])[0], TokenCakeTickReq)


def test_time_goes_on_while_a_request_runs_although_no_message_comes(server):
    req = server.run(server.queue(PROMPT, agent=None))
    server.extension._last_tick = 0.0
    (tick,) = server.extension.extend_received([])
    assert isinstance(tick, TokenCakeTickReq)
    assert server.extension.extend_received([]) == [], "the time that is known is not old"
    server.h.finish(req)
    server.extension._last_tick = 0.0
    assert server.extension.extend_received([]) == []


def test_the_state_shows_the_agent_its_tokens_and_its_move(server):
    server.serve(PROMPT)
    server.stall()
    server.wait(land=False)
    status, state = server.control("state", agents=10)
    assert status == 200 and state["num_agents"] == 1
    agent = state["agents"][0]
    assert (agent["agent"], agent["state"], agent["move"]) == ("a", "stalled", "offload")
    assert agent["tokens"]["device_tokens"] == agent["tokens"]["unshared_device_tokens"] >= 64
    assert state["moves"] == [{"agent": "a", "kind": "offload", "tokens": agent["tokens"]["device_tokens"]}]
    assert state["pool"]["device_free"] + state["pool"]["device_evictable"] < state["pool"]["device_total"] == 192


def test_the_state_shows_the_last_stalls_newest_first_when_asked(server):
    for seconds in (5.0, 20.0):
        server.serve(PROMPT)
        server.stall(seconds=seconds)
        server.wait()
        server.wait(0.1)
        assert server.back()[0] == 200
    assert server.control("state")[1]["stalls"] == []
    newest, *others = server.control("state", stalls=2)[1]["stalls"]
    assert [other["forecast_median_s"] for other in others] == [5.0]
    assert newest["forecast_median_s"] < 20.0 and newest["forecast_source"] == "corrected estimate"
    assert newest["agent"] == "a" and newest["outcome"] == "ok" and newest["first"]["action"] == "Offload"
    assert newest["missing_tokens"] == newest["offloaded_tokens"] > 0 and newest["restore_s"] > 0
    state = server.control("state", stalls=1)[1]
    assert state["stalls"] == [newest] and state["stall_totals"]["returned"] == 2


@pytest.mark.parametrize("order", ["program", "sglang"])
def test_admission_is_tried_again_when_time_goes_on_if_the_order_is_ours(make, order):
    server = Server(make(device_tokens=192, host_tokens=256), order=order)
    server.h.running_batch.batch_is_full = True
    server.h.step()
    assert server.h.running_batch.batch_is_full
    server.wait(0.1)
    assert server.h.running_batch.batch_is_full == (order == "sglang")


def test_admission_is_tried_again_once_the_backups_of_an_ended_request_have_landed(make):
    server = Server(make(device_tokens=192, host_tokens=256, write_through=True), order="sglang")
    server.h.serve(PROMPT, "a")
    server.h.running_batch.batch_is_full = True
    server.wait(land=False)
    assert server.h.running_batch.batch_is_full
    server.wait()
    server.wait()
    assert not server.h.running_batch.batch_is_full
