"""Declaring a graph: nodes of agents and tools, the shapes that connect them, and the drawings."""

from __future__ import annotations

import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

import tokencake_sglang as tc

ROOT = Path(__file__).resolve().parents[2]
COMMAND = "examples/code_writer_graph.py docs/img/code_writer.svg"


@tc.agent(type="planner")
def plan(s):
    pass


@tc.agent(type="searcher", name="search-agent")
def searcher(s):
    pass


@tc.agent(type="writer")
def write(s):
    pass


search = tc.tool(lambda: 0, name="search", kind="search", stages=[tc.Stage("query", 3.0), tc.Stage("rank", 1.0)])


@pytest.fixture
def graph():
    return tc.AgentGraph("test")


def edges(graph):
    return [f"{a}>{b}" for a, b in graph.value().edges]


def counts(graph):
    return {node.name: node.count for node in graph.value().nodes}


def test_a_node_takes_its_agent_type_kind_and_duration_from_what_it_stands_for(graph):
    graph.add_node(searcher, tokens=64)
    graph.add_node(search)
    assert graph.value().nodes == (
        tc.Node("search-agent", "llm", agent="search-agent", agent_type="searcher", tokens=64),
        tc.Node("search", "tool", seconds=4.0, tool_kind="search", stages=(("query", 3.0), ("rank", 1.0))),
    )


def test_the_papers_program_is_three_lines_and_an_agent_named_again_is_the_same_node(graph):
    graph.add_edge(plan, search)
    graph.add_edge(search, write)
    compiled = graph.compile(tc.Forecast(seconds_per_token=0.0))
    assert compiled.critical_path == ("plan", "search", "write")
    assert compiled.expected_s == 4.0


def test_chain_and_the_operator_say_the_same_with_lists_at_any_place(graph):
    graph.chain(plan, [searcher, search], write)
    other = tc.AgentGraph()
    start = other.add_node(plan)
    start >> [searcher, search] >> other.add_node(write)
    assert edges(graph) == ["plan>search-agent", "plan>search", "search-agent>write", "search>write"]
    assert graph == other
    third = tc.AgentGraph()
    [searcher, search] >> third.add_node(write)
    third.chain(plan, [searcher, search])
    assert third == graph


def test_join_waits_for_all(graph):
    graph.join([plan, searcher], write)
    assert edges(graph) == ["plan>write", "search-agent>write"]


def test_map_makes_numbered_copies_of_a_node_or_of_a_whole_part(graph):
    graph.chain(plan, graph.map(searcher, 3), write)
    assert set(counts(graph)) == {"plan", "write", *(f"search-agent[{i}]" for i in (1, 2, 3))}
    assert {n.agent for n in graph.value().nodes} == {"plan", "search-agent", "write"}
    part = tc.AgentGraph()
    steps = part.chain(part.add_node(searcher, "search-agent.ask"), part.add_node(search, agent=searcher))
    part.chain(plan, part.map(steps, 2), write)
    assert edges(part) == [
        "search-agent[1].ask>search[1]", "search-agent[2].ask>search[2]",
        "plan>search-agent[1].ask", "plan>search-agent[2].ask", "search[1]>write", "search[2]>write"]


def test_a_loop_and_the_cases_of_a_branch_state_how_often_their_nodes_run(graph):
    graph.chain(plan, graph.loop(graph.chain(searcher, search), expected=3))
    graph.branch((write, 0.25), (graph.add_node("skip"), 0.75))
    assert counts(graph) == {"search-agent": 3, "search": 3, "plan": 1, "write": 0.25, "skip": 0.75}


def test_the_cases_of_a_branch_lie_side_by_side(graph):
    graph.chain(plan, graph.branch((searcher, 0.3), (search, 0.7)), write)
    assert edges(graph) == ["plan>search-agent", "plan>search", "search-agent>write", "search>write"]
    assert graph.compile(tc.Forecast(seconds_per_token=0.0)).expected_s == pytest.approx(2.8)


def test_a_barrier_spares_the_edges_between_all_pairs_of_two_rounds(graph):
    rounds = [[graph.add_node(f"r{n}.{i}") for i in range(3)] for n in range(2)]
    graph.chain(graph.barrier(*rounds[0]), graph.barrier(*rounds[1]))
    assert len(edges(graph)) == 9
    compiled = graph.compile()
    assert compiled.facts["barrier"].expected_s == 0
    assert compiled.critical_path == ("r0.0", "barrier", "r1.0", "barrier_2")


def test_the_order_of_declaration_does_not_matter_for_equality(graph):
    graph.chain(plan, write)
    other = tc.AgentGraph("another title")
    other.add_node(write)
    other.add_edge(plan, write)
    assert graph == other
    other.loop(write, expected=2)
    assert graph != other
    assert graph != "a graph"


def test_an_edge_may_name_a_node_before_it_is_added_and_saying_it_twice_is_saying_it_once(graph):
    graph.add_edge("plan", "write")
    graph.add_edge("plan", "write")
    graph.add_node(plan)
    with pytest.raises(tc.GraphError, match="no node 'write'"):
        graph.compile()
    graph.add_node(write)
    assert len(graph.compile().facts) == 2


def test_a_node_of_its_own_may_be_named_as_a_start(graph):
    graph.chain(plan, write)
    graph.add_node("watcher")
    with pytest.raises(tc.GraphError, match=r"start\('watcher'\)"):
        graph.compile()
    graph.start("watcher", plan)
    assert graph.compile().critical_path == ("plan", "write")


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (lambda g: g.add_node(plan, colour="red"), "found colour; the fields of a node are kind, agent"),
        (lambda g: (g.add_node(plan), g.add_node(plan)), "'plan' exists already; give another name"),
        (lambda g: g.add_node(7), "found int; allowed are a function decorated"),
        (lambda g: g.add_node(plan, objective="fast"), "allowed: latency, throughput"),
        (lambda g: g.chain(), "found nothing"),
        (lambda g: g.chain(plan, []), "an empty list"),
        (lambda g: g.chain(tc.AgentGraph().add_node(plan), write), "belongs to another graph"),
        (lambda g: g.map(plan, 0), "allowed is a whole number of 1 or more"),
        (lambda g: (g.chain(plan, write), g.map(write, 2)), r"'plan' -> 'write' was declared before; call map\(\)"),
        (lambda g: g.loop(plan, expected=0), "loop: expected found 0"),
        (lambda g: g.loop("nobody", expected=2), "no node 'nobody'"),
        (lambda g: g.map("nobody", 2), "no node 'nobody'"),
        (lambda g: g.branch(plan), "allowed are pairs"),
        (lambda g: g.branch((plan, -1)), "branch: expected found -1"),
        (lambda g: (g.add_node(plan), g.draw("picture.png")), "allowed are 'svg', 'mermaid'"),
    ],
)
def test_what_cannot_be_meant_is_refused_where_it_is_written(graph, wrong, sentence):
    with pytest.raises(tc.GraphError, match=sentence):
        wrong(graph)


def drawn(graph):
    graph.chain(plan, [searcher, search], write)
    graph.chain(plan, write)  # passes the layer of the searchers
    graph.add_node('odd <name> & "quotes"')
    graph.chain(write, 'odd <name> & "quotes"')
    return graph


def test_the_svg_is_well_formed_shows_every_node_and_marks_the_critical_path(graph):
    root = ET.fromstring(drawn(graph).draw("svg"))
    texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"plan", "search-agent", "search", "write", 'odd <name> & "quotes"', "test"} <= set(texts)
    boxes = [e for e in root.iter("{http://www.w3.org/2000/svg}rect") if e.get("stroke") == "#d1344b"]
    assert len(boxes) == 4  # plan, the longer of the two, write, odd
    width, height = (int(root.get(side)) for side in ("width", "height"))
    for box in root.iter("{http://www.w3.org/2000/svg}rect"):
        assert 0 <= float(box.get("x", 0)) and float(box.get("x", 0)) + float(box.get("width")) <= width
        assert 0 <= float(box.get("y", 0)) and float(box.get("y", 0)) + float(box.get("height")) <= height


def test_no_two_boxes_of_a_drawing_overlap():
    root = ET.fromstring((ROOT / "docs/img/code_writer.svg").read_text())
    boxes = [tuple(float(e.get(k)) for k in ("x", "y", "width", "height"))
             for e in root.iter("{http://www.w3.org/2000/svg}rect") if e.get("height") == "42"]
    assert len(boxes) == 29
    for number, (x, y, width, _) in enumerate(boxes):
        for other_x, other_y, other_width, _ in boxes[number + 1:]:
            assert y != other_y or x + width < other_x or other_x + other_width < x


def test_mermaid_names_nodes_edges_and_the_critical_path(graph):
    graph.chain(graph.add_node(plan, tokens=64), search)
    assert graph.draw("mermaid").splitlines() == [
        "---", 'title: "test"', "---", "flowchart TD",
        '    n0("plan<br/>64 tokens"):::llm', '    n1["search<br/>4 s"]:::tool', "    n0 --> n1",
        "    classDef llm fill:#e3edfb,stroke:#5b84c4,color:#1f2430",
        "    classDef tool fill:#fdf0d5,stroke:#c99a3c,color:#1f2430",
        "    classDef call fill:#eadff7,stroke:#8c68bd,color:#1f2430",
        "    classDef local fill:#f1f1f1,stroke:#9a9a9a,color:#1f2430",
        "    classDef critical stroke:#d1344b,stroke-width:3px",
        "    class n0,n1 critical", "    linkStyle 0 stroke:#d1344b,stroke-width:3px"]


def test_a_path_is_written_and_its_ending_says_what(graph, tmp_path):
    drawn(graph)
    for name, kind in (("graph.svg", "svg"), ("graph.mmd", "mermaid")):
        assert graph.draw(tmp_path / name) == (tmp_path / name).read_text() == graph.draw(kind)


def test_the_command_in_the_docs_draws_the_picture_in_the_docs_byte_for_byte(tmp_path):
    assert f"python {COMMAND}" in (ROOT / "docs/dsl.md").read_text()
    script, picture = COMMAND.split()
    subprocess.run([sys.executable, str(ROOT / script), str(tmp_path / "new.svg")], check=True, timeout=60)
    assert (tmp_path / "new.svg").read_bytes() == (ROOT / picture).read_bytes()
