"""Two data-parallel replicas on the CPU: a program stays on one, its events find it there, the state shows both."""

from __future__ import annotations

import json
import random

import pytest

from tests.e2e.test_outputs_equal import LAUNCHER, POOL, TOKENCAKE
from tests.support.server import ServerProcess

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

NOTHING_BY_HAND = {"OMP_NUM_THREADS": None, "SGLANG_CPU_OMP_THREADS_BIND": None, "SGLANG_NCCL_SO_PATH": None}
PROMPTS = {name: random.Random(name).choices(range(300, 3900), k=200) for name in "abcd"}
GRAPH = {"nodes": [{"name": "write", "kind": "llm", "agent": "writer"}], "edges": []}


@pytest.fixture(scope="module")
def server():
    with ServerProcess(*POOL, *TOKENCAKE, "--dp-size", "2", module=LAUNCHER, env=NOTHING_BY_HAND,
                       start_timeout_s=500) as started:
        yield started


def ask(server, program, agent="writer", **fields):
    metadata = {"app_id": program, "agent_id": f"{program}/{agent}"}
    return server.generate(PROMPTS[program[0]], 4, tokencake=metadata, **fields)["meta_info"]


def state(server):
    status, text = server.get("/v1/tokencake/state?agents=1000&stalls=100")
    assert status == 200, text
    return json.loads(text)


def event(server, name, agent, **fields):
    status, text = server.post("/v1/tokencake/events", {"event": name, "agent_id": agent, **fields})
    return status, json.loads(text)


def test_a_program_stays_on_one_replica_and_programs_are_spread(server):
    found = {}
    for turn in range(3):
        for program in ("a1", "b1", "c1", "d1"):
            meta = ask(server, program, agent=("writer", "critic")[turn % 2])
            found.setdefault(program, set()).add(meta["dp_rank"])
            assert (meta["cached_tokens"] > 150) == (turn > 0), "its KV is on the other replica"
    assert all(len(ranks) == 1 for ranks in found.values())
    assert sorted(rank for ranks in found.values() for rank in ranks) == [0, 0, 1, 1]
    shown = {one["agent"]: one["dp_rank"] for one in state(server)["agents"]}
    assert all(shown[f"{program}/writer"] in ranks for program, ranks in found.items())


def test_events_reach_the_replica_of_their_agent(server):
    for program in ("a2", "b2"):
        ask(server, program)
        before = state(server)["counters"]
        for name, more in (("stall_started", {"kind": "search"}), ("stall_finished", {}), ("agent_finished", {})):
            status, body = event(server, name, f"{program}/writer", **more)
            assert (status, body["status"]) == (200, "applied"), (name, body)
        after = state(server)["counters"]
        assert [after[n] - before[n] for n in ("stalls_started", "stalls_finished", "agents_ended")] == [1, 1, 1]


def test_an_event_about_nobody_is_a_404(server):
    status, body = event(server, "stall_started", "nobody", kind="search")
    assert (status, body["error"]["reason"]) == (404, "unknown_agent")


def test_a_client_that_names_a_replica_is_followed(server):
    for rank in (1, 0):
        assert ask(server, f"a3{rank}", routed_dp_rank=rank)["dp_rank"] == rank
        assert ask(server, f"a3{rank}")["dp_rank"] == rank
        assert event(server, "stall_started", f"a3{rank}/writer", kind="search")[0] == 200


def test_a_graph_is_known_on_both_and_time_goes_on_on_both(server):
    status, text = server.post("/v1/tokencake/graphs", GRAPH)
    assert status == 200, text
    assert server.get("/v1/tokencake/graphs/" + json.loads(text)["graph_id"])[0] == 200
    for rank in (0, 1):
        ask(server, f"b4{rank}", routed_dp_rank=rank)
    shown = state(server)
    assert shown["num_graphs"] == 1 and [one["dp_rank"] for one in shown["replicas"]] == [0, 1]
    assert all(one["now"] > 0 and one["num_agents"] > 0 for one in shown["replicas"])


def test_actions_on_agents_of_both_are_answered_each_by_its_own(server):
    for rank in (0, 1):
        ask(server, f"d5{rank}", routed_dp_rank=rank)
    names = ("d50/writer", "nobody", "d51/writer")
    actions = [{"action_type": "kv.retain", "payload": {"agent_id": name, "for_s": 5}} for name in names]
    status, text = server.post("/v1/tokencake/actions", {"actions": actions})
    assert status == 200, text
    assert [one["outcome"] for one in json.loads(text)["outcomes"]] == ["accepted", "missing", "accepted"]


def test_plain_requests_are_left_to_sglang(server):
    assert {server.generate([300 + n, 301, 302], 2)["meta_info"]["dp_rank"] for n in range(4)} == {0, 1}
