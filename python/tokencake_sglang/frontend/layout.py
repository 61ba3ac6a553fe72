"""Where the nodes of a layered drawing go: order within each layer with few crossings, then places near neighbours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

SWEEPS = 12
GAP = 26  # pixels between two neighbours
Edge = tuple[str, str]
Spot = str | tuple[Edge, int]  # a node, or the point where an edge passes a layer


@dataclass(frozen=True)
class Layout:
    """`x` is a node's middle in pixels, `layer` counts from 0, `routes` are the (x, layer) that an edge passes."""

    x: dict[str, int]
    layer: dict[str, int]
    routes: dict[Edge, list[tuple[int, int]]]
    width: int
    layers: int


def lay_out(depth: Mapping[str, int], edges: Sequence[Edge], widths: Mapping[str, int], margin: int) -> Layout:
    """`depth` counts from 1 and grows along every edge; `widths` are pixels."""
    layer = {name: number - 1 for name, number in depth.items()}
    chains = {edge: _chain(edge, layer) for edge in edges}
    rows: list[list[Spot]] = [[] for _ in range(max(layer.values()) + 1)]
    for name, number in layer.items():
        rows[number].append(name)
    for edge, chain in chains.items():
        for spot in chain[1:-1]:
            rows[layer[edge[0]] + spot[1]].append(spot)
    above: dict[Spot, list[Spot]] = {spot: [] for row in rows for spot in row}
    below: dict[Spot, list[Spot]] = {spot: [] for row in rows for spot in row}
    for chain in chains.values():
        for first, then in zip(chain, chain[1:], strict=False):
            below[first].append(then)
            above[then].append(first)
    _order(rows, above, below)
    size = {spot: widths[spot] if isinstance(spot, str) else 8 for row in rows for spot in row}
    x = _place(rows, above, below, size)
    left = min(x[s] - size[s] / 2 for s in x)
    right = max(x[s] + size[s] / 2 for s in x)
    at = {spot: round(value - left) + margin for spot, value in x.items()}
    routes = {edge: [(at[spot], layer[edge[0]] + number) for number, spot in enumerate(chain)]
              for edge, chain in chains.items()}
    return Layout({name: at[name] for name in layer}, layer, routes, round(right - left) + 2 * margin, len(rows))


def _chain(edge: Edge, layer: Mapping[str, int]) -> list[Spot]:
    between: list[Spot] = [(edge, step) for step in range(1, layer[edge[1]] - layer[edge[0]])]
    return [edge[0], *between, edge[1]]


def _order(rows: list[list[Spot]], above: Mapping[Spot, list[Spot]], below: Mapping[Spot, list[Spot]]) -> None:
    """Sort each row by the mean place of its neighbours in the row before, down and up in turn; keep the best order."""
    best, fewest = [list(row) for row in rows], _crossings(rows, below)
    for sweep in range(SWEEPS):
        numbers = range(1, len(rows)) if sweep % 2 == 0 else range(len(rows) - 2, -1, -1)
        neighbours = above if sweep % 2 == 0 else below
        for number in numbers:
            other = rows[number - 1 if sweep % 2 == 0 else number + 1]
            place = {spot: index for index, spot in enumerate(other)}
            own = {spot: index for index, spot in enumerate(rows[number])}
            rows[number].sort(key=lambda s, p=place, o=own, n=neighbours: _mean([p[t] for t in n[s]], o[s]))
        count = _crossings(rows, below)
        if count < fewest:
            best, fewest = [list(row) for row in rows], count
    rows[:] = best


def _crossings(rows: list[list[Spot]], below: Mapping[Spot, list[Spot]]) -> int:
    count = 0
    for row, following in zip(rows, rows[1:], strict=False):
        place = {spot: index for index, spot in enumerate(following)}
        ends = [sorted(place[target] for target in below[spot]) for spot in row]
        for index, mine in enumerate(ends):
            count += sum(1 for theirs in ends[index + 1:] for a in mine for b in theirs if a > b)
    return count


def _place(rows: list[list[Spot]], above: Mapping[Spot, list[Spot]], below: Mapping[Spot, list[Spot]],
           size: Mapping[Spot, int]) -> dict[Spot, float]:
    """Pull every spot towards its neighbours, with no two closer than GAP."""
    x: dict[Spot, float] = {}
    for row in rows:
        total = sum(size[spot] for spot in row) + GAP * (len(row) - 1)
        left = -total / 2
        for spot in row:
            x[spot] = left + size[spot] / 2
            left += size[spot] + GAP
    for sweep in range(SWEEPS):
        neighbours = above if sweep % 2 == 0 else below
        for row in rows if sweep % 2 == 0 else reversed(rows):
            _settle(row, {s: _mean([x[t] for t in neighbours[s]], x[s]) for s in row}, size, x)
    for row in rows:
        _settle(row, {s: _mean([x[t] for t in above[s] + below[s]], x[s]) for s in row}, size, x)
    return x


def _settle(row: list[Spot], wanted: Mapping[Spot, float], size: Mapping[Spot, int], x: dict[Spot, float]) -> None:
    """Both the leftmost and the rightmost placement keep the distances, and so does the mean of the two."""
    pushed_right: list[float] = []
    for number, spot in enumerate(row):
        room = pushed_right[-1] + _apart(row[number - 1], spot, size) if number else wanted[spot]
        pushed_right.append(max(wanted[spot], room))
    pushed_left: list[float] = []
    for number, spot in enumerate(reversed(row)):
        room = pushed_left[-1] - _apart(spot, row[-number], size) if number else wanted[spot]
        pushed_left.append(min(wanted[spot], room))
    for spot, low, high in zip(row, reversed(pushed_left), pushed_right, strict=True):
        x[spot] = (low + high) / 2


def _apart(left: Spot, right: Spot, size: Mapping[Spot, int]) -> float:
    return (size[left] + size[right]) / 2 + GAP


def _mean(values: list[float] | list[int], otherwise: float) -> float:
    return sum(values) / len(values) if values else otherwise
