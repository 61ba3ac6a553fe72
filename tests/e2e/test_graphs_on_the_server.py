"""A graph, the run of a program that follows it, and graphs that are none, on one real server."""

from __future__ import annotations

import json
import threading
import time

import pytest

from tests.support.scenario import tokens
from tests.support.server import ServerProcess

pytestmark = pytest.mark.e2e

FLAGS = ("--max-total-tokens", "4096", "--hicache-ratio", "2", "--enable-tokencake")
GRAPHS, STATE, EVENTS = "/v1/tokencake/graphs", "/v1/tokencake/state", "/v1/tokencake/events"
#   plan -> search 4 s -> write;  plan -> note
PLAN = {
    "nodes": [{"name": "plan", "tokens": 8}, {"name": "search", "kind": "tool", "tool_kind": "search", "seconds": 4},
              {"name": "write", "tokens": 8}, {"name": "note", "tokens": 8}, {"name": "long", "tokens": 64}],
    "edges": [["plan", "search"], ["search", "write"], ["plan", "note"], ["plan", "long"]]}


@pytest.fixture(scope="module")
def server():
    with ServerProcess(*FLAGS, module="tokencake_sglang.launch_server") as server:
        yield server


def state(server: ServerProcess) -> dict:
    return json.loads(server.get(STATE)[1])


def send(server: ServerProcess, graph: str, agent: str, node: str, count: int = 8, prompt: int = 40) -> dict:
    return server.generate(tokens(agent, prompt), count, sampling_params={"ignore_eos": True}, tokencake={
        "app_id": "run-1", "graph_id": graph, "node_id": node, "agent_id": agent})


def event(server: ServerProcess, **fields: object) -> None:
    status, text = server.post(EVENTS, fields)
    assert status == 200, text


def test_the_run_of_a_program_unfolds_in_the_state(server):
    status, text = server.post(GRAPHS, PLAN)
    posted = json.loads(text)
    assert (status, posted["status"], posted["critical_path"]) == (200, "applied", ["plan", "search", "write"])
    assert json.loads(server.post(GRAPHS, PLAN)[1])["status"] == "duplicate"
    status, text = server.get(f"{GRAPHS}/{posted['graph_id']}")
    assert status == 200 and json.loads(text)["facts"]["write"]["critical"]
    graph = posted["graph_id"]
    send(server, graph, "a", "plan")
    (run,) = state(server)["runs"]
    assert (run["program"], run["graph_id"], run["nodes_over"], run["nodes_left"]) == ("run-1", graph, 1, 4)
    assert run["remaining_s"] >= 4
    event(server, event="stall_started", agent_id="a", kind="search", call_id="c")
    assert state(server)["runs"][0]["nodes_running"] == ["search"]
    event(server, event="stall_finished", agent_id="a", call_id="c")
    before = run["remaining_s"]
    send(server, graph, "a", "write")
    (run,) = state(server)["runs"]
    assert (run["nodes_over"], run["nodes_running"]) == (3, []) and run["remaining_s"] < before
    send(server, graph, "b", "a step that the graph does not have")
    assert state(server)["runs"][0]["unfolded"] == ["a step that the graph does not have"]
    for agent in "ab":
        event(server, event="agent_finished", agent_id=agent)
    assert state(server)["runs"] == []


def test_of_two_requests_of_a_program_that_wait_the_one_with_the_longer_path_goes_first(server):
    graph = json.loads(server.post(GRAPHS, PLAN)[1])["graph_id"]
    ended: list[str] = []

    def one(agent: str, node: str, count: int) -> None:
        send(server, graph, agent, node, count, prompt=2500)  # two of them do not fit into 4096 slots
        ended.append(node)

    threads = [threading.Thread(target=one, args=("first", "plan", 200))]
    threads[0].start()
    while not state(server)["pool"]["running_requests"]:
        pass
    for agent, node in (("second", "note"), ("third", "long")):
        threads.append(threading.Thread(target=one, args=(agent, node, 4)))
        threads[-1].start()
        while agent not in {known["agent"] for known in state(server)["agents"]}:
            pass
    paths = [waiting["path_s"] for waiting in state(server)["queue"]["waiting"]]
    for thread in threads:
        thread.join(60)
    assert len(paths) == 2 and 0 < paths[0] < paths[1], "the first request ended before the others waited"
    assert ended == ["plan", "long", "note"]
    assert state(server)["counters"]["critical_inversions"] == 0
    for agent in ("first", "second", "third"):
        event(server, event="agent_finished", agent_id=agent)


@pytest.mark.parametrize("graph", [
    b"", b"{", b"[]", b"{}", b'{"nodes": [{"name": "a"}], "edges": [["a", "a"]]}', b'{"nodes": [{"name": 1}]}',
    b'{"nodes": [{"name": "a"}, {"name": "b"}], "edges": [["a", "b"], ["b", "a"]]}', b"[" * 100_000,
    b'{"nodes": [{"name": "a", "seconds": 1e400}]}', b" " * 600_000,
], ids=lambda graph: repr(graph[:30]))
def test_what_is_no_graph_is_a_400_with_a_sentence(server, graph):
    status, text = server.post(GRAPHS, graph)
    assert status == 400 and json.loads(text)["error"]["reason"] in ("schema", "graph"), text


def test_a_graph_id_that_nobody_knows_is_no_error(server):
    assert len(send(server, "elsewhere", "c", "n")["output_ids"]) == 8
    status, text = server.get(f"{GRAPHS}/elsewhere")
    assert status == 404 and json.loads(text)["error"]["reason"] == "unknown_graph"
    event(server, event="agent_finished", agent_id="c")
    assert state(server)["runs"] == []


def test_a_derived_program_moves_its_run_through_the_graph_and_leaves_nothing(server):
    import sglang as sgl

    import tokencake_sglang as tc

    seen: list[dict] = []

    @tc.tool(predict_time=1.5)
    def search(query: str) -> str:
        seen.extend(run for run in state(server)["runs"] if run["program"] == "report-1")
        return query

    @tc.agent
    def planner(s):
        s += "Plan." + sgl.gen("plan", max_tokens=4)
        s += tc.call(search, {"query": "kv"}, name="hits")
        s += "More." + sgl.gen("more", max_tokens=4)

    @tc.agent
    def writer(s, part):
        s += f"Write {part}." + sgl.gen("text", max_tokens=4)

    def report(backend=None):
        planner.run(backend=backend).sync()
        for written in writer.run_batch([{"part": "one"}, {"part": "two"}], backend=backend, progress_bar=False):
            written.sync()

    graph = tc.derive(report)
    names = [node.name for node in graph.value().nodes]
    assert names == ["planner.plan", "planner.hits", "planner.more", "writer[1].text", "writer[2].text"]
    with tc.app("report-1", graph=graph):
        report(backend=tc.Endpoint(server.base_url))
    (run,) = seen
    assert (run["nodes_over"], run["nodes_running"], run["nodes_left"]) == (1, ["planner.hits"], 3)
    assert run["unfolded"] == [] and run["remaining_s"] > 1
    for _ in range(200):
        if not [run for run in state(server)["runs"] if run["program"] == "report-1"]:
            return
        time.sleep(0.05)
    raise AssertionError(state(server)["runs"])
