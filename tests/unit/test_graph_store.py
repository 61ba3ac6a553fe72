"""A plan as JSON and back, the id that follows from it, and the bounded store of a server."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from tokencake_sglang.core.errors import GraphError
from tokencake_sglang.core.graph import AgentGraph, Node
from tokencake_sglang.core.graph_json import MAX_EDGES, MAX_NODES, graph_id, parse_graph, to_json
from tokencake_sglang.core.graph_store import GraphStore

PLAN = {
    "nodes": [
        {"name": "plan", "tokens": 100, "agent": "planner", "agent_type": "p"},
        {"name": "search", "kind": "tool", "seconds": 4, "stages": [{"name": "net", "estimated_s": 1.5}]},
        {"name": "write", "tokens": 200, "count": 3, "role": "r", "objective": "throughput"}],
    "edges": [["plan", "search"], ["search", "write"]]}


def chain(*names: str) -> dict:
    return {"nodes": [{"name": name} for name in names],
            "edges": [[a, b] for a, b in zip(names, names[1:], strict=False)]}


def test_json_becomes_a_plan_with_every_field_and_comes_back_the_same():
    graph = parse_graph(PLAN)
    assert graph == AgentGraph(
        (Node("plan", agent="planner", agent_type="p", tokens=100),
         Node("search", "tool", seconds=4.0, stages=(("net", 1.5),)),
         Node("write", role="r", objective="throughput", tokens=200, count=3.0)),
        (("plan", "search"), ("search", "write")))
    assert parse_graph(json.loads(json.dumps(to_json(graph)))) == graph


def test_the_id_does_not_depend_on_the_order_or_on_what_is_so_by_default():
    turned = {"edges": PLAN["edges"][::-1], "nodes": PLAN["nodes"][::-1], "entries": ["plan"]}
    turned["nodes"] = [{**node, "tool_kind": None, "count": node.get("count", 1.0)} for node in turned["nodes"]]
    assert graph_id(parse_graph(turned)) == graph_id(parse_graph(PLAN))
    assert len(graph_id(parse_graph(PLAN))) == 64


@pytest.mark.parametrize("change", [
    {"tokens": 101}, {"agent": "q"}, {"agent_type": "q"}, {"role": "q"}, {"objective": "throughput"}, {"count": 2},
    {"seconds": 1}, {"tool_kind": "q"}, {"kind": "tool"}, {"stages": [{"name": "a", "estimated_s": 1}]}])
def test_every_field_of_a_node_changes_the_id(change):
    other = {**PLAN, "nodes": [{**PLAN["nodes"][0], **change}, *PLAN["nodes"][1:]]}
    assert graph_id(parse_graph(other)) != graph_id(parse_graph(PLAN))


def test_an_edge_and_an_entry_change_the_id():
    graph = parse_graph(PLAN)
    assert graph_id(replace(graph, edges=graph.edges[:1])) != graph_id(graph)
    assert graph_id(replace(graph, entries=("plan", "write"))) != graph_id(graph)


@pytest.mark.parametrize(("graph", "said"), [
    ([], "the graph is a list of 0"),
    ({"nodes": {}}, "nodes is an object with 0 fields"),
    ({"nodes": [1]}, "nodes[0] is 1"),
    ({"nodes": [{}]}, "nodes[0] has no name"),
    ({"nodes": [{"name": ""}]}, "nodes[0].name is ''"),
    ({"nodes": [{"name": "a" * 257}]}, "nodes[0].name is "),
    ({"nodes": [{"name": "a\n"}]}, "nodes[0].name is 'a\\n'"),
    ({"nodes": [{"name": "a", "colour": 1}]}, "nodes[0] has the field 'colour'"),
    ({"nodes": [{"name": "a", "kind": ["llm"]}]}, "nodes[0].kind is a list of 1; allowed: llm, tool"),
    ({"nodes": [{"name": "a", "objective": "cost"}]}, "nodes[0].objective is 'cost'; allowed: latency, throughput"),
    ({"nodes": [{"name": "a", "tokens": 1.5}]}, "nodes[0].tokens is 1.5; allowed: a whole number"),
    ({"nodes": [{"name": "a", "tokens": True}]}, "nodes[0].tokens is true"),
    ({"nodes": [{"name": "a", "seconds": -1}]}, "nodes[0].seconds is -1"),
    ({"nodes": [{"name": "a", "seconds": float("inf")}]}, "nodes[0].seconds is inf"),
    ({"nodes": [{"name": "a", "count": 10**400}]}, "nodes[0].count is a number of 1329 bits"),
    ({"nodes": [{"name": "a", "stages": [{"name": "s"}]}]}, "nodes[0].stages[0] has no estimated_s"),
    ({"nodes": [{"name": "a"}], "edges": [["a"]]}, "edges[0] is a list of 1"),
    ({"nodes": [{"name": "a"}], "edges": [["a", 2]]}, "edges[0][1] is 2"),
    ({"nodes": [{"name": "a"}], "entries": [None]}, "entries[0] is null"),
    ({"nodes": [{"name": "a"}] * (MAX_NODES + 1)}, f"nodes has {MAX_NODES + 1} items; allowed: at most {MAX_NODES}"),
    ({"nodes": [{"name": "a"}], "edges": [["a", "a"]] * (MAX_EDGES + 1)}, f"edges has {MAX_EDGES + 1} items"),
])
def test_what_is_no_graph_is_refused_with_a_sentence(graph, said):
    with pytest.raises(GraphError) as refused:
        parse_graph(graph)
    assert said in str(refused.value) and str(refused.value).endswith(".")


@pytest.mark.parametrize(("graph", "said"), [
    ({}, "the graph has no nodes"), (chain("a", "b", "a"), "two nodes are named 'a'"),
    ({"nodes": [{"name": "a"}], "edges": [["a", "a"]]}, "an edge to itself"),
    ({"nodes": [{"name": "a"}], "edges": [["a", "b"]]}, "there is no node 'b'"),
    ({"nodes": [{"name": "a"}], "entries": ["b"]}, "start: there is no node 'b'"),
    ({"nodes": [{"name": "a"}, {"name": "b"}], "edges": [["a", "b"], ["b", "a"]]}, "in a circle: a -> b -> a"),
    ({"nodes": [{"name": "a"}, {"name": "b"}, {"name": "c"}], "edges": [["a", "b"]]}, "nothing leads from the start"),
])
def test_a_graph_that_is_no_plan_is_a_400_and_is_not_kept(graph, said):
    store = GraphStore()
    status, body = store.post(graph)
    assert (status, body["error"]["reason"], len(store)) == (400, "graph", 0) and said in body["error"]["message"]


def test_the_answer_has_the_id_the_critical_path_and_the_expected_seconds():
    store = GraphStore()
    status, body = store.post(PLAN)
    assert (status, body["status"], body["nodes"]) == (200, "applied", 3)
    assert body["critical_path"] == ["plan", "search", "write"]
    assert body["expected_s"] == pytest.approx(100 * 0.025 + 4 + 3 * 200 * 0.025)
    again = store.post({**PLAN, "nodes": PLAN["nodes"][::-1]})[1]
    assert (again["status"], again["graph_id"], len(store)) == ("duplicate", body["graph_id"], 1)


def test_a_known_graph_is_shown_with_its_facts_and_an_unknown_one_is_a_404_with_a_sentence():
    store = GraphStore()
    name = store.post(PLAN)[1]["graph_id"]
    status, shown = store.show(name)
    assert status == 200 and parse_graph({k: shown[k] for k in ("nodes", "edges", "entries")}) == parse_graph(PLAN)
    assert shown["facts"]["write"] == {
        "depth": 3, "remaining_depth": 1, "expected_s": 15.0, "start_s": 6.5, "slack_s": 0.0, "critical": True}
    status, body = store.show("x" * 5000)
    assert (status, body["error"]["reason"]) == (404, "unknown_graph") and len(body["error"]["message"]) < 400


def test_of_too_many_graphs_the_one_used_longest_ago_goes():
    store = GraphStore(most_graphs=2)
    first, second = (store.post(chain(name))[1]["graph_id"] for name in "ab")
    store.get(first)
    third = store.post(chain("c"))[1]["graph_id"]
    assert [store.show(name)[0] for name in (first, second, third)] == [200, 404, 200]


def test_the_nodes_and_edges_of_all_graphs_together_are_bounded():
    store = GraphStore(most_parts=10)
    for number in range(20):
        store.post(chain(*(f"{number}.{letter}" for letter in "abc")))
        assert store.parts == 5 * len(store) <= 10
    assert store.post(chain(*"abcdefghij"))[0] == 200 and (len(store), store.parts) == (1, 19)
