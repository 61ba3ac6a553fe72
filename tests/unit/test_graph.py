"""The plan of an application: what it refuses, and its depths, joins, critical path and slack worked out by hand."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tokencake_sglang.core.errors import GraphError
from tokencake_sglang.core.graph import TOOL_SECONDS, AgentGraph, Forecast, JoinGroup, Node

ROOT = Path(__file__).resolve().parents[2]


def graph(edges: str, seconds: dict[str, float] | None = None, **more) -> AgentGraph:
    """`"a>b a>c"` with tool nodes of one second each unless told."""
    pairs = [tuple(edge.split(">")) for edge in edges.split()]
    names = dict.fromkeys(name for pair in pairs for name in pair)
    nodes = tuple(Node(name, "tool", seconds=(seconds or {}).get(name, 1.0)) for name in names)
    return AgentGraph(nodes, tuple(pairs), **more)


DIAMOND = "a>b a>c b>d c>d"
SHORT_CUT = "a>b b>c c>d a>d"


@pytest.mark.parametrize(
    ("edges", "depth", "longest", "left"),
    [
        ("a>b b>c", {"a": 1, "b": 2, "c": 3}, {"a": 1, "b": 2, "c": 3}, {"a": 3, "b": 2, "c": 1}),
        (DIAMOND, {"a": 1, "b": 2, "c": 2, "d": 3}, {"a": 1, "b": 2, "c": 2, "d": 3}, {"a": 3, "b": 2, "c": 2, "d": 1}),
        (SHORT_CUT, {"a": 1, "b": 2, "c": 3, "d": 2}, {"a": 1, "b": 2, "c": 3, "d": 4},
         {"a": 4, "b": 3, "c": 2, "d": 1}),
        ("a>c b>c c>d c>e", {"a": 1, "b": 1, "c": 2, "d": 3, "e": 3}, {"a": 1, "b": 1, "c": 2, "d": 3, "e": 3},
         {"a": 3, "b": 3, "c": 2, "d": 1, "e": 1}),
    ],
    ids=["chain", "diamond", "short cut", "two starts, two ends"],
)
def test_depths_count_nodes_from_the_start_and_the_rest_counts_them_to_an_end(edges, depth, longest, left):
    facts = graph(edges).compile().facts
    assert {name: fact.depth for name, fact in facts.items()} == depth
    assert {name: fact.depth_longest for name, fact in facts.items()} == longest
    assert {name: fact.remaining_depth for name, fact in facts.items()} == left


def test_the_depth_of_the_graph_is_that_of_the_exit_behind_its_deepest_node():
    compiled = graph(SHORT_CUT).compile()
    assert (compiled.depth, compiled.depth_longest) == (4, 5)


def test_degrees_and_join_groups_name_who_waits_for_whom():
    compiled = graph(DIAMOND).compile()
    assert {n: (f.in_degree, f.out_degree) for n, f in compiled.facts.items()} == {
        "a": (0, 2), "b": (1, 1), "c": (1, 1), "d": (2, 0)}
    assert compiled.join_groups == (JoinGroup("d", ("b", "c")),)


def test_every_node_comes_after_those_it_waits_for_and_otherwise_as_declared():
    assert graph("z>c a>b b>c").compile().order == ("z", "a", "b", "c")
    assert graph(DIAMOND).compile().order == ("a", "b", "c", "d")


def test_the_critical_path_is_the_longest_by_seconds_and_slack_is_what_the_others_may_waste():
    compiled = graph(DIAMOND, {"a": 1.0, "b": 2.0, "c": 5.0, "d": 4.0}).compile()
    assert compiled.critical_path == ("a", "c", "d")
    assert compiled.expected_s == 10.0
    assert {name: fact.slack_s for name, fact in compiled.facts.items()} == {"a": 0, "b": 3.0, "c": 0, "d": 0}
    assert {name: fact.start_s for name, fact in compiled.facts.items()} == {"a": 0, "b": 1.0, "c": 1.0, "d": 6.0}
    assert [name for name, fact in compiled.facts.items() if fact.critical] == ["a", "c", "d"]


def test_of_equal_paths_the_first_declared_is_critical_and_the_other_has_no_slack_either():
    compiled = graph(DIAMOND).compile()
    assert compiled.critical_path == ("a", "b", "d")
    assert compiled.facts["c"].slack_s == 0 and not compiled.facts["c"].critical


def test_sums_along_different_paths_leave_no_slack_of_rounding():
    seconds = {"a": 0.1, "b": 0.2, "c": 0.3, "x": 0.6, "s": 0.0, "e": 0.0}
    assert graph("s>a a>b b>c c>e s>x x>e", seconds).compile().facts["x"].slack_s == 0


def test_an_end_without_duration_belongs_to_the_critical_path():
    assert graph("a>end", {"end": 0.0}).compile().critical_path == ("a", "end")


@pytest.mark.parametrize(
    ("node", "seconds"),
    [
        (Node("n", tokens=200), 5.0),
        (Node("n"), 3.2),
        (Node("n", tokens=200, seconds=1.5), 1.5),
        (Node("n", tokens=200, count=3), 15.0),
        (Node("n", "tool", seconds=4.0), 4.0),
        (Node("n", "tool", seconds=4.0, tokens=100, count=0.5), 3.25),
        (Node("n", "tool", tool_kind="search"), TOOL_SECONDS["search"]),
        (Node("n", "tool", tool_kind="search", stages=(("ask", 0.5), ("read", 0.25))), 0.75),
        (Node("n", "tool", tool_kind="never heard of"), 1.0),
        (Node("n", "tool", tool_kind="local"), 0.0),
    ],
    ids=["tokens", "unknown", "seconds", "loop", "tool", "written call in a branch", "kind", "stages", "unknown kind",
         "local"],
)
def test_a_node_takes_what_it_says_else_what_its_kind_usually_takes(node, seconds):
    assert AgentGraph((node,)).compile().expected_s == pytest.approx(seconds)


def test_a_forecast_replaces_the_usual_durations():
    nodes = (Node("n", tokens=100), Node("t", "tool", tool_kind="crawl"), Node("u", "tool"))
    forecast = Forecast(seconds_per_token=0.1, unknown_tool_s=7.0, tool_seconds={"crawl": 30.0})
    compiled = AgentGraph(nodes, (("n", "t"), ("t", "u"))).compile(forecast)
    assert [fact.expected_s for fact in compiled.facts.values()] == [10.0, 30.0, 7.0]


def test_nodes_without_any_edge_are_a_batch():
    compiled = AgentGraph((Node("a"), Node("b"))).compile()
    assert (compiled.depth, compiled.critical_path) == (2, ("a",))


@pytest.mark.parametrize(
    ("bad", "sentence"),
    [
        (AgentGraph(()), "no nodes; add at least one"),
        (AgentGraph((Node("a"), Node("a"))), "two nodes are named 'a'"),
        (AgentGraph((Node("plan"), Node("write")), (("plan", "wrote"),)), "no node 'wrote'; did you mean 'write'"),
        (AgentGraph((Node("a"),), (("a", "zzz"),)), r"no node 'zzz'; add it with add_node\(\) first"),
        (AgentGraph((Node("a"),), (), ("zzz",)), "start: there is no node 'zzz'"),
        (AgentGraph((Node("a"),), (("a", "a"),)), r"'a' has an edge to itself.*say how often: loop\('a', expected"),
        (graph("a>b b>c a>b"), "edge 'a' -> 'b' was declared twice"),
        (graph("s>b b>c c>d d>b"), r"circle: b -> c -> d -> b\. Remove one.*loop\(\.\.\., expected="),
        (graph("a>b b>a"), "circle: a -> b -> a"),
        (AgentGraph((Node("a"), Node("b"), Node("lost")), (("a", "b"),)), r"start \(a\) to lost\..*start\('lost'\)"),
        (graph("a>b c>d d>e", entries=("a",)), r"start \(a\) to c, d, e"),
    ],
    ids=["empty", "same name", "near name", "unknown", "unknown start", "self", "twice", "cycle", "cycle alone",
         "no edge", "other start"],
)
def test_what_is_no_plan_is_refused_with_the_nodes_and_the_mend(bad, sentence):
    with pytest.raises(GraphError, match=sentence):
        bad.compile()


@pytest.mark.parametrize(
    ("field", "value"),
    [("kind", "gpu"), ("objective", "fast"), ("tokens", -1), ("seconds", float("inf")), ("seconds", float("nan")),
     ("count", "3"), ("count", True), ("name", "")],
)
def test_a_field_that_means_nothing_is_refused_where_it_is_written(field, value):
    with pytest.raises(GraphError, match="allowed"):
        Node(**{"name": "n", field: value})


def code_writer(profile: str) -> AgentGraph:
    sys.path.insert(0, str(ROOT / "examples"))
    from code_writer_graph import code_writer as build

    return build(profile).value()


def test_the_code_writer_has_the_published_size_and_depth():
    compiled = code_writer("append_tools128").compile()
    assert len(compiled.graph.nodes) == 29
    assert sum(node.calls_model for node in compiled.graph.nodes) == 27
    assert len(compiled.graph.edges) == 36
    assert (compiled.depth, compiled.depth_longest) == (17, 17)
    assert [(j.node, len(j.members)) for j in compiled.join_groups] == [
        ("reviewer_1", 3), ("reviewer_2", 3), ("reviser_1_validate", 2), ("reviser_2_validate", 2), ("end", 3)]


COMMON = ("start", "architect_1", "search_1", "judge_1", "architect_2", "search_2", "judge_2", "plan_write",
          "programmer_1_validate", "programmer_1_repair", "code_write_1")
REVISER = ("reviewer_1", "reviser_1_validate", "reviser_1_repair", "revised_write_1", "end")
EXTERNAL = ("reviewer_2", "external_eval", "user_confirm", "external_test", "end")


@pytest.mark.parametrize(
    ("profile", "path", "tokens", "tool_s"),
    # Common part: 200 + 128 + 128 + 200 + 128 + 128 + 128, then 400 + 400 + 128; seconds 4 + .4 + 4 + .4 + .1 + 8 + .1.
    # Reviser: 200 + 400 + 400 + 128 and 10 + .1. External: 200 + 3 * 500 and 4.5 + 3.5 + 5.5; with 128 it is shorter.
    [("append_tools128", COMMON + REVISER, 1968 + 1128, 17.0 + 10.1),
     ("artifact", COMMON + EXTERNAL, 1968 + 6 * 372 + 1700, 17.0 + 13.5)],
)
def test_the_critical_path_of_the_code_writer_is_the_one_found_by_hand(profile, path, tokens, tool_s):
    compiled = code_writer(profile).compile()
    assert compiled.critical_path == path
    assert compiled.expected_s == pytest.approx(tokens * 0.025 + tool_s)


def test_the_slack_and_depth_of_every_code_writer_node_are_those_in_its_file():
    import json
    from importlib.resources import files

    figures = json.loads((files("tokencake_sglang.emulator") / "data/code_writer.json").read_text())["nodes"]
    facts = code_writer("artifact").compile().facts
    for node in figures:
        fact = facts[node["id"]]
        assert (fact.depth, fact.depth_longest) == (node["depth"], node["depth_longest"]), node["id"]
        assert fact.slack_s == pytest.approx(node["slack_s_at_25ms_per_token"]), node["id"]
