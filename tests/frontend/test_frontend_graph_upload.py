"""Apps that follow a graph: the server is told it once, and requests of the app name it."""

from __future__ import annotations

import pytest
import sglang as sgl

import tokencake_sglang as tc
from tokencake_sglang.core.graph_json import graph_id, parse_graph
from tokencake_sglang.frontend import graph_upload


@tc.agent
def writer(s):
    s += "x" + sgl.gen("g") + sgl.gen("h")


def plan() -> tc.AgentGraph:
    return tc.derive(writer)


def test_the_graph_is_sent_once_before_the_first_request_and_named_in_all_of_the_app(peer, endpoint):
    graph = plan()
    for number in range(3):
        with tc.app(f"report-{number}", graph=graph):
            writer.run(backend=endpoint).sync()
    writer.run(backend=endpoint).sync()
    assert len(peer.graphs) == 1 and parse_graph(peer.graphs[0]) == graph.value()
    paths = [path for path, _ in peer.requests if path in ("/generate", "/v1/tokencake/graphs")]
    assert paths == ["/v1/tokencake/graphs"] + ["/generate"] * 8
    named = [body["tokencake"].get("graph_id") for body in peer.generates]
    assert named == [graph_id(graph.value())] * 6 + [None] * 2


def test_batches_and_forks_name_it_on_whatever_threads_they_run(peer, endpoint):
    @tc.agent
    def forking(s):
        s += "x" + sgl.gen("g")
        forks = s.fork(2)
        forks += sgl.gen("h")
        forks.join()

    with tc.app("many", graph=plan()):
        forking.run_batch([{}] * 3, backend=endpoint, num_threads=3, progress_bar=False)
    assert len(peer.graphs) == 1 and len(peer.generates) >= 9
    assert {body["tokencake"]["graph_id"] for body in peer.generates} == {graph_id(plan().value())}


def test_the_innermost_of_two_graphs_of_an_app_counts_and_nothing_is_kept_after_the_blocks(peer, endpoint):
    other = tc.AgentGraph()
    other.add_node("writer")
    with tc.app("a", graph=plan()):
        with tc.app("a", graph=other):
            writer.run(backend=endpoint).sync()
        writer.run(backend=endpoint).sync()
    named = [body["tokencake"]["graph_id"] for body in peer.generates]
    assert named == [graph_id(other.value())] * 2 + [graph_id(plan().value())] * 2
    assert graph_upload._GRAPHS == {}


def test_after_a_while_it_is_sent_again_because_the_server_may_be_a_new_one(peer, endpoint, monkeypatch):
    monkeypatch.setattr(graph_upload, "TOLD_FOR_S", 0.0)
    with tc.app("a", graph=plan()):
        writer.run(backend=endpoint).sync()
    assert len(peer.graphs) == 2


def test_a_server_without_tokencake_is_told_nothing_more_and_gets_stock_requests(make_peer):
    peer = make_peer(tokencake="absent")
    with tc.app("a", graph=plan()):
        writer.run(backend=tc.Endpoint(peer.url)).sync()
    assert len(peer.graphs) == 1 and ["tokencake" in body for body in peer.generates] == [True, False]


@pytest.mark.parametrize("graph", ["writer", {"nodes": []}, writer])
def test_what_is_no_graph_is_refused_at_the_start_of_the_block(graph):
    with pytest.raises(tc.GraphError, match="app: graph found"), tc.app("a", graph=graph):
        raise AssertionError("the block was entered")


def test_a_graph_that_is_no_plan_is_refused_at_the_start_of_the_block():
    graph = tc.AgentGraph()
    graph.add_node("a")
    graph.add_edge("a", "a")
    with pytest.raises(tc.GraphError, match="an edge to itself"), tc.app("a", graph=graph):
        raise AssertionError("the block was entered")
