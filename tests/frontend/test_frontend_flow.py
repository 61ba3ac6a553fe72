"""Loops, branches, barriers, maps and late values: what they do in a run, and the graph that a dry run makes."""

from __future__ import annotations

import threading

import pytest
import sglang as sgl

import tokencake_sglang as tc


def nodes(graph):
    return {node.name: node.count for node in graph.value().nodes}


def edges(graph):
    return set(graph.value().edges)


@tc.agent
def judge(s, limit, until, expected=None):
    s += "x" + sgl.gen("draft")
    passes = 0
    def is_over():
        return until(s)

    for number in tc.loop(limit, until=is_over, expected=expected):
        s += sgl.gen(f"verdict{number}") + tc.call(lambda: None, name="fix")
        passes += 1
    s += sgl.gen("end")
    s.sync()
    return passes


@pytest.mark.parametrize(("limit", "until", "passes"), [
    (3, lambda s: False, 3), (3, lambda s: True, 1), (0, lambda s: True, 0),
    (3, lambda s: s.sync() or "verdict1" in s, 2)])
def test_a_loop_ends_by_its_condition_or_its_limit(endpoint, limit, until, passes):
    assert judge.run(limit, until, backend=endpoint).ret_value == passes


def test_a_loop_without_a_condition_is_a_range():
    assert list(tc.loop(3)) == [0, 1, 2]


def test_a_loop_with_an_expected_count_is_one_pass_with_that_count_and_asks_nothing():
    graph = tc.derive(judge, limit=3, until=lambda s: s["verdict0"] == "enough", expected=1.5)
    assert nodes(graph) == {"judge.draft": 1, "judge.verdict0": 1.5, "judge.fix": 1.5, "judge.end": 1}
    declared = tc.AgentGraph()
    names = ("judge.draft", "judge.verdict0", "judge.end")
    draft, verdict, end = (declared.add_node(judge, name, tokens=128) for name in names)
    fix = declared.add_node(tc.tool(lambda: None), "judge.fix", agent=judge)
    declared.chain(draft, declared.loop(declared.chain(verdict, fix), expected=1.5), end)
    assert graph == declared


def test_a_loop_without_expected_count_follows_the_sample_or_says_what_is_missing():
    arguments = {"limit": 3, "until": lambda s: "verdict1" in s and s["verdict1"] == "enough"}
    graph = tc.derive(judge, {"verdict1": "enough"}, **arguments)
    assert "judge.verdict1" in nodes(graph) and "judge.verdict2" not in nodes(graph)
    with pytest.raises(tc.GraphError, match=r"decides by what the model writes into 'verdict1'.*answers="):
        tc.derive(judge, **arguments)


def test_nested_loops_and_what_is_left_early_multiply_and_restore_the_count():
    @tc.agent
    def prog(s):
        for _ in tc.loop(4, expected=2):
            s += sgl.gen("outer")
            for _ in tc.loop(9, expected=3):
                s += sgl.gen("inner")
                break
            s += sgl.gen("still_outer")
        s += sgl.gen("after")

    assert nodes(tc.derive(prog)) == {"prog.outer": 2, "prog.inner": 6, "prog.still_outer": 2, "prog.after": 1}


@pytest.mark.parametrize("options", [
    {"limit": -1}, {"limit": 1.5}, {"limit": True}, {"limit": 3, "expected": 0}, {"limit": 3, "expected": 4},
    {"limit": 3, "expected": "x"}])
def test_a_loop_that_means_nothing_is_refused(options):
    with pytest.raises(ValueError, match="loop: (limit|expected) found"):
        tc.loop(**options)


@tc.agent
def repairer(s, is_bad, chance=None):
    s += "x" + sgl.gen("draft")

    def repair():
        s.assistant(sgl.gen("repaired"))
        return "repaired"

    return tc.branch(lambda: is_bad(s), repair, lambda: "kept", chance=chance)


@pytest.mark.parametrize(("is_bad", "result"), [(lambda s: s["draft"], "repaired"), (lambda s: "", "kept")])
def test_a_branch_runs_one_of_its_two_sides(peer, endpoint, is_bad, result):
    state = repairer.run(is_bad, backend=endpoint)
    state.sync()
    assert state.ret_value == result and len(peer.generates) == (2 if result == "repaired" else 1)


def test_a_branch_with_a_chance_has_both_sides_with_their_counts():
    @tc.agent
    def prog(s):
        s += sgl.gen("draft")
        tc.branch(lambda: s["draft"] == "bad", lambda: s.assistant(sgl.gen("long")),
                  lambda: s.assistant(sgl.gen("short")), chance=0.25)
        s += sgl.gen("end")

    graph = tc.derive(prog)
    assert nodes(graph) == {"prog.draft": 1, "prog.long": 0.25, "prog.short": 0.75, "prog.end": 1}
    assert edges(graph) == {("prog.draft", "prog.long"), ("prog.draft", "prog.short"), ("prog.long", "prog.end"),
                            ("prog.short", "prog.end")}


def test_what_follows_a_branch_of_one_side_waits_for_both_ways():
    graph = tc.derive(repairer, is_bad=lambda s: s["draft"] == "bad", chance=0.5)
    assert nodes(graph) == {"repairer.draft": 1, "repairer.repaired": 0.5}
    with pytest.raises(tc.GraphError, match="decides by"):
        tc.derive(repairer, is_bad=lambda s: s["draft"] == "bad")
    assert nodes(tc.derive(repairer, {"draft": "bad"}, is_bad=lambda s: s["draft"] == "bad"))["repairer.repaired"] == 1


@pytest.mark.parametrize("chance", [-0.1, 1.1, "x", True])
def test_a_chance_that_is_none_is_refused(chance):
    with pytest.raises(ValueError, match="branch: chance found"):
        tc.branch(lambda: True, lambda: 1, chance=chance)


@tc.agent
def debate(s, rounds=2):
    s += "x"
    sides = s.fork(2)
    for number in range(rounds):
        sides += sgl.gen(f"say{number}")
        tc.barrier(sides)
    sides.join()


def test_after_a_barrier_all_forks_have_done_their_part(peer, endpoint):
    held = threading.Event()

    @tc.agent
    def prog(s):
        s += "x"
        forks = s.fork(2)
        forks[0] += tc.call(lambda: held.wait(0.2), name="slow")
        forks[1] += sgl.gen("fast")
        tc.barrier(forks)
        return ["slow" in forks[0], "fast" in forks[1]]

    assert prog.run(backend=endpoint).ret_value == [True, True]


@pytest.mark.filterwarnings("ignore:Error in stream_executor")
def test_a_barrier_raises_what_has_failed_before_it(peer, endpoint):
    @tc.agent
    def prog(s):
        s += "x"
        forks = s.fork(2)
        peer.fail_generate_with = 400
        forks[0] += sgl.gen("g")
        tc.barrier(*forks.states)

    with pytest.raises(RuntimeError, match="told to fail"):
        prog.run(backend=endpoint)
    with pytest.raises(tc.GraphError, match="barrier: found nothing"):
        tc.barrier()


def test_rounds_of_forks_are_the_declared_rounds():
    declared = tc.AgentGraph()
    last = None
    for number in range(2):
        both = [declared.add_node(debate, f"debate.{side}.say{number}", tokens=128) for side in range(2)]
        point = declared.barrier(*both, name="debate.barrier" if number == 0 else "debate.barrier#2")
        if last is not None:
            declared.chain(last, both)
        last = point
    assert tc.derive(debate) == declared


@tc.agent
def worker(s, item):
    s += f"{item}" + sgl.gen("done")
    return s["done"]


@tc.agent
def planner(s):
    s += "x" + sgl.gen("plan")
    return s["plan"]


def plan_and_work(expected=None):
    plan = planner.run().ret_value
    return worker.map(plan, expected=expected)


def test_a_map_over_a_list_that_only_a_run_has_takes_the_expected_number_of_items():
    graph = tc.derive(plan_and_work, expected=3)
    assert edges(graph) == {("planner.plan", f"worker[{number}].done") for number in (1, 2, 3)}
    with pytest.raises(tc.GraphError, match="map of 'worker'.*planner.plan.*expected=3"):
        tc.derive(plan_and_work)
    assert len(nodes(tc.derive(plan_and_work, {"plan": ["a", "b"]}))) == 3


def test_a_late_value_appends_a_result_without_the_program_waiting_for_it(peer, endpoint):
    release, went_on = threading.Event(), []

    @tc.agent
    def prog(s):
        s += "x" + sgl.gen("g") + tc.call(lambda: release.wait(30) and ["hit"], name="hits")
        s += sgl.user("Found: " + tc.value("hits")) + sgl.assistant(sgl.gen("summary"))
        went_on.append(True)
        release.set()
        return s["summary"]

    state = prog.run(backend=endpoint)
    assert went_on and "Found: ['hit']" in state.text() and "Found: ['hit']" in peer.generates[1]["text"]


@pytest.mark.filterwarnings("ignore:Error in stream_executor")
def test_a_late_value_of_a_tool_that_failed_raises_where_something_is_read(endpoint):
    @tc.agent
    def prog(s):
        s += "x" + tc.call(lambda: 1 / 0, name="hits")
        s += "Found: " + tc.value("hits") + sgl.gen("summary")
        return s["summary"]

    with pytest.raises(tc.ToolError, match="ZeroDivisionError"):
        prog.run(backend=endpoint)
    with pytest.raises(TypeError, match="value: name found"):
        tc.value("")


def test_a_late_value_and_an_agent_as_a_tool_are_steps_of_the_graph():
    @tc.agent
    def boss(s):
        s += sgl.gen("g") + tc.call(worker, lambda view: {"item": view["g"]}, name="work")
        s += "It says " + tc.value("work") + sgl.gen("end")

    assert edges(tc.derive(boss)) == {("boss.g", "worker.done"), ("worker.done", "boss.end")}

    @tc.agent
    def wrong(s):
        s += tc.value("nothing") + sgl.gen("end")

    with pytest.raises(tc.GraphError, match="KeyError: 'nothing'"):
        tc.derive(wrong)


def test_role_and_objective_of_an_agent_are_on_the_nodes_of_both_graphs():
    @tc.agent(role="checks the facts", objective="throughput")
    def checker(s):
        s += sgl.gen("g") + tc.call(lambda: None, name="tool")

    for node in tc.derive(checker).value().nodes:
        assert (node.role, node.objective) == ("checks the facts", "throughput")
    graph = tc.AgentGraph()
    graph.add_node(checker)
    graph.add_node("call", agent=checker, role="else")
    first, second = graph.value().nodes
    assert (first.role, first.objective) == ("checks the facts", "throughput")
    assert (second.role, second.objective) == ("else", "throughput")
    with pytest.raises(tc.GraphError, match="agent 'checker': objective found 'speed'; allowed: latency, throughput"):
        tc.agent(checker.program, objective="speed")
