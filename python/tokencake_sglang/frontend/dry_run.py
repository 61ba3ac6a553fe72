"""What a dry run of a program has found so far: the graph, the names it has given, and the sample answers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from tokencake_sglang.core.errors import GraphError
from tokencake_sglang.core.graph import Node
from tokencake_sglang.frontend.graph import AgentGraph


class DryRun:
    """The graph so far, the names given, and the sample answers."""

    def __init__(self, graph: AgentGraph, answers: dict[str, Any]):
        self.graph, self.answers = graph, answers
        self.used: set[str] = set()
        self.unanswered: list[str] = []
        self.runs = 1.0  # how often what is run now is expected to: in a loop, in a branch
        self._taken: dict[str, int] = {}
        self._before: dict[str, set[str]] = {}  # all that a node comes after

    def unique(self, name: str) -> str:
        """`name`, or with `#2`, `#3` if it was given before."""
        self._taken[name] = self._taken.get(name, 0) + 1
        return name if self._taken[name] == 1 else f"{name}#{self._taken[name]}"

    def add(self, node: Node, after: Iterable[str]) -> str:
        sources = self.last_of(after)
        self.graph.add_node(replace(node, count=node.count * self.runs))
        for source in sources:
            self.graph.add_edge(source, node.name)
        self._before[node.name] = set(sources).union(*(self._before[source] for source in sources))
        return node.name

    @contextmanager
    def expected_runs(self, times: float) -> Iterator[None]:
        """What is added in the body is expected to run so often for each run of what is around it."""
        around, self.runs = self.runs, self.runs * times
        try:
            yield
        finally:
            self.runs = around

    def last_of(self, names: Iterable[str]) -> tuple[str, ...]:
        """Those of the nodes that no other of them comes after."""
        names = tuple(dict.fromkeys(names))
        return tuple(name for name in names if not any(name in self._before[other] for other in names))

    def answer(self, step: str, agent: str, variable: str) -> tuple[bool, Any]:
        for key in (step, f"{agent}.{variable}", variable):
            if key in self.answers:
                self.used.add(key)
                return True, self.answers[key]
        self.unanswered.append(step)
        return False, None

    def hint(self) -> str:
        if not self.unanswered:
            return "Sample arguments of derive() must be what the program needs; a dry run has no backend and no server"
        return (f"In a dry run the results of these steps are unknown: {', '.join(self.unanswered)}. If the program "
                f"needs one of them, give a sample: derive(..., answers={{{self.unanswered[-1]!r}: ...}})")

    def check(self) -> None:
        names = [node.name for node in self.graph.value().nodes]
        if not names:
            raise GraphError("derive: the program made no model call and no tool call through an agent; in a function "
                             "that runs agents, run them in the function's own thread")
        unused = sorted(set(self.answers) - self.used)
        if unused:
            raise GraphError(f"answers: no step has the name {', '.join(unused)}; the steps are {', '.join(names)}")
        value = self.graph.value()
        first = [name for name in names if not self._before[name]]
        if set(first) != set(value.start_nodes()):
            self.graph.start(*first)
