"""Orders, depths and longest paths of an acyclic graph, given as the nodes that each node waits for.

All results depend only on the order in which the nodes and edges were declared.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

Neighbours = Mapping[str, tuple[str, ...]]
SLACK_DIGITS = 9  # sums along different paths differ in the last bits; a nanosecond is no slack


@dataclass(frozen=True)
class Times:
    """Earliest start and slack of every node, the longest path, and how long it takes; all in seconds."""

    start_s: dict[str, float]
    slack_s: dict[str, float]
    path: tuple[str, ...]
    total_s: float


def tails_after(before: Neighbours) -> dict[str, tuple[str, ...]]:
    """For every node those that wait for it, in declared order."""
    found: dict[str, list[str]] = {name: [] for name in before}
    for name, sources in before.items():
        for source in sources:
            found[source].append(name)
    return {name: tuple(targets) for name, targets in found.items()}


def in_order(before: Neighbours) -> list[str]:
    """The nodes, each after those it waits for, otherwise as declared; nodes on or behind a cycle are missing."""
    after, waits = tails_after(before), {name: len(sources) for name, sources in before.items()}
    names, rank = list(before), {name: number for number, name in enumerate(before)}
    ready, done = [rank[name] for name in names if not before[name]], []  # rising numbers are a heap
    while ready:
        name = names[heapq.heappop(ready)]
        done.append(name)
        for target in after[name]:
            waits[target] -= 1
            if not waits[target]:
                heapq.heappush(ready, rank[target])
    return done


def first_cycle(before: Neighbours) -> list[str]:
    """The nodes of one cycle, in the direction of its edges, or an empty list."""
    done = set(in_order(before))
    stuck = [name for name in before if name not in done]
    if not stuck:
        return []
    # Every stuck node waits for a stuck one, so walking backwards must come to a node twice.
    walk = [stuck[0]]
    while walk.count(walk[-1]) == 1:
        walk.append(next(source for source in before[walk[-1]] if source not in done))
    cycle = walk[walk.index(walk[-1]) + 1:][::-1]
    first = min(range(len(cycle)), key=lambda i: stuck.index(cycle[i]))
    return cycle[first:] + cycle[:first]


def reachable(starts: Iterable[str], after: Neighbours) -> set[str]:
    seen: set[str] = set()
    waiting = list(starts)
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            waiting.extend(after[name])
    return seen


def depths(before: Neighbours, choose: Callable[[Iterable[int]], int]) -> dict[str, int]:
    """Nodes on the way from an entry, this one included: the shortest way if `choose` is min, the longest if max."""
    depth: dict[str, int] = {}
    for name in in_order(before):
        depth[name] = 1 + (choose(depth[source] for source in before[name]) if before[name] else 0)
    return depth


def remaining(before: Neighbours, after: Neighbours) -> dict[str, int]:
    """Nodes on the longest way to an end, this one included."""
    left: dict[str, int] = {}
    for name in reversed(in_order(before)):
        left[name] = 1 + max((left[target] for target in after[name]), default=0)
    return left


def finish_times(before: Neighbours, after: Neighbours, seconds: Mapping[str, float]) -> Times:
    """The critical path method: every node starts as soon as all it waits for have ended."""
    order, start, end = in_order(before), {}, {}
    last: dict[str, str | None] = {}  # the node that this one waited for longest, the first declared of equal ones
    for name in order:
        last[name] = max(before[name], key=end.__getitem__, default=None)
        start[name] = end[last[name]] if last[name] is not None else 0.0
        end[name] = start[name] + seconds[name]
    goal = max(order, key=lambda name: (end[name], not after[name]))
    latest: dict[str, float] = {}
    for name in reversed(order):
        latest[name] = min((latest[target] - seconds[target] for target in after[name]), default=end[goal])
    slack = {name: max(0.0, round(latest[name] - end[name], SLACK_DIGITS)) for name in order}
    path: list[str] = []
    step: str | None = goal
    while step is not None:
        path.append(step)
        step = last[step]
    return Times(start, slack, tuple(reversed(path)), end[goal])
