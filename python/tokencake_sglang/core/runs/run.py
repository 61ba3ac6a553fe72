"""One run of a graph: which nodes have run, which run now, and how long the longest path behind each still is.

    left(n)  = seconds that node n itself still takes: of one run, times the runs that are expected of it
    tail(n)  = the largest left(s) + tail(s) of the nodes s that wait for n; 0 where none does. Nodes with the objective
               throughput, with nothing of objective latency behind them, do not count: nobody waits for them
    path(n)  = left(n) + tail(n)

A node is over when it has run as often as expected, or when one that waits for it has started (a branch that was not
taken, a loop that ended early); not over while one of its own loop has, that is, of a node that is expected equally
often, more than once. When a node changes its state, `tail` is computed anew for the nodes that wait for it to end and
are not over themselves; where a node that was over runs again, for all.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from typing import Any

from tokencake_sglang.core.runs.outlook import Outlook


@dataclass
class Position:
    """Of an agent in the run: the node that it came to last, and its tool nodes that are under way."""

    at: int | None = None
    tools: list[int] = field(default_factory=list)


@dataclass
class Step:
    """A request. `node` None: its `node_id` is not in the graph; it then keeps what follows the agent's last node."""

    rid: str
    agent: str
    node: int | None
    agent_type: str = ""
    left_s: float = 0.0  # where the node is None
    after: int | None = None  # the same: the agent's node before it
    admitted_at: float | None = None


class Run:
    def __init__(self, program: str, outlook: Outlook, began_at: float) -> None:
        self.program, self.outlook, self.began_at = program, outlook, began_at
        count = len(outlook.nodes)
        self.done = [0] * count  # runs that have ended
        self.live = [0] * count  # runs under way, waiting requests included
        self.over = [False] * count
        self.left = [0.0] * count
        self.tail = [0.0] * count
        self.positions: dict[str, Position] = {}
        self.steps: dict[str, Step] = {}
        self.since: dict[int, float] = {}  # when the live run of a node got the device or its tool
        self.unfolded: dict[str, None] = {}  # node ids that are not in the graph
        self.version = 0
        self.once_s: list[float] = []  # of one run of each node, as it was when `left` was computed
        self._longest: float | None = None
        self.rebuild()

    # -- questions ------------------------------------------------------------------------------------------

    @property
    def is_complete(self) -> bool:
        return all(self.over)

    def path_s(self, node: int) -> float:
        return self.left[node] + self.tail[node]

    def tail_of(self, node: int) -> float:
        """`tail` as the nodes behind it say now, also of a node that is over."""
        waited_for = self.outlook.is_waited_for
        return max((self.left[n] + self.tail[n] for n in self.outlook.after[node] if waited_for[n]), default=0.0)

    @property
    def longest_s(self) -> float:
        """The longest path of the nodes that are not over and that somebody waits for."""
        if self._longest is None:
            self._longest = max(map(self.path_s, self._on_the_way()), default=0.0)
        return self._longest

    def path_at(self, node: int, now: float) -> float:
        """`path_s` less what the node has behind it, if it runs."""
        ran = now - self.since[node] if node in self.since else 0.0
        return max(0.0, self.left[node] - max(0.0, ran)) + self.tail[node]

    def remaining_s(self, now: float) -> float:
        """The longest path from now on."""
        return max((self.path_at(node, now) for node in self._on_the_way()), default=0.0)

    def _on_the_way(self) -> list[int]:
        waited_for = self.outlook.is_waited_for
        return [node for node, is_over in enumerate(self.over) if not is_over and waited_for[node]]

    def report(self, now: float) -> dict[str, Any]:
        """For the live state. Left: neither over nor running."""
        nodes, left_s = self.outlook.nodes, self.remaining_s(now)
        running = [number for number, live in enumerate(self.live) if live]
        return {
            "program": self.program, "graph_id": self.outlook.graph_id, "nodes_over": sum(self.over),
            "nodes_running": [nodes[number].name for number in running],
            "nodes_left": len(nodes) - sum(self.over) - len(running), "unfolded": list(self.unfolded),
            "remaining_s": left_s,
            "slack_s": {nodes[number].name: max(0.0, left_s - self.path_at(number, now)) for number in running}}

    # -- changes --------------------------------------------------------------------------------------------

    def start(self, node: int) -> None:
        """One more run of the node has begun; what it waits for is over."""
        again = self.over[node]
        self.over[node] = False
        self.live[node] += 1
        if self._pass_ancestors(node) or again:
            self.rebuild()
        else:
            self._update(node)

    def end(self, node: int) -> None:
        """One run of the node has ended."""
        self.live[node] -= 1
        self.done[node] += 1
        if not self.live[node]:
            self.since.pop(node, None)
            self.over[node] = self.done[node] >= self.outlook.nodes[node].count
        self._update(node)

    def give_up(self, node: int) -> None:
        """One run of the node went away before it ended: it may come again."""
        self.live[node] -= 1
        if not self.live[node]:
            self.since.pop(node, None)
            self.over[node] = 0 < self.done[node] >= self.outlook.nodes[node].count
        self._update(node)

    def follow_outlook(self) -> None:
        if self.version != self.outlook.version:
            self.rebuild()

    def rebuild(self) -> None:
        """`left` and `tail` of all nodes, by the estimates of now."""
        self.version, self._longest = self.outlook.version, None
        self.once_s = self.outlook.once_s
        for node in reversed(range(len(self.over))):
            self.left[node] = self._left_of(node)
            self.tail[node] = self.tail_of(node)

    def _left_of(self, node: int) -> float:
        if self.over[node]:
            return 0.0
        runs = self.outlook.nodes[node].count - self.done[node]
        live = self.live[node]
        if live:
            runs = max(1.0, runs / live)
        return self.once_s[node] * max(0.0, runs)

    def _update(self, node: int) -> None:
        self._longest = None
        self.left[node] = self._left_of(node)
        waiting = [-one for one in self.outlook.before[node] if not self.over[one]]
        heapq.heapify(waiting)
        last = None
        while waiting:  # those behind come first, so that each is computed once
            one = -heapq.heappop(waiting)
            if one == last:
                continue
            last, tail = one, self.tail_of(one)
            if tail != self.tail[one]:
                self.tail[one] = tail
                for earlier in self.outlook.before[one]:
                    if not self.over[earlier]:
                        heapq.heappush(waiting, -earlier)

    def _pass_ancestors(self, node: int) -> bool:
        """Whether nodes were passed over while others that wait for them to end are not over."""
        count, nodes = self.outlook.nodes[node].count, self.outlook.nodes
        waiting, seen, passed, kept = list(self.outlook.before[node]), set(), False, False
        while waiting:
            one = waiting.pop()
            if self.over[one] or one in seen:
                continue
            seen.add(one)
            of_its_loop = count > 1 and nodes[one].count == count and self.done[one] < count
            if self.live[one] or of_its_loop:
                kept = True
            else:
                passed = self.over[one] = True
                self.left[one] = 0.0
            waiting.extend(self.outlook.before[one])
        return passed and kept
