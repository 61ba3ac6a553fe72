"""Pools on the real cache: accounts of the device, who is passed over, whose resting KV leaves first."""

from __future__ import annotations

import pytest

from tests.engine.test_life_cycle import Server
from tokencake_sglang.core.spatial.pools import Account

DEVICE = 192
MAIN, REST, NEXT = list(range(300, 364)), list(range(500, 564)), list(range(700, 732))
PLAN = {"nodes": [{"name": "main", "agent_type": "main", "tokens": 100},
                  {"name": "end", "agent_type": "main", "tokens": 1000},
                  {"name": "rest", "agent_type": "rest", "tokens": 1}],
        "edges": [["main", "end"]], "entries": ["main", "rest"]}


class PoolServer(Server):
    """Agents of two types in one graph: `main` is on its critical path, `rest` is not."""

    def __init__(self, harness, **settings):
        super().__init__(harness, **{"pools": "demand", "offload_policy": "none", **settings})
        self.graph_id = self.control("graph", **PLAN)[1]["graph_id"]
        self.pools = self.extension.queue.pools

    def queue(self, tokens, agent="main", tenant=None, app="app"):
        req = self.h.request(tokens, agent)
        kind = (agent or "").rstrip("0123456789")
        if agent:
            req.agent_metadata |= {
                "app_id": app, "graph_id": self.graph_id, "node_id": kind, "agent_type": kind,
                "expected_output_tokens": "8"}
        if tenant:
            req.agent_metadata = {**(req.agent_metadata or {}), "tenant": tenant}
        self.h.waiting_queue.append(req)
        self.extension.on_request_added(req)
        return req

    def run(self, req):
        super().run(req)
        self.extension.on_requests_admitted([req])
        self.wait(1.0)  # else a token would be taken to need no time, and no path to be longer than another
        return req

    def step(self, seconds=1.0):
        self.wait(seconds)
        self.extension.order_waiting_queue(self.h.waiting_queue)

    def account(self, kind):
        return Account("", self.graph_id, kind)

    def memory(self):
        return self.control("state")[1]["queue"]["memory"]


@pytest.fixture
def server(make):
    return PoolServer(make(device_tokens=DEVICE, host_tokens=256))


def both_have_kv(server):
    """That of `rest` was used last."""
    return server.serve(MAIN, "main", steps=20), server.serve(REST, "rest", steps=1)


def is_whole(server, tokens):
    node = server.h.peek(tokens)  # a match would make it young
    return node.value is not None and len(server.h.tokens_of(node)) == len(tokens)


def test_resting_kv_of_borrowers_leaves_first_while_a_critical_request_waits(server):
    main, rest = both_have_kv(server)
    server.queue(NEXT, "main2")
    server.step()
    assert server.extension.queue.device.recalled.keys() == {server.account("rest")}
    server.h.evict(16)
    server.h.audit()
    assert is_whole(server, main) and not is_whole(server, rest)


def test_without_pools_the_kv_that_was_used_first_leaves_first(make):
    server = PoolServer(make(device_tokens=DEVICE, host_tokens=256), pools="none")
    main, rest = both_have_kv(server)
    server.queue(NEXT, "main2")
    server.step()
    server.h.evict(16)
    assert is_whole(server, rest) and not is_whole(server, main)


def test_no_more_is_recalled_than_was_lent(server):
    main = server.serve(MAIN, "main", steps=20)
    for number in range(2):
        server.serve([n + 100 * number for n in NEXT], f"rest{number}", steps=1)
    server.queue(NEXT[:8], "main2")
    server.step()
    recalled = server.extension.queue.device.recalled
    assert recalled == {server.account("rest"): 8 + 8}, "its prompt and what it is expected to generate"
    server.h.evict(16)
    assert recalled == {} and is_whole(server, main)
    server.h.evict(1)
    assert not is_whole(server, main), "the rest goes by age"


def test_what_is_lent_stays_lent_once_nobody_waits_for_it(server):
    main, rest = both_have_kv(server)
    waiting = server.queue(NEXT, "main2")
    server.step()
    server.h.waiting_queue.remove(waiting)
    server.step()
    server.h.evict(16)
    assert is_whole(server, rest) and not is_whole(server, main)


def test_a_younger_program_leaves_room_for_a_critical_agent_that_is_expected_back(server):
    server.serve(MAIN, "main", steps=20)
    runs = server.run(server.queue(REST, "rest"))
    server.stall("main", 0.9)
    young, same = server.queue([*REST, *NEXT], "rest1", app="young"), server.queue(NEXT, "rest2")
    server.step(0.1)
    assert server.extension.holds_back(young) and not server.extension.holds_back(same)
    assert server.counters["denied_by_pool"] == 1
    waiting = server.control("state")[1]["queue"]["waiting"]
    assert {one["rid"]: one["reason"] for one in waiting} == {young.rid: "pool", same.rid: "memory"}
    server.queue(MAIN, "main")
    server.step(0.1)
    assert not server.extension.holds_back(young), "it is back, and goes before by its age"
    server.h.finish(runs)


def test_a_tenant_above_its_ceiling_is_passed_over_while_another_waits(make):
    server = PoolServer(make(device_tokens=DEVICE, host_tokens=256), pools="none", tenant_header="x-tenant",
                        tenant_shares="greedy=0:0.4,modest=0.3:1")
    server.run(server.queue(MAIN, None, "greedy"))
    greedy, modest = server.queue(REST, None, "greedy"), server.queue(NEXT, None, "modest")
    server.step()
    assert server.extension.holds_back(greedy) and not server.extension.holds_back(modest)
    assert server.counters["denied_by_ceiling"] == 1


@pytest.mark.parametrize(("kind", "bound"), [("search", True), ("human", False)])
def test_a_ceiling_holds_while_an_agent_of_another_tenant_is_away_for_a_call_and_not_for_a_person(make, kind, bound):
    server = PoolServer(make(device_tokens=DEVICE, host_tokens=256), pools="none", tenant_header="x-tenant",
                        tenant_shares="greedy=0:0.4")
    server.h.finish(server.run(server.queue(NEXT, "main", "modest", app="other")))
    server.control("event", event="stall_started", agent_id="main", kind=kind, estimated_duration_s=90.0, call_id="c")
    server.run(server.queue(MAIN, None, "greedy"))
    server.wait(60.0)
    greedy = server.queue(REST, None, "greedy")
    server.step()
    assert server.extension.holds_back(greedy) == bound
    server.control("event", event="agent_finished", agent_id="main")
    server.step()
    assert not server.extension.holds_back(greedy), "work conserving: nobody else is at it"


def test_what_the_pool_looks_like_is_a_question_without_effects(make):
    server = PoolServer(make(device_tokens=DEVICE, host_tokens=256), pools="none", tenant_header="x-tenant",
                        tenant_shares="greedy=0:0.4,modest=0.3:1")
    server.run(server.queue(MAIN, None, "greedy"))
    server.queue(REST, None, "greedy")
    server.queue(NEXT, None, "modest")
    server.step()
    gate = server.pools.gate
    before = dict(gate.used_by_tenant), dict(gate.waiting)
    mover = server.extension.mover
    assert mover.measure_pool().waiting_head_tokens == len(NEXT), "only what may go needs room"
    assert (gate.used_by_tenant, gate.waiting) == before and server.counters["denied_by_ceiling"] == 0


def test_the_state_accounts_for_every_token_by_pool_and_agent(server):
    server.serve(MAIN, "main")
    server.serve([*MAIN[:32], *NEXT], "rest")
    running = server.run(server.queue(REST[:32], "rest"))
    server.h.decode(running, 3)
    memory = server.memory()
    pools = {pool["agent_type"]: pool for pool in memory["pools"]}
    held = sum(pool[name] for pool in pools.values() for name in ("used", "in_transfer", "cached"))
    assert memory["total"] == DEVICE == memory["free"] + held
    assert 48 <= pools["main"]["cached"] <= 48 + 4, "half of what both share"
    assert pools["rest"]["used"] >= 32 + 3
    for pool in pools.values():
        assert sum(one["used"] + one["cached"] for one in pool["agents"]) == pool["used"] + pool["cached"]
    assert memory["tenants"] == [{
        "tenant": "", "floor": 0.0, "ceiling": 1.0, "used": pools["rest"]["used"], "in_transfer": 0,
        "cached": sum(pool["cached"] for pool in pools.values())}]


def test_kv_on_its_way_is_in_transfer(server):
    server.serve(MAIN, "main")
    server.h.back_up_all()
    server.h.evict(64)
    assert server.h.admit(server.h.request([*MAIN, 1, 2, 3], "main"))
    pools = {pool["agent_type"]: pool for pool in server.memory()["pools"]}
    assert pools["main"]["in_transfer"] >= 48
    server.h.settle()
    assert {pool["agent_type"]: pool for pool in server.memory()["pools"]}["main"]["in_transfer"] == 0


def test_loads_that_have_landed_are_not_remembered(server):
    for _ in range(3):
        server.serve(MAIN, "main")
        server.h.back_up_all()
        server.h.evict(DEVICE)
        server.serve([*MAIN, 1, 2, 3], "main")
    assert len(server.h.cache._in_load) <= 1
