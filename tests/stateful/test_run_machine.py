"""Random lives of runs: requests, tools and agents in any order over random graphs. What the table keeps by small steps
is what a computation from nothing gives, nothing is negative or beyond its bound, and nothing is left at the end."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tokencake_sglang.core.forecast.paper import PaperForecaster
from tokencake_sglang.core.graph import AgentGraph, Node
from tokencake_sglang.core.graph_json import to_json
from tokencake_sglang.core.runs import RunTable
from tokencake_sglang.core.runs.table import KEPT_S
from tokencake_sglang.core.types import AgentIdentity

MOST_RUNS, MOST_NODES = 3, 16
AGENTS = [f"{program}.{agent}" for program in "pqrs" for agent in "xyz"]


@st.composite
def graphs(draw) -> AgentGraph:
    count = draw(st.integers(1, 7))
    nodes = tuple(
        Node(f"n{number}", kind, agent=draw(st.sampled_from(["", "x", "y"])),
             tokens=draw(st.sampled_from([None, 10, 50])), seconds=draw(st.sampled_from([None, 2.0])),
             objective=draw(st.sampled_from(["latency", "latency", "throughput"])),
             count=draw(st.sampled_from([1, 1, 3, 0.2, 0])))
        for number, kind in enumerate(draw(st.lists(st.sampled_from(["llm", "tool"]), min_size=count, max_size=count))))
    pairs = [(a, b) for b in range(count) for a in range(b)]
    edges = draw(st.sets(st.sampled_from(pairs), max_size=10)) if pairs else set()
    starts = [node.name for number, node in enumerate(nodes) if number not in {b for _, b in edges}]
    return AgentGraph(nodes, tuple((f"n{a}", f"n{b}") for a, b in sorted(edges)), tuple(starts))


class Runs(RuleBasedStateMachine):
    @initialize(first=graphs(), second=graphs())
    def graphs_are_known(self, first, second):
        self.table = RunTable(PaperForecaster(1.0), MOST_RUNS, MOST_NODES)
        self.graphs = [self.table.graphs.add(to_json(graph))[1] for graph in (first, second)]
        self.now, self.number = 0.0, 0
        self.requests: dict[str, str] = {}  # by id: their agents

    @rule(agent=st.sampled_from(AGENTS), which=st.integers(0, 1), known=st.booleans(),
          node=st.sampled_from(["n0", "n1", "n2", "n3", "n4", "n5", "n6", "x", "y", "other", None]))
    def a_request_comes(self, agent, which, known, node):
        self.number += 1
        name = self.graphs[which] if known else "unknown"
        self.requests[f"r{self.number}"] = agent
        self.table.request_added(
            self.now, agent[0], AgentIdentity(graph_id=name, node_id=node, agent_id=agent, agent_type="t"),
            f"r{self.number}")

    @rule(which=st.integers(0, 50), tokens=st.sampled_from([None, 0, 7, 300]), admitted=st.booleans())
    def a_request_ends(self, which, tokens, admitted):
        if self.requests:
            rid = sorted(self.requests)[which % len(self.requests)]
            del self.requests[rid]
            if admitted:
                self.table.request_admitted(self.now, rid)
            self.now += 1.0
            self.table.request_ended(self.now, rid, tokens)

    @rule(agent=st.sampled_from(AGENTS), kind=st.sampled_from(["n1", "tool"]))
    def a_tool_starts(self, agent, kind):
        self.table.stall_started(self.now, agent, kind)

    @rule(agent=st.sampled_from(AGENTS))
    def a_tool_returns(self, agent):
        self.table.stall_ended(agent)

    @rule(agent=st.sampled_from(AGENTS))
    def a_tool_was_not_called(self, agent):
        self.table.stall_dropped(agent)

    @rule(agent=st.sampled_from(AGENTS))
    def an_agent_ends(self, agent):
        self.table.agent_gone(self.now, agent)

    @rule(seconds=st.sampled_from([1.0, 11.0, KEPT_S]))
    def time_passes(self, seconds):
        self.now += seconds

    # -- what holds -----------------------------------------------------------------------------------------

    @invariant()
    def every_number_is_possible(self):
        for run in self.table._runs.values():
            assert min(*run.left, *run.tail, *run.live, *run.done, 0.0) >= 0
            assert not any(over and (live or left) for over, live, left in zip(
                run.over, run.live, run.left, strict=True))
            report = run.report(self.now)
            assert report["nodes_over"] + report["nodes_left"] + len(report["nodes_running"]) == len(run.left)
            assert 0 <= report["remaining_s"] <= run.longest_s + 1e-9
            for agent in run.positions:
                assert 0 <= self.table.importance(agent)[0] <= 10

    @invariant()
    def small_steps_give_what_a_computation_from_nothing_gives(self):
        for run in self.table._runs.values():
            kept = [(run.left[n], run.tail[n]) for n, over in enumerate(run.over) if not over]
            again = Copy(run)
            assert kept == [(again.left[n], again.tail[n]) for n, over in enumerate(run.over) if not over]

    @invariant()
    def live_runs_of_nodes_are_the_requests_and_tools_that_there_are(self):
        for run in self.table._runs.values():
            live = [0] * len(run.live)
            for node in [step.node for step in run.steps.values() if step.node is not None]:
                live[node] += 1
            for position in run.positions.values():
                for node in position.tools:
                    live[node] += 1
            assert live == run.live

    @invariant()
    def tables_agree_and_are_bounded(self):
        table = self.table
        assert len(table) <= MOST_RUNS and (table.nodes <= MOST_NODES or len(table) == 1)
        assert table.nodes == sum(len(run.left) for run in table._runs.values())
        assert {rid: run for run in table._runs.values() for rid in run.steps} == table._by_rid
        assert {agent: run for run in table._runs.values() for agent in run.positions} == table._by_agent
        assert set(table._by_rid) <= set(self.requests)
        assert {run.outlook.graph_id for run in table._runs.values()} == set(table._outlooks)
        idle = {key for key, run in table._runs.items() if not run.positions and not run.steps}
        assert set(table._idle) == idle

    def teardown(self) -> None:
        if not hasattr(self, "table"):
            return
        for agent in AGENTS:
            self.table.agent_gone(self.now, agent)
        self.table.agent_gone(self.now + KEPT_S, "nobody")
        assert (len(self.table), self.table.nodes, self.table._by_rid, self.table._outlooks) == (0, 0, {}, {})


class Copy:
    """`left` and `tail` of a run, by the formulas, from its counts alone; of nodes that are over as they stand."""

    def __init__(self, run) -> None:
        outlook = run.outlook
        self.left, self.tail = list(run.left), list(run.tail)
        for node in reversed(range(len(run.over))):
            if run.over[node]:
                continue
            runs = outlook.nodes[node].count - run.done[node]
            runs = max(1.0, runs / run.live[node]) if run.live[node] else max(0.0, runs)
            self.left[node] = run.once_s[node] * runs
            behind = [self.left[n] + self.tail[n] for n in outlook.after[node] if matters(outlook, n)]
            self.tail[node] = max(behind, default=0.0)


def matters(outlook, node) -> bool:
    return outlook.nodes[node].objective == "latency" or any(matters(outlook, n) for n in outlook.after[node])


TestRuns = Runs.TestCase
TestRuns.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
