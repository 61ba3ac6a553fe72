"""All runs of this server: folds what requests, tools and agents do into them, and answers what a request is worth.

Bounded: of too many runs, or too many nodes in all, the one that did nothing for longest goes. A run that has no agent
and no request left ends when all of its nodes are over, else after KEPT_S, since the next agent of a program may start
a moment after the last has ended.
"""

from __future__ import annotations

from collections import OrderedDict
from itertools import islice
from typing import Any

from tokencake_sglang.core.forecast import Forecaster
from tokencake_sglang.core.graph import CompiledGraph
from tokencake_sglang.core.graph_store import GraphStore
from tokencake_sglang.core.runs.estimates import Estimates
from tokencake_sglang.core.runs.outlook import Outlook
from tokencake_sglang.core.runs.run import Position, Run, Step
from tokencake_sglang.core.spatial.views import Place
from tokencake_sglang.core.types import AgentIdentity

KEPT_S = 60.0
MOST_RUNS = 4096
MOST_NODES = 262_144
MOST_UNFOLDED = 256  # node ids outside the graph that a run remembers
TOP_IMPORTANCE = 10.0
NEAR_DEPTH = 1

Key = tuple[str, str]  # program, graph


class RunTable:
    def __init__(self, forecaster: Forecaster, most_runs: int = MOST_RUNS, most_nodes: int = MOST_NODES) -> None:
        self.graphs = GraphStore()
        self.estimates = Estimates(forecaster)
        self._most_runs, self._most_nodes = most_runs, most_nodes
        self._runs: OrderedDict[Key, Run] = OrderedDict()  # the one that did nothing for longest first
        self._outlooks: dict[str, Outlook] = {}  # of graphs that have runs
        self._by_rid: dict[str, Run] = {}
        self._by_agent: dict[str, Run] = {}
        self._idle: OrderedDict[Key, float] = OrderedDict()  # runs without agents and requests, since when
        self.nodes = 0

    def __len__(self) -> int:
        return len(self._runs)

    # -- events ---------------------------------------------------------------------------------------------

    def request_added(self, now: float, program: str, identity: AgentIdentity, rid: str) -> None:
        """A request has joined the queue (again: nothing). It is followed if its `graph_id` names a known plan."""
        self._expire(now)
        graph = self.graphs.get(identity.graph_id)
        if rid in self._by_rid or graph is None:
            return
        run = self._run_of(now, program, identity, graph)
        step = self._step(now, run, identity, rid)
        run.steps[rid] = step
        self._by_rid[rid] = self._by_agent[identity.key] = run
        self._bound()

    def request_admitted(self, now: float, rid: str) -> None:
        run = self._by_rid.get(rid)
        if run is not None and run.steps[rid].admitted_at is None:
            step = run.steps[rid]
            step.admitted_at = now
            if step.node is not None:
                run.since.setdefault(step.node, now)

    def request_ended(self, now: float, rid: str, output_tokens: int | None) -> None:
        """It finished after `output_tokens`, or went away (None)."""
        run = self._by_rid.pop(rid, None)
        if run is None:
            return
        step = run.steps.pop(rid)
        if output_tokens is None:
            if step.node is not None:
                run.give_up(step.node)
        else:
            self._learn(now, run, step, output_tokens)
            self._call_ended(run, step)
        self._touch(now, run)

    def stall_started(self, now: float, agent: str, kind: str) -> None:
        """The agent waits for a tool: the tool node behind the one that it came to last, if there is one."""
        run, position = self._where(agent)
        if position is None or position.at is None:
            return
        nodes, at = run.outlook.nodes, position.at
        if at in position.tools:  # the node is a call with its tool
            return
        tools = [n for n in run.outlook.after[at] if nodes[n].kind == "tool" and not nodes[n].calls_model]
        free = [n for n in tools if n not in position.tools and not run.over[n]]
        named = [n for n in free if kind in (nodes[n].tool_kind, nodes[n].name)]
        for node in (named or free)[:1]:
            run.start(node)
            run.since.setdefault(node, now)
            position.tools.append(node)
        self._touch(now, run)

    def stall_ended(self, agent: str) -> None:
        """The agent waits for no tool any more."""
        run, position = self._where(agent)
        if position is None:
            return
        tools, position.tools = position.tools, []
        for node in tools:
            run.end(node)
            position.at = node if position.at in run.outlook.before[node] else position.at

    def stall_dropped(self, agent: str) -> None:
        """The agent was taken to wait for a tool, and does not."""
        run, position = self._where(agent)
        if position is None:
            return
        tools, position.tools = position.tools, []
        for node in tools:
            if run.outlook.nodes[node].calls_model:
                position.tools.append(node)  # a call with its tool
            else:
                run.give_up(node)

    def agent_gone(self, now: float, agent: str) -> None:
        self.stall_ended(agent)
        run = self._by_agent.pop(agent, None)
        if run is not None:
            run.positions.pop(agent, None)
            for rid in [rid for rid, step in run.steps.items() if step.agent == agent]:
                self._call_ended(run, run.steps.pop(rid))
                del self._by_rid[rid]
            self._touch(now, run)
        self._expire(now)

    # -- questions ------------------------------------------------------------------------------------------

    def place(self, rid: str) -> Place | None:
        """None for a request of no known run."""
        run = self._by_rid.get(rid)
        if run is None:
            return None
        step = run.steps[rid]
        if step.node is not None:
            is_urgent = run.outlook.nodes[step.node].objective == "latency"
            return Place(run.path_s(step.node), is_urgent, run.outlook.structure[step.node], run.began_at)
        behind_s = 0.0 if step.after is None else run.tail_of(step.after)
        return Place(step.left_s + behind_s, True, run_began_at=run.began_at)

    def importance(self, agent: str) -> tuple[float, bool]:
        """Of an agent's KV, 0 to 10: the longest path from where it is, as a share of its run's; 0 where it is not
        known or nobody waits. And whether it is at the end of its run (published: remaining depth of 1)."""
        run, position = self._where(agent)
        if position is None or position.at is None:
            return 0.0, False
        node = position.tools[0] if position.tools else position.at
        near = run.outlook.structure[node].remaining_depth <= NEAR_DEPTH
        if run.outlook.nodes[node].objective != "latency" or not run.longest_s:
            return 0.0, near
        path_s = run.path_s(node) if run.live[node] else run.tail_of(node)
        return min(TOP_IMPORTANCE, TOP_IMPORTANCE * path_s / run.longest_s), near

    def reports(self, now: float, most: int) -> list[dict[str, Any]]:
        """For the live state: up to `most` runs that have agents or requests, the one that did something last first."""
        live = (run for run in reversed(self._runs.values()) if run.positions or run.steps)
        return [run.report(now) for run in islice(live, most)]

    # -- inside ---------------------------------------------------------------------------------------------

    def _run_of(self, now: float, program: str, identity: AgentIdentity, graph: CompiledGraph) -> Run:
        key = (program, identity.graph_id or "")
        run = self._runs.get(key)
        if run is not None and run.is_complete and not run.steps and identity.node_id not in run.unfolded:
            self._drop(key)
            run = None
        if run is None:
            outlook = self._outlooks.get(key[1])
            if outlook is None:
                outlook = self._outlooks[key[1]] = Outlook(key[1], graph)
            outlook.refresh(now, self.estimates)
            outlook.users += 1
            run = self._runs[key] = Run(program, outlook, now)
            self.nodes += len(outlook.nodes)
        run.outlook.refresh(now, self.estimates)
        run.follow_outlook()
        self._idle.pop(key, None)
        self._runs.move_to_end(key)
        return run

    def _where(self, agent: str) -> tuple[Run | None, Position | None]:
        """The run that the agent is in, and where in it."""
        run = self._by_agent.get(agent)
        return run, None if run is None else run.positions.get(agent)

    def _step(self, now: float, run: Run, identity: AgentIdentity, rid: str) -> Step:
        other = self._by_agent.get(identity.key)
        if other is not None and other is not run:
            self.agent_gone(now, identity.key)
        position = run.positions.setdefault(identity.key, Position())
        node = _node_of(run, position, identity.node_id or "")
        kind = identity.agent_type or ""
        if node is None:
            if identity.node_id and len(run.unfolded) < MOST_UNFOLDED:
                run.unfolded[identity.node_id] = None
            return Step(rid, identity.key, None, kind, self.estimates.tokens_s(kind), position.at)
        run.start(node)
        position.at = node
        return Step(rid, identity.key, node, kind)

    def _call_ended(self, run: Run, step: Step) -> None:
        if step.node is None:
            return
        position = run.positions.get(step.agent)
        has_tool = run.outlook.nodes[step.node].kind == "tool"
        if has_tool and position is not None and position.at == step.node and step.node not in position.tools:
            position.tools.append(step.node)  # it ends when the tool returns
        else:
            run.end(step.node)

    def _learn(self, now: float, run: Run, step: Step, tokens: int) -> None:
        seconds = None if step.admitted_at is None else now - step.admitted_at
        key = "" if step.node is None else run.outlook.key(step.node)
        self.estimates.observe(key, step.agent_type, tokens, seconds)

    def _touch(self, now: float, run: Run) -> None:
        """Something has happened in the run; notices when that was the last of it."""
        key = (run.program, run.outlook.graph_id)
        if self._runs.get(key) is not run:
            return
        self._runs.move_to_end(key)
        if run.positions or run.steps:
            self._idle.pop(key, None)
        elif run.is_complete:
            self._drop(key)
        else:
            self._idle.setdefault(key, now)

    def _expire(self, now: float) -> None:
        while self._idle:
            key, since = next(iter(self._idle.items()))
            if now - since < KEPT_S:
                return
            self._drop(key)

    def _bound(self) -> None:
        while len(self._runs) > 1 and (len(self._runs) > self._most_runs or self.nodes > self._most_nodes):
            self._drop(next(iter(self._runs)))

    def _drop(self, key: Key) -> None:
        run = self._runs.pop(key)
        self._idle.pop(key, None)
        for rid in run.steps:
            self._by_rid.pop(rid, None)
        for agent in run.positions:
            if self._by_agent.get(agent) is run:
                del self._by_agent[agent]
        self.nodes -= len(run.outlook.nodes)
        run.outlook.users -= 1
        if not run.outlook.users:
            del self._outlooks[run.outlook.graph_id]


def _node_of(run: Run, position: Position, node_id: str) -> int | None:
    """The node that a request is a run of: the one of that name, else of the agent of that name the call that it makes
    next, else one that nobody has begun."""
    number = run.outlook.number.get(node_id)
    if number is not None:
        return number
    calls = run.outlook.calls_of.get(node_id)
    if not calls:
        return None
    nodes = run.outlook.nodes
    following = [] if position.at is None else [n for n in run.outlook.following(position.at) if n in calls]

    def unbegun(numbers: list[int]) -> list[int]:
        return [n for n in numbers if not run.done[n] and not run.live[n] and not run.over[n]]

    def wanted(numbers: list[int]) -> list[int]:
        return [n for n in numbers if run.done[n] + run.live[n] < nodes[n].count]

    heads = run.outlook.heads_of[node_id]
    groups = [following, unbegun(heads), unbegun(calls), wanted(calls), calls[-1:]]
    if following:
        groups.insert(0, wanted(following))
    return next(group[0] for group in groups if group)
