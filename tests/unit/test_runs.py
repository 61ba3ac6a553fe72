"""Runs of graphs: paths, slack and progress, all by numbers worked out by hand.

Generation takes 0.1 s a token here (the first request of a test has taught it); tools take what their estimate says.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tokencake_sglang.core.forecast.paper import PaperForecaster
from tokencake_sglang.core.graph import AgentGraph, CompiledGraph, Node
from tokencake_sglang.core.graph_json import to_json
from tokencake_sglang.core.runs import RunTable
from tokencake_sglang.core.runs.outlook import REFRESH_S
from tokencake_sglang.core.runs.table import KEPT_S
from tokencake_sglang.core.types import AgentIdentity

TOKEN_S = 0.1


def llm(name: str, tokens: int | None = 10, **fields) -> Node:
    return Node(name, tokens=tokens, **fields)


def tool(name: str, seconds: float | None, **fields) -> Node:
    return Node(name, "tool", seconds=seconds, **fields)


def graph(*nodes: Node, edges: str = "") -> CompiledGraph:
    """`edges`: "a>b b>c"."""
    return AgentGraph(nodes, tuple(tuple(edge.split(">")) for edge in edges.split())).compile()


class Server:
    """Requests and tools of one program `p`, in the table."""

    def __init__(self, compiled: CompiledGraph, **bounds) -> None:
        self.table = RunTable(PaperForecaster(1.0), **bounds)
        self.table.estimates.observe("", "", 10, 10 * TOKEN_S)
        self.graph_id = self.table.graphs.add(to_json(compiled.graph))[1]
        self.now, self.count = 0.0, 0

    def send(self, node_id: str, agent: str = "", program: str = "p", **fields) -> str:
        self.count += 1
        rid = f"r{self.count}"
        fields = {"graph_id": self.graph_id, **fields}
        self.table.stall_ended(agent or node_id)
        self.table.request_added(
            self.now, program, AgentIdentity(app_id=program, node_id=node_id, agent_id=agent or node_id, **fields), rid)
        return rid

    def path(self, rid: str) -> float:
        return round(self.table.place(rid).path_s, 6)

    def end(self, rid: str, tokens: int = 10, seconds: float | None = None) -> None:
        self.table.request_admitted(self.now, rid)
        self.now += tokens * TOKEN_S if seconds is None else seconds
        self.table.request_ended(self.now, rid, tokens)

    def report(self, program: str = "p"):
        (found,) = [run for run in self.table.reports(self.now, 100) if run["program"] == program]
        return found

    def programs(self):
        return [run["program"] for run in self.table.reports(self.now, 100)][::-1]


#        a (1 s) -> b (2 s) -> search 4 s -> d (3 s)
#        a       -> c (5 s)                -> d
FORK = graph(llm("a"), llm("b", 20), tool("search", 4.0), llm("c", 50), llm("d", 30),
             edges="a>b b>search search>d a>c c>d")


def test_the_path_of_a_request_is_its_own_time_and_the_longest_way_behind_it():
    server = Server(FORK)
    assert server.path(server.send("a")) == 1 + 2 + 4 + 3
    assert server.path(server.send("b")) == 2 + 4 + 3
    assert server.path(server.send("c")) == 5 + 3
    assert server.path(server.send("d")) == 3


def test_progress_paths_and_slack_follow_the_run():
    server = Server(FORK)
    first = server.send("a", "x")
    assert server.report()["nodes_running"] == ["a"] and server.report()["remaining_s"] == pytest.approx(10)
    server.end(first)
    b, c = server.send("b", "x"), server.send("c", "y")
    report = server.report()
    assert (report["nodes_over"], report["nodes_running"], report["nodes_left"]) == (1, ["b", "c"], 2)
    assert report["slack_s"] == {"b": pytest.approx(0), "c": pytest.approx(1)}
    server.table.request_admitted(server.now, c)
    server.end(b, 20)
    server.table.stall_started(server.now, "x", "search")
    report = server.report()
    # c has had 2 of its 5 s, so that it needs 3 + 3; the search has just begun: 4 + 3.
    assert report["nodes_running"] == ["search", "c"] and report["slack_s"] == {"search": 0, "c": pytest.approx(1)}
    assert report["remaining_s"] == pytest.approx(7)
    server.end(c, 50)
    server.table.stall_ended("x")
    assert server.report()["nodes_over"] == 4
    last = server.send("d", "x")
    assert server.path(last) == 3
    server.end(last, 30)
    assert server.report()["remaining_s"] == 0 and server.report()["nodes_over"] == 5


def test_an_agent_is_as_important_as_its_path_is_long():
    server = Server(FORK)
    server.end(server.send("a", "x"))
    assert server.table.importance("x") == (10.0, False)
    c = server.send("c", "y")
    assert server.table.importance("y")[0] == pytest.approx(10 * 8 / 9)
    server.end(c, 50)
    # c is over, 3 s are behind it; the longest path is that of b, 9 s.
    assert server.table.importance("y")[0] == pytest.approx(10 * 3 / 9)
    server.send("d", "x")
    assert server.table.importance("x") == (10.0, True)
    assert server.table.importance("nobody") == (0.0, False)


def test_a_step_that_nobody_waits_for_is_neither_urgent_nor_important():
    server = Server(graph(llm("a"), llm("log", 90, objective="throughput"), llm("b", 20), edges="a>log a>b"))
    first = server.send("a", "x")
    assert server.path(first) == 1 + 2
    server.end(first)
    log, b = server.send("log", "y"), server.send("b", "x")
    assert not server.table.place(log).is_urgent and server.table.place(b).is_urgent
    assert server.table.importance("y") == (0.0, True) and server.table.importance("x") == (10.0, True)
    assert server.report()["remaining_s"] == pytest.approx(2)


def test_a_loop_counts_the_rounds_that_are_left():
    #        plan 1 s -> 3 rounds of (draft 2 s -> review 1 s) -> print 4 s
    server = Server(graph(llm("plan"), llm("draft", 20, count=3), llm("review", count=3), llm("print", 40),
                          edges="plan>draft draft>review review>print"))
    server.end(server.send("plan", "x"))
    draft = server.send("draft", "x")
    assert server.path(draft) == 3 * 2 + 3 * 1 + 4
    server.end(draft, 20)
    review = server.send("review", "x")
    assert server.path(review) == 3 * 1 + 4
    server.end(review)
    assert server.report()["remaining_s"] == pytest.approx(2 * 2 + 2 * 1 + 4)
    draft = server.send("draft", "x")
    assert server.path(draft) == 2 * 2 + 2 * 1 + 4
    server.end(draft, 20)
    # The loop ends early: what follows has started, so the rest of the rounds is over.
    last = server.send("print", "x")
    assert server.path(last) == 4 and server.report()["nodes_left"] == 0


def test_several_agents_on_one_node_share_the_runs_that_are_left():
    server = Server(graph(llm("search", 20, count=3), llm("sum", 30), edges="search>sum"))
    first = server.send("search", "x")
    assert server.path(first) == 3 * 2 + 3
    server.send("search", "y"), server.send("search", "z")
    assert server.path(first) == 2 + 3


def test_a_branch_counts_by_its_chance_until_it_is_taken_or_passed():
    #        a 1 s -> repair 10 s, once in five -> b 2 s;  a -> b
    compiled = graph(llm("a"), llm("repair", 100, count=0.2), llm("b", 20), edges="a>repair repair>b a>b")
    server = Server(compiled)
    assert server.path(server.send("a", "x")) == pytest.approx(1 + 0.2 * 10 + 2)
    taken = server.send("repair", "x", program="q")
    assert server.path(taken) == 10 + 2
    server.send("b", "x2")
    assert server.report()["nodes_left"] == 0


def test_a_call_with_its_tool_is_one_node_that_ends_when_the_tool_returns():
    server = Server(graph(tool("ask", 4.0, tokens=10), llm("b", 20), edges="ask>b"))
    ask = server.send("ask", "x")
    assert server.path(ask) == 1 + 4 + 2
    server.end(ask)
    assert server.report()["nodes_running"] == ["ask"]
    assert server.table.importance("x") == (10.0, False)
    server.table.stall_started(server.now, "x", "anything")
    server.table.stall_ended("x")
    assert (server.report()["nodes_running"], server.report()["nodes_over"]) == ([], 1)


def test_a_tool_that_was_not_called_is_as_before():
    server = Server(FORK)
    server.end(server.send("b", "x"))
    server.table.stall_started(server.now, "x", "search")
    server.table.stall_dropped("x")
    assert server.report()["nodes_running"] == [] and server.report()["nodes_over"] == 2
    server.table.stall_started(server.now, "x", "search")
    assert server.report()["nodes_running"] == ["search"]


def test_the_next_request_ends_a_tool_that_nobody_has_finished():
    server = Server(graph(tool("ask", 4.0, tokens=10), llm("b", 20), edges="ask>b"))
    server.end(server.send("ask", "x"))
    server.send("b", "x")
    assert (server.report()["nodes_running"], server.report()["nodes_over"]) == (["b"], 1)


def test_requests_of_an_agent_go_through_its_nodes_in_turn():
    #        two searchers of three steps: query, fetch (a tool), read; then one writer
    nodes = [node for number in (1, 2) for node in (
        llm(f"s[{number}].query", 10, agent="s"), tool(f"s[{number}].fetch", 4.0, agent="s", tool_kind="web"),
        llm(f"s[{number}].read", 20, agent="s"))]
    server = Server(graph(*nodes, llm("w", 30, agent="writer"), edges=" ".join(
        f"s[{n}].query>s[{n}].fetch s[{n}].fetch>s[{n}].read s[{n}].read>w" for n in (1, 2))))
    first, second = server.send("s", "x"), server.send("s", "y")
    assert server.report()["nodes_running"] == ["s[1].query", "s[2].query"]
    assert server.path(first) == server.path(second) == 1 + 4 + 2 + 3
    server.end(second)
    server.table.stall_started(server.now, "y", "web")
    assert server.report()["nodes_running"] == ["s[1].query", "s[2].fetch"]
    third = server.send("s", "y")
    assert server.report()["nodes_running"] == ["s[1].query", "s[2].read"] and server.path(third) == 2 + 3
    assert server.path(server.send("writer", "z")) == 3


def test_a_run_of_the_same_agent_after_the_last_takes_the_next_node_that_nobody_has_begun():
    server = Server(graph(llm("w.draft", agent="w"), llm("w#2.draft", 20, agent="w"), edges="w.draft>w#2.draft"))
    server.end(server.send("w", "w-1"))
    server.table.agent_gone(server.now, "w-1")
    assert server.path(server.send("w", "w-2")) == 2


def test_a_node_that_the_graph_does_not_have_keeps_what_follows_the_agents_last_node():
    server = Server(FORK)
    server.end(server.send("a", "x"))
    server.table.estimates.observe("", "helper", 70, None)
    more = server.send("b.again", "x", agent_type="helper")
    assert server.path(more) == 7 + (2 + 4 + 3)
    alone = server.send("elsewhere", "z", agent_type="helper")
    assert server.path(alone) == 7
    assert server.report()["unfolded"] == ["b.again", "elsewhere"]
    server.end(more, 70)
    assert server.report()["nodes_over"] == 1


def test_lengths_that_were_seen_replace_those_of_the_graph():
    server = Server(FORK)
    for program in "qr":
        server.end(server.send("c", program=program), 70)
        server.table.agent_gone(server.now, "c")
    server.now += REFRESH_S + 1
    assert server.path(server.send("c")) == 7 + 3


def test_a_tool_takes_what_such_tools_took():
    server = Server(FORK)
    server.table.estimates._forecaster.observe(None, "tool", 4.0, 8.0)
    expected = server.table.estimates._forecaster.predict(None, "tool", 4.0, None, 0.0).expected_s
    assert expected > 4 and server.path(server.send("b")) == pytest.approx(2 + expected + 3)


def test_a_request_of_no_known_graph_has_no_place():
    server = Server(FORK)
    server.table.request_added(0.0, "p", AgentIdentity(app_id="p", agent_id="x", graph_id="?"), "r")
    assert server.table.place("r") is None and len(server.table) == 0


def test_a_request_that_went_away_leaves_its_node_to_be_run():
    server = Server(FORK)
    rid = server.send("a", "x")
    server.table.request_ended(0.0, rid, None)
    assert (server.report()["nodes_over"], server.report()["nodes_running"]) == (0, [])
    assert server.path(server.send("a", "x")) == 10


def test_a_retracted_request_is_the_same_run_of_its_node():
    server = Server(FORK)
    rid = server.send("a", "x")
    server.table.request_admitted(0.0, rid)
    server.count -= 1
    assert server.send("a", "x") == rid
    server.end(rid)
    assert server.report()["nodes_over"] == 1


def test_nothing_is_left_when_a_complete_run_has_lost_its_agents():
    server = Server(graph(llm("a"), llm("b"), edges="a>b"))
    for name in "ab":
        server.end(server.send(name, name))
    server.table.agent_gone(server.now, "a")
    assert len(server.table) == 1
    server.table.agent_gone(server.now, "b")
    assert (len(server.table), server.table.nodes, server.table._outlooks, server.table._by_agent) == (0, 0, {}, {})


def test_a_run_between_two_agents_is_kept_for_a_while():
    server = Server(FORK)
    server.end(server.send("a", "x"))
    server.table.agent_gone(server.now, "x")
    server.now += KEPT_S - 1
    b = server.send("b", "y")
    assert server.report()["nodes_over"] == 1
    server.end(b, 20)
    server.table.agent_gone(server.now, "y")
    server.now += KEPT_S
    server.table.agent_gone(server.now, "somebody else")
    assert len(server.table) == 0


def test_the_same_program_may_run_its_graph_again():
    server = Server(graph(llm("a"), llm("b"), edges="a>b"))
    for _ in range(2):
        for name in "ab":
            server.end(server.send(name, "x"))
            assert server.report()["nodes_over"] == (1 if name == "a" else 2)


def test_of_too_many_runs_the_one_that_did_nothing_for_longest_goes():
    server = Server(FORK, most_runs=2)
    rids = [server.send("a", program, program) for program in "pqr"]
    assert server.programs() == ["q", "r"] and server.table.place(rids[0]) is None
    server.end(rids[0])
    small = Server(FORK, most_nodes=12)
    for program in "pqr":
        small.send("a", program, program)
        assert small.table.nodes <= 12
    assert small.programs() == ["q", "r"]


def code_writer(profile: str) -> CompiledGraph:
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))
    from code_writer_graph import code_writer as build

    return build(profile).value().compile()


def test_the_first_request_of_the_code_writer_has_the_critical_path_found_by_hand():
    server = Server(code_writer("artifact"))
    # Tokens and tools as in test_graph.py.
    start = server.send("architect_1")
    assert server.path(start) == pytest.approx((1968 + 6 * 372 + 1700) * TOKEN_S + 17.0 + 13.5)
    assert server.path(server.send("reviewer_2")) == pytest.approx(1700 * TOKEN_S + 13.5)
    assert server.path(server.send("reviewer_1")) == pytest.approx((200 + 400 + 400 + 500) * TOKEN_S + 10.1)
