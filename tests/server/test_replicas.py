"""Data-parallel replicas: where requests and control calls go, and what is made of the answers."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.server.test_gateway import LoopbackManager
from tokencake_sglang.core.config import TokenCakeConfig
from tokencake_sglang.engine.extension import of_replica
from tokencake_sglang.engine.ipc import TokenCakeControlReqOutput
from tokencake_sglang.server.gateway import ControlGateway, before_generate
from tokencake_sglang.server.replicas import ALL, Replicas, merge


def agent(name, program="app", **more):
    return {"app_id": program, "agent_id": name, **more}


class TestRoute:
    def test_all_of_a_program_goes_to_one_and_programs_are_spread(self):
        replicas = Replicas(3)
        assert [replicas.route(agent(f"{p}/{n}", p)) for p in "abcd" for n in "xy"] == [0, 0, 1, 1, 2, 2, 0, 0]

    def test_an_agent_stays_where_it_is_under_another_program(self):
        replicas = Replicas(2)
        replicas.route(agent("w", "one"))
        replicas.route(agent("other", "two"))
        assert replicas.route(agent("w", "two")) == 0

    def test_an_agent_goes_to_the_one_of_its_parent(self):
        replicas = Replicas(2)
        replicas.route(agent("boss", "one"))
        assert replicas.route(agent("helper", "elsewhere", parent_agent_id="boss")) == 0

    def test_a_replica_that_the_client_names_is_kept_to(self):
        replicas = Replicas(2)
        assert replicas.route(agent("w"), asked=1) == 1
        assert replicas.route(agent("w")) == replicas.route(agent("v")) == 1
        assert replicas.of("w", None) == 1

    def test_requests_of_no_agent_are_left_alone(self):
        replicas = Replicas(2)
        assert replicas.route(None) is None and replicas.route({"tenant": "t"}) is None and replicas.route([]) is None
        assert replicas.route(None, asked=1) == 1

    def test_a_batch_goes_to_the_one_of_its_first_agent(self):
        replicas = Replicas(2)
        replicas.route(agent("a", "one"))
        assert replicas.route([agent("b", "two"), agent("a", "one")]) == 1

    @given(st.lists(st.tuples(st.integers(0, 12), st.sampled_from([None, None, 0, 1])), max_size=60))
    def test_what_is_remembered_is_bounded_and_loads_add_up(self, asked):
        replicas = Replicas(2, kept=5)
        for number, rank in asked:
            replicas.route(agent(f"agent{number}", f"app{number}", lifecycle_id=f"call{number}"), rank)
            assert len(replicas._agents) <= 5 and sum(replicas._load) == len(replicas._programs) <= 5
            assert replicas._load == [list(replicas._programs.values()).count(r) for r in (0, 1)]


class TestControlCalls:
    def replicas(self):
        replicas = Replicas(2)
        replicas.route(agent("a", "one", lifecycle_id="call-a"))
        replicas.route(agent("b", "two"))
        return replicas

    @pytest.mark.parametrize(("op", "payload", "where"), [
        ("event", {"agent_id": "a"}, 0), ("event", {"lifecycle_id": "call-a"}, 0), ("event", {"agent_id": "b"}, 1),
        ("event", {"agent_id": "nobody"}, ALL), ("actions", {"actions": [{"agent_id": "b"}, {"agent_id": "b"}]}, 1),
        ("actions", {"actions": [{"agent_id": "a"}, {"agent_id": "b"}]}, ALL), ("state", {}, ALL), ("graph", {}, ALL)])
    def test_a_call_goes_to_the_one_of_its_agent_or_to_all(self, op, payload, where):
        assert self.replicas().of_call(op, payload) == where

    @pytest.mark.parametrize(("answers", "best"), [
        ([(404, {}), (200, {"status": "applied"})], 1), ([(200, {"status": "duplicate"}), (404, {})], 0),
        ([(409, {}), (200, {"status": "late_finish"})], 1), ([(404, {}), (409, {})], 1), ([(404, {}), (404, {})], 0),
        ([(200, {"status": "late_finish"}), (200, {"status": "applied"})], 1)])
    def test_of_an_event_the_answer_of_whoever_knows_the_agent_counts(self, answers, best):
        assert merge("event", answers) is answers[best]

    def test_each_action_has_the_outcome_of_the_replica_that_knows_its_agent(self):
        def outcomes(*names):
            return 200, {"outcomes": [{"outcome": name} for name in names]}

        answers = [outcomes("missing", "accepted", "missing"), outcomes("clipped", "missing", "missing")]
        assert merge("actions", answers) == outcomes("clipped", "accepted", "missing")

    def test_a_failure_of_one_is_the_failure_of_a_call_to_all(self):
        full = (400, {"error": {}})
        for op in ("state", "actions", "graph", "save"):
            assert merge(op, [(200, {}), full]) == full

    def test_the_state_has_all_agents_with_their_replica_sums_and_each_replica(self):
        def body(rank):
            return {"enabled": True, "now": 5.0 + rank, "num_agents": 2, "agents": [{"agent": f"a{rank}"}], "moves": [],
                    "runs": [], "actions": [], "stalls": [], "counters": {"stalls_started": 1 + rank},
                    "declined": {f"why{rank}": 1}, "stall_totals": {"returned": 1}, "pool": {"device_free": rank},
                    "queue": None, "chunks_parked": 1, "beside_long_prompts": 2, "num_graphs": 3}

        status, state = merge("state", [(200, body(0)), (200, body(1))])
        assert status == 200
        assert state["agents"] == [{"agent": "a0", "dp_rank": 0}, {"agent": "a1", "dp_rank": 1}]
        assert (state["num_agents"], state["counters"], state["num_graphs"]) == (4, {"stalls_started": 3}, 3)
        assert state["beside_long_prompts"] == 4
        assert state["declined"] == {"why0": 1, "why1": 1} and state["pool"] is None
        assert [(one["dp_rank"], one["pool"]) for one in state["replicas"]] == [
            (0, {"device_free": 0}), (1, {"device_free": 1})]


class TestGateway:
    def manager(self):
        manager = LoopbackManager()
        manager.server_args = SimpleNamespace(dp_size=2)
        return manager

    def answer(self, manager, request, rank, status=200, body=None):
        manager._result_dispatcher(TokenCakeControlReqOutput(
            control_id=request.control_id, status=status, body=json.dumps(body or {}), dp_rank=rank))

    def test_a_call_to_all_waits_for_all_and_one_to_an_agent_for_its_replica(self):
        async def go():
            manager = self.manager()
            gateway = ControlGateway(manager)
            call = asyncio.ensure_future(gateway.call("event", {"agent_id": "w"}))
            await asyncio.sleep(0)
            (request,) = manager.sent
            assert request.dp_rank == ALL
            self.answer(manager, request, 1, 200, {"status": "applied"})
            await asyncio.sleep(0.01)
            assert not call.done()
            self.answer(manager, request, 0, 404, {"error": {}})
            assert await call == (200, {"status": "applied"})

            before_generate(manager, SimpleNamespace(agent_metadata=agent("w"), routed_dp_rank=1))
            call = asyncio.ensure_future(gateway.call("event", {"agent_id": "w"}))
            await asyncio.sleep(0)
            assert manager.sent[-1].dp_rank == 1
            self.answer(manager, manager.sent[-1], 1, 200, {"status": "duplicate"})
            assert await call == (200, {"status": "duplicate"}) and gateway.in_flight == 0

        asyncio.run(go())

    def test_a_request_is_given_a_replica_unless_it_names_one(self):
        manager = self.manager()
        ControlGateway(manager)
        for given_rank, expected in ((None, 0), (1, 1), (None, 1), (7, 7), ("x", "x")):
            request = SimpleNamespace(agent_metadata=agent("w"), routed_dp_rank=given_rank)
            before_generate(manager, request)
            assert request.routed_dp_rank == expected

    def test_a_server_without_replicas_sends_no_request_anywhere(self):
        manager = LoopbackManager()
        ControlGateway(manager)
        request = SimpleNamespace(agent_metadata=agent("w"), routed_dp_rank=None)
        before_generate(manager, request)
        assert request.routed_dp_rank is None


def test_each_replica_but_the_first_has_files_of_its_own():
    config = TokenCakeConfig(history="/h.json", decision_log="/log")
    assert of_replica(config, 0) is config
    assert (of_replica(config, 1).history, of_replica(config, 1).decision_log) == ("/h.json.dp1", "/log.dp1")
    assert of_replica(TokenCakeConfig(), 1) == TokenCakeConfig()
