"""The graphs derived from the two example programs are the ones that a person would declare for them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

import tokencake_sglang as tc

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))

from coding import program as coding  # noqa: E402
from coding.tasks import task  # noqa: E402
from common.apps import AppContext  # noqa: E402
from common.progress import Board  # noqa: E402
from deep_research import program as research  # noqa: E402

DELAY_S = 1.5
REVISED = {"tester.tests": "FAILED", "tests1": "PASSED", "programmer.body": "return 0"}


def context():
    return AppContext("dry", None, Board("dry", 1), False)


def step(graph, agent, variable, tokens=None, tool=None):
    name = f"{agent.node_id}.{variable}"
    return graph.add_node(tool, name, agent=agent) if tool else graph.add_node(agent, name, tokens=tokens)


def declared_research(search):
    graph = tc.AgentGraph("deep research")
    searching = graph.chain(
        step(graph, research.searcher, "query0", 64), step(graph, research.searcher, "found0", tool=search),
        step(graph, research.searcher, "query1", 64), step(graph, research.searcher, "found1", tool=search),
        step(graph, research.searcher, "summary", 32))
    graph.chain(step(graph, research.planner, "plan", 96), graph.map(searching, 3),
                step(graph, research.reflector, "verdict0", 64), step(graph, research.writer, "report", 48))
    return graph


SEARCHED = {"query0": json.dumps({"words": ["a", "b"]}), "query1": json.dumps({"words": ["c"]}), "plan": "{}",
            "verdict0": json.dumps({"enough": True, "missing": ""}), "report": "It depends."}


def test_deep_research_in_one_round_is_the_declared_graph():
    derived = tc.derive(research.make_app(None, 3, DELAY_S, 1), SEARCHED, ctx=context(), number=0)
    assert derived == declared_research(research.make_search(None, DELAY_S))
    assert derived.compile().critical_path[:2] == ("planner.plan", "searcher[1].query0")


def test_a_graph_with_expected_rounds_has_one_round_with_that_count():
    app = research.make_app(None, 3, DELAY_S, 1, expected_rounds=1.25)
    derived, search = tc.derive(app, SEARCHED, ctx=context(), number=0), research.make_search(None, DELAY_S)
    declared = declared_research(search)
    assert derived != declared
    inner = [n.name for n in declared.value().nodes if n.agent in ("searcher", "reflector")]
    declared.loop(inner, expected=1.25)
    assert derived == declared


def test_the_examples_say_what_their_agents_are_for():
    graph = tc.derive(coding.make_app(DELAY_S, 1), REVISED, ctx=context(), number=0)
    of = {node.agent: (node.role, node.objective) for node in graph.value().nodes if node.agent}
    assert of["programmer"] == ("writes one function", "throughput")
    assert all(role and objective in ("latency", "throughput") for role, objective in of.values())


def test_each_program_is_shorter_than_150_lines():
    for program in (research, coding):
        assert len(Path(program.__file__).read_text().splitlines()) < 150


def test_a_sample_that_asks_for_a_second_round_has_it_in_its_graph():
    subject = research.question(1, 0)
    again = SEARCHED | {"verdict0": json.dumps({"enough": False, "missing": subject.aspects[3]}), "verdict1": "{}"}
    derived = tc.derive(research.make_app(None, 3, DELAY_S, 1), again, ctx=context(), number=0)
    assert len(derived.value().nodes) == 3 + 15 + 1 + 5
    path = derived.compile().critical_path
    assert path[-4:] == ("searcher#2.found1", "searcher#2.summary", "reflector#2.verdict1", "writer.report")


def test_without_a_sample_the_error_names_the_decision_in_the_example():
    with pytest.raises(tc.GraphError, match=r"program\.py:\d+.*planner\.plan.*answers="):
        tc.derive(research.make_app(None, 3, DELAY_S, 1), ctx=context(), number=0)


def declared_coding(job, tools):
    graph = tc.AgentGraph("coding")
    names = [function.name for function in job.functions]
    design = graph.chain(step(graph, coding.architect, "plan", 80),
                         step(graph, coding.architect, "written", tool=tools.write_file),
                         step(graph, coding.architect, "notes", 24))
    programming = graph.chain(
        step(graph, coding.programmer, "body", 96), step(graph, coding.programmer, "written", tool=tools.write_file),
        step(graph, coding.programmer, "checked", tool=tools.check_file), step(graph, coding.programmer, "note", 16))
    views = list(enumerate(("meaning", "style")))
    seen = [step(graph, coding.reviewer, f"{number}.{view}_review", 24) for number, view in views]
    judged = [step(graph, coding.reviewer, f"{number}.{view}_verdict", 1) for number, view in views]
    reviewing = graph.chain(graph.barrier(*seen, name="reviewer.barrier"), judged)
    testing = graph.chain(*(step(graph, coding.tester, f"test_{name}", tool=tools.write_file) for name in names),
                          step(graph, coding.tester, "tests", tool=tools.run_tests),
                          step(graph, coding.tester, "finding", 48))
    revising = graph.chain(
        *(graph.chain(step(graph, coding.revisor, f"{name}_1", 96),
                      step(graph, coding.revisor, f"{name}_1_written", tool=tools.write_file)) for name in names),
        step(graph, coding.revisor, "tests1", tool=tools.run_tests))
    graph.chain(design, graph.map(programming, len(names)),
                step(graph, coding.reviewer, "sources", tool=tools.read_files), seen)
    graph.chain(reviewing, testing, revising)
    return graph


def test_coding_with_one_revision_is_the_declared_graph():
    derived = tc.derive(coding.make_app(DELAY_S, 1), REVISED, ctx=context(), number=0)
    assert derived == declared_coding(task(1, 0), coding.make_tools(None, DELAY_S))
