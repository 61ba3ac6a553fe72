"""The plan of an application as a value: which model calls and tools it is made of, and which of them wait for which.

Nodes are one model call or one tool call each (paper section 5: LLMNode and FuncNode); an edge says that its
second node starts after its first has ended. `AgentGraph.compile` refuses what is no plan and computes what a
scheduler asks of it.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from tokencake_sglang.core.errors import GraphError
from tokencake_sglang.core.graph_paths import depths, finish_times, first_cycle, reachable, remaining, tails_after

NODE_KINDS = ("llm", "tool")
OBJECTIVES = ("latency", "throughput")
HINT_NAMES, HINT_CHARS = 128, 64  # a name that is unknown is compared with so many others, up to this length

#: Expected seconds by kind of tool. Files and file query: paper table 1 (file system, SQLite, upper end); the rest: the
#: defaults of the paper's artifact. "local" is a step that waits for nothing: a start, an end, a barrier.
TOOL_SECONDS: Mapping[str, float] = MappingProxyType({
    "local": 0.0, "file_read": 0.1, "file_write": 0.1, "file_query": 1.0, "search": 4.0, "data_analysis": 2.0,
    "user_confirm": 3.5, "external_test": 5.5})


@dataclass(frozen=True)
class Forecast:
    """Durations for what a node leaves open, in seconds; `tool_seconds` by kind, `unknown_tool_s` for any other kind.

    25 ms a token is the figure that the workload files rank their paths by; 128 tokens is SGLang's default for `gen`;
    1 s for a tool of which nothing is known is the paper's (section 4.1).
    """

    seconds_per_token: float = 0.025
    unknown_tokens: int = 128
    unknown_tool_s: float = 1.0
    tool_seconds: Mapping[str, float] = field(default_factory=lambda: TOOL_SECONDS)


@dataclass(frozen=True)
class Node:
    """One step of the plan.

    `agent` is what requests of the step carry as `node_id`. An "llm" node generates `tokens`, which takes `seconds` if
    these are given. A "tool" node waits `seconds`; with `tokens` the model writes the call first. `count` is how often
    the step is expected to run: 3 in a loop of three rounds, 0.2 in a branch taken once in five times.
    """

    name: str
    kind: Literal["llm", "tool"] = "llm"
    agent: str = ""
    agent_type: str = ""
    role: str = ""
    objective: Literal["latency", "throughput"] = "latency"
    tokens: int | None = None
    seconds: float | None = None
    count: float = 1.0
    tool_kind: str = ""
    stages: tuple[tuple[str, float], ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise GraphError(f"a node needs a name: found {self.name!r}; allowed is a string that is not empty")
        if self.kind not in NODE_KINDS:
            raise GraphError(f"node {self.name!r}: kind found {self.kind!r}; allowed: {', '.join(NODE_KINDS)}")
        check_objective(f"node {self.name!r}", self.objective)
        for what, value in (("tokens", self.tokens), ("seconds", self.seconds), ("count", self.count)):
            if value is not None and not (_is_number(value) and 0 <= value < float("inf")):
                raise GraphError(f"node {self.name!r}: {what} found {value!r}; allowed is a number of 0 or more")

    @property
    def calls_model(self) -> bool:
        """Whether the step sends a generation to the server."""
        return self.kind == "llm" or bool(self.tokens)

    def expected_seconds(self, forecast: Forecast) -> float:
        """How long all runs of the step take together, in seconds."""
        if self.kind == "llm":
            tokens = forecast.unknown_tokens if self.tokens is None else self.tokens
            once = tokens * forecast.seconds_per_token if self.seconds is None else self.seconds
        else:
            wait = self.seconds
            if wait is None and self.stages:
                wait = sum(seconds for _, seconds in self.stages)
            if wait is None:
                wait = forecast.tool_seconds.get(self.tool_kind, forecast.unknown_tool_s)
            once = wait + (self.tokens or 0) * forecast.seconds_per_token
        return once * self.count


@dataclass(frozen=True)
class JoinGroup:
    """`node` starts when all of `members` have ended; the last of them decides."""

    node: str
    members: tuple[str, ...]


@dataclass(frozen=True)
class NodeFacts:
    """What the plan says about one node. Depths count nodes from an entry, which has depth 1.

    `remaining_depth` counts the nodes on the longest way from here to an end, this one included. Times are seconds from
    the start of the application if nothing waits for the server; `slack_s` is how much later the node may end without
    making the application longer.
    """

    depth: int
    depth_longest: int
    remaining_depth: int
    in_degree: int
    out_degree: int
    expected_s: float
    start_s: float
    slack_s: float
    critical: bool


@dataclass(frozen=True)
class CompiledGraph:
    """A plan that holds: `facts` by node name, in an order in which every node comes after those it waits for.

    `depth` and `depth_longest` are those of the exit behind the last node, as the paper's artifact counts: one more
    than its deepest node. `critical_path` is the longest path by expected seconds, the first declared of equal ones.
    """

    graph: AgentGraph
    facts: Mapping[str, NodeFacts]
    depth: int
    depth_longest: int
    critical_path: tuple[str, ...]
    expected_s: float
    join_groups: tuple[JoinGroup, ...]

    @property
    def order(self) -> tuple[str, ...]:
        return tuple(self.facts)


@dataclass(frozen=True)
class AgentGraph:
    """Nodes and edges in the order of their declaration; nothing is checked before `compile`.

    `entries` are the nodes that the application starts with. When there are none: every node that others wait for
    and that waits for none; in a graph without edges, every node.
    """

    nodes: tuple[Node, ...]
    edges: tuple[tuple[str, str], ...] = ()
    entries: tuple[str, ...] = field(default=())

    def predecessors(self) -> dict[str, tuple[str, ...]]:
        """For every node, in declared order, those it waits for."""
        found: dict[str, list[str]] = {node.name: [] for node in self.nodes}
        for source, target in self.edges:
            found[target].append(source)
        return {name: tuple(sources) for name, sources in found.items()}

    def start_nodes(self) -> tuple[str, ...]:
        if self.entries or not self.edges:
            return self.entries or tuple(node.name for node in self.nodes)
        sources, targets = {a for a, _ in self.edges}, {b for _, b in self.edges}
        return tuple(n.name for n in self.nodes if n.name in sources and n.name not in targets)

    def compile(self, forecast: Forecast | None = None) -> CompiledGraph:
        """Check the plan and compute its facts. Raises GraphError, which names the nodes and says what to do."""
        _check_names(self)
        before = self.predecessors()
        _check_cycles(before)
        after = tails_after(before)
        _check_reachable(self, after)
        return _facts(self, before, after, forecast or Forecast())


def _check_names(graph: AgentGraph) -> None:
    if not graph.nodes:
        raise GraphError("the graph has no nodes; add at least one with add_node()")
    names: set[str] = set()
    for node in graph.nodes:
        if node.name in names:
            raise GraphError(f"two nodes are named {node.name!r}; every node needs a name of its own")
        names.add(node.name)
    seen: set[tuple[str, str]] = set()
    for source, target in graph.edges:
        for name in (source, target):
            _check_known(f"edge {source!r} -> {target!r}", name, names)
        if source == target:
            raise GraphError(
                f"node {source!r} has an edge to itself; a node cannot wait for itself. If it runs several times, "
                f"remove the edge and say how often: loop({source!r}, expected=...)")
        if (source, target) in seen:
            raise GraphError(f"edge {source!r} -> {target!r} was declared twice; remove one")
        seen.add((source, target))
    for name in graph.entries:
        _check_known("start", name, names)


def _check_known(where: str, name: str, names: set[str]) -> None:
    if name not in names:
        likely = [one for one in sorted(names) if len(one) <= HINT_CHARS][:HINT_NAMES]
        near = difflib.get_close_matches(name[:HINT_CHARS], likely, 1)
        hint = f"did you mean {near[0]!r}? Otherwise add it" if near else "add it"
        raise GraphError(f"{where}: there is no node {name!r}; {hint} with add_node() first")


def _check_cycles(before: Mapping[str, tuple[str, ...]]) -> None:
    cycle = first_cycle(before)
    if cycle:
        raise GraphError(
            f"these nodes wait for each other in a circle: {' -> '.join([*cycle, cycle[0]])}. Remove one of these "
            "edges; for steps that repeat, leave out the edge back and say how often they run: loop(..., expected=...)")


def _check_reachable(graph: AgentGraph, after: Mapping[str, tuple[str, ...]]) -> None:
    starts = graph.start_nodes()
    seen = reachable(starts, after)
    lost = [node.name for node in graph.nodes if node.name not in seen]
    if lost:
        raise GraphError(
            f"nothing leads from the start ({', '.join(starts)}) to {', '.join(lost)}. Add an edge from a node that is "
            f"reached, or name the first of them as a start: start({lost[0]!r}), or remove them")


def _facts(
    graph: AgentGraph, before: Mapping[str, tuple[str, ...]], after: Mapping[str, tuple[str, ...]], forecast: Forecast
) -> CompiledGraph:
    nodes = {node.name: node for node in graph.nodes}
    shortest, longest = depths(before, min), depths(before, max)
    left = remaining(before, after)
    seconds = {name: node.expected_seconds(forecast) for name, node in nodes.items()}
    times = finish_times(before, after, seconds)
    facts = {
        name: NodeFacts(
            depth=shortest[name], depth_longest=longest[name], remaining_depth=left[name],
            in_degree=len(before[name]), out_degree=len(after[name]), expected_s=seconds[name],
            start_s=times.start_s[name], slack_s=times.slack_s[name], critical=name in times.path)
        for name in shortest}
    joins = tuple(JoinGroup(name, sources) for name, sources in before.items() if len(sources) > 1)
    return CompiledGraph(
        graph, MappingProxyType(facts), max(shortest.values()) + 1, max(longest.values()) + 1, times.path,
        times.total_s, joins)


def check_objective(where: str, value: str) -> str:
    if value not in OBJECTIVES:
        raise GraphError(f"{where}: objective found {value!r}; allowed: {', '.join(OBJECTIVES)}")
    return value


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
