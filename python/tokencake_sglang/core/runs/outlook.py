"""A graph as its runs see it: nodes by number, and the expected seconds of each and of what follows it."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence

from tokencake_sglang.core.graph import CompiledGraph, Node
from tokencake_sglang.core.graph_paths import tails_after
from tokencake_sglang.core.runs.estimates import Estimates
from tokencake_sglang.core.spatial.views import Structure

REFRESH_S = 10.0  # estimates are looked at again after this long, if there was anything to learn
LOOKED_THROUGH = 64  # nodes, for the calls that an agent makes next


class Outlook:
    """Shared by all runs of one graph. Numbers are places in `nodes`, in which every node comes after those it waits
    for. `version` grows when the estimates have changed."""

    def __init__(self, graph_id: str, compiled: CompiledGraph) -> None:
        self.graph_id = graph_id
        by_name = {node.name: node for node in compiled.graph.nodes}
        self.nodes: tuple[Node, ...] = tuple(by_name[name] for name in compiled.order)
        self.number = {node.name: number for number, node in enumerate(self.nodes)}
        before = compiled.graph.predecessors()
        after = tails_after(before)
        self.before = tuple(tuple(self.number[name] for name in before[node.name]) for node in self.nodes)
        self.after = tuple(tuple(self.number[name] for name in after[node.name]) for node in self.nodes)
        self.structure = _structures(compiled, self.nodes)
        self.is_waited_for = self._waited_for()
        self.calls_of: dict[str, list[int]] = {}  # the model calls of each agent
        for number, node in enumerate(self.nodes):
            if node.agent and node.calls_model:
                self.calls_of.setdefault(node.agent, []).append(number)
        self._following: dict[int, tuple[int, ...]] = {}
        self.heads_of = {agent: self._heads(numbers) for agent, numbers in self.calls_of.items()}
        self.call_s: list[float] = []
        self.once_s: list[float] = []
        self.version = 0
        self.users = 0
        self._lessons = -1
        self._looked_at = 0.0

    def key(self, number: int) -> str:
        """Under which the node's output lengths are learnt."""
        return f"{self.graph_id}/{self.nodes[number].name}"

    def following(self, number: int) -> tuple[int, ...]:
        """The calls that the same agent makes next: behind this node, with nothing but its tools between."""
        if number not in self._following:
            agent, found = self.nodes[number].agent, []
            waiting, seen = deque(self.after[number]), set()
            while waiting and len(seen) < LOOKED_THROUGH:
                one = waiting.popleft()
                if one in seen:
                    continue
                seen.add(one)
                if not self.nodes[one].calls_model:
                    waiting.extend(self.after[one])
                elif agent and self.nodes[one].agent == agent:
                    found.append(one)
            self._following[number] = tuple(found)
        return self._following[number]

    def refresh(self, now: float, estimates: Estimates) -> None:
        """Take over what was learnt since, at most once in REFRESH_S."""
        if self.version and (now - self._looked_at < REFRESH_S or estimates.lessons == self._lessons):
            return
        self._looked_at, self._lessons = now, estimates.lessons
        tools: dict[tuple[object, ...], float] = {}
        self.call_s, self.once_s = [], []
        for number, node in enumerate(self.nodes):
            call_s = estimates.call_s(self.key(number), node)
            same = (node.kind, node.agent_type, node.tool_kind, node.seconds, node.stages)
            if same not in tools:
                tools[same] = estimates.tool_s(node)
            self.call_s.append(call_s)
            self.once_s.append(call_s + tools[same])
        self.version += 1

    def _waited_for(self) -> list[bool]:
        """Whether a node has the objective latency, or one behind it has."""
        found = [node.objective == "latency" for node in self.nodes]
        for number in reversed(range(len(found))):
            found[number] = found[number] or any(found[after] for after in self.after[number])
        return found

    def _heads(self, numbers: Sequence[int]) -> list[int]:
        """Of an agent's calls, those that none of its calls leads to."""
        led_to = {following for number in numbers for following in self.following(number)}
        return [number for number in numbers if number not in led_to]


def _structures(compiled: CompiledGraph, nodes: Sequence[Node]) -> tuple[Structure, ...]:
    facts = [compiled.facts[node.name] for node in nodes]
    alike = Counter((node.agent_type, fact.depth) for node, fact in zip(nodes, facts, strict=True))
    return tuple(
        Structure(
            fact.depth, fact.depth_longest, fact.remaining_depth, compiled.depth, fact.in_degree, fact.out_degree,
            1 / alike[node.agent_type, fact.depth], fact.critical)
        for node, fact in zip(nodes, facts, strict=True))
