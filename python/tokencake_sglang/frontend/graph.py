"""Declaring the plan of an application: agents, tools, and which of them wait for which."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from tokencake_sglang.core import graph as plan
from tokencake_sglang.core.errors import GraphError
from tokencake_sglang.frontend import drawing
from tokencake_sglang.frontend.tool import Tool

NODE_FIELDS = tuple(f.name for f in fields(plan.Node) if f.name != "name")


class Part:
    """Some nodes of a graph: `heads` start first, `tails` end last. `a >> b` makes b wait for a; either may be a list.

    What every method of `AgentGraph` returns, and what it takes. Beside it: an agent, a tool (the one node that stands
    for it), the name of a node, and a list of these, which run at the same time.
    """

    def __init__(self, graph: AgentGraph, heads: Sequence[str], tails: Sequence[str], members: Sequence[str]):
        self.graph = graph
        self.heads, self.tails, self.members = tuple(heads), tuple(tails), tuple(members)

    def __rshift__(self, other: Any) -> Part:
        return self.graph.chain(self, other)

    def __rrshift__(self, other: Any) -> Part:
        return self.graph.chain(other, self)

    def __repr__(self) -> str:
        return f"Part({', '.join(self.members)})"


class AgentGraph:
    """Builds a plan node by node and edge by edge; `compile` checks it. Two graphs are equal if they say the same.

    `name` is the title of its drawings.
    """

    def __init__(self, name: str = "agents"):
        self.name = name
        self._nodes: dict[str, plan.Node] = {}
        self._edges: dict[tuple[str, str], None] = {}  # a dict, because it keeps the order
        self._entries: dict[str, None] = {}
        self._node_of: dict[int, tuple[Any, str]] = {}  # by id: agents and tools need not be hashable

    # One node, one edge.

    def add_node(self, what: Any, name: str | None = None, *, agent: Any = None, **node_fields: Any) -> Part:
        """Add one node. `what` is an agent, a tool, a core `Node`, or the name of a model call.

        `name` defaults to the agent's or tool's. `agent` is the agent (or its name) in whose conversation it happens.
        `node_fields` are those of `Node`: tokens, seconds, count, role, objective ("latency" or "throughput"),
        tool_kind, stages, kind. Raises GraphError for a name that is taken or a field that does not exist.
        """
        unknown = sorted(set(node_fields) - set(NODE_FIELDS))
        if unknown:
            raise GraphError(f"add_node: found {', '.join(unknown)}; the fields of a node are {', '.join(NODE_FIELDS)}")
        if isinstance(agent, str):
            node_fields["agent"] = agent
        elif agent is not None:
            node_fields = {**agent.node_fields, **node_fields}
        node = replace(_node_for(what, name), **node_fields)
        if node.name in self._nodes:
            raise GraphError(f"node {node.name!r} exists already; give another name: add_node(..., name=...)")
        self._nodes[node.name] = node
        if not isinstance(what, (str, plan.Node)):
            self._node_of.setdefault(id(what), (what, node.name))
        return Part(self, (node.name,), (node.name,), (node.name,))

    def add_edge(self, first: Any, then: Any) -> None:
        """`then` starts after `first` has ended. Names of nodes may be used before the nodes are added."""
        for source in self._part(first).tails:
            for target in self._part(then).heads:
                self._edges[source, target] = None

    def start(self, *steps: Any) -> None:
        """Name what the application starts with, where that is not every node with edges that waits for none."""
        for step in steps:
            self._entries.update(dict.fromkeys(self._part(step).heads))

    # Shapes.

    def chain(self, *steps: Any) -> Part:
        """One after the other."""
        if not steps:
            raise GraphError("chain: found nothing; allowed are one or more agents, tools, parts, or lists of these")
        parts = [self._part(step) for step in steps]
        for first, then in zip(parts, parts[1:], strict=False):
            self.add_edge(first, then)
        return Part(self, parts[0].heads, parts[-1].tails, _merged(part.members for part in parts))

    def join(self, steps: Sequence[Any], then: Any) -> Part:
        """`then` waits for all of `steps`, which run at the same time."""
        return self.chain(list(steps), then)

    def map(self, step: Any, count: int) -> Part:
        """`count` copies of a step at the same time, named `step[1]`, `step[2]`, ... in place of the one given."""
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise GraphError(f"map: count found {count!r}; allowed is a whole number of 1 or more")
        part = self._known("map", step)
        inner = [edge for edge in self._edges if edge[0] in part.members and edge[1] in part.members]
        outer = [edge for edge in self._edges if edge not in inner and {*edge} & {*part.members}]
        if outer:
            raise GraphError(f"map: {outer[0][0]!r} -> {outer[0][1]!r} was declared before; call map() first, then "
                             "connect what it returns")
        originals = [self._nodes.pop(name) for name in part.members]
        for edge in inner:
            del self._edges[edge]
        copies = [self._copy(part, originals, inner, number) for number in range(1, count + 1)]
        self._node_of = {key: value for key, value in self._node_of.items() if value[1] not in part.members}
        return self._side_by_side(copies)

    def loop(self, step: Any, expected: float) -> Part:
        """The step runs `expected` times, one after the other, on average: stated on its nodes, not as copies."""
        return self._times("loop", step, expected)

    def branch(self, *cases: tuple[Any, float]) -> Part:
        """Alternatives, each with how often it is taken on average: `branch((repair, 0.3), (accept, 0.7))`."""
        if not cases or not all(isinstance(case, tuple) and len(case) == 2 for case in cases):
            raise GraphError("branch: allowed are pairs of a step and how often it is taken: "
                             "branch((repair, 0.3), ...)")
        return self._side_by_side([self._times("branch", step, expected) for step, expected in cases])

    def barrier(self, *steps: Any, name: str = "barrier") -> Part:
        """A point that all steps of a round reach before the next round starts: it spares an edge for every pair."""
        unique, number = name, 1
        while unique in self._nodes:
            number += 1
            unique = f"{name}_{number}"
        point = self.add_node(plan.Node(unique, "tool", seconds=0.0, tool_kind="local"))
        return self.chain(list(steps), point)

    # Results.

    def value(self) -> plan.AgentGraph:
        """The graph as a value, with its nodes and edges in the order of their declaration."""
        return plan.AgentGraph(tuple(self._nodes.values()), tuple(self._edges), tuple(self._entries))

    def compile(self, forecast: plan.Forecast | None = None) -> plan.CompiledGraph:
        """Check the plan and compute depths, degrees, joins, the critical path and slack. Raises GraphError."""
        return self.value().compile(forecast)

    def draw(self, target: str | Path) -> str:
        """Draw the compiled graph, its critical path marked, and return the drawing's text.

        `target` is "svg" or "mermaid" for the text alone, or the path of a file that ends in .svg or .mmd. Equal graphs
        give equal bytes.
        """
        makers: dict[str, Callable[[plan.CompiledGraph, str], str]] = {"svg": drawing.svg, "mermaid": drawing.mermaid}
        kind = {".svg": "svg", ".mmd": "mermaid"}.get(Path(target).suffix, str(target))
        if kind not in makers:
            raise GraphError(f"draw: found {str(target)!r}; allowed are 'svg', 'mermaid', or a path in .svg or .mmd")
        text = makers[kind](self.compile(), self.name)
        if str(target) != kind:
            Path(target).write_text(text, encoding="utf-8")
        return text

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, AgentGraph):
            return NotImplemented
        mine, theirs = self.value(), other.value()
        return self._nodes == other._nodes and self._edges == other._edges and (
            set(mine.start_nodes()) == set(theirs.start_nodes()))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"AgentGraph({self.name!r}, {len(self._nodes)} nodes, {len(self._edges)} edges)"

    # How steps become parts.

    def _part(self, step: Any) -> Part:
        if isinstance(step, Part):
            if step.graph is not self:
                raise GraphError(f"{step} belongs to another graph; add its nodes to this one")
            return step
        if isinstance(step, (list, tuple)):
            if not step:
                raise GraphError("found an empty list of steps; allowed are lists of at least one")
            return self._side_by_side([self._part(one) for one in step])
        if isinstance(step, str):
            return Part(self, (step,), (step,), (step,))
        known = self._node_of.get(id(step))
        if known is not None:
            return self._part(known[1])
        return self.add_node(step)

    def _side_by_side(self, parts: Sequence[Part]) -> Part:
        return Part(self, _merged(p.heads for p in parts), _merged(p.tails for p in parts),
                    _merged(p.members for p in parts))

    def _known(self, what: str, step: Any) -> Part:
        part = self._part(step)
        for name in part.members:
            if name not in self._nodes:
                raise GraphError(f"{what}: there is no node {name!r}; add it with add_node() first")
        return part

    def _times(self, what: str, step: Any, expected: float) -> Part:
        if not isinstance(expected, (int, float)) or isinstance(expected, bool) or not 0 < expected < float("inf"):
            raise GraphError(f"{what}: expected found {expected!r}; allowed is a number greater than 0")
        part = self._known(what, step)
        for name in part.members:
            self._nodes[name] = replace(self._nodes[name], count=self._nodes[name].count * expected)
        return part

    def _copy(self, part: Part, originals: list[plan.Node], inner: list[tuple[str, str]], number: int) -> Part:
        names = {node.name: _numbered(node, number) for node in originals}
        for node in originals:
            self.add_node(replace(node, name=names[node.name]))
        self._edges.update({(names[a], names[b]): None for a, b in inner})
        return Part(self, *([names[name] for name in group] for group in (part.heads, part.tails, part.members)))


def _node_for(what: Any, name: str | None) -> plan.Node:
    if isinstance(what, plan.Node):
        return what if name is None else replace(what, name=name)
    if isinstance(what, Tool):
        stages = tuple((stage.name, stage.seconds) for stage in what.stages)
        return plan.Node(name or what.name, "tool", seconds=what.predict_time, tool_kind=what.kind, stages=stages)
    if isinstance(what, str):
        return plan.Node(name or what)
    if hasattr(what, "node_fields"):
        return plan.Node(name or what.node_id, **what.node_fields)
    raise GraphError(f"add_node: found {type(what).__name__}; allowed are a function decorated with @agent or @tool, "
                     "a Node, or a name")


def _numbered(node: plan.Node, number: int) -> str:
    """`searcher.query` of the agent `searcher` becomes `searcher[1].query`, as derived graphs name it."""
    if node.agent and node.name.startswith(f"{node.agent}."):
        return f"{node.agent}[{number}]{node.name[len(node.agent):]}"
    return f"{node.name}[{number}]"


def _merged(groups: Any) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for group in groups for name in group))
