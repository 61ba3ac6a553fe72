"""The plans that a server knows, by id. Bounded in number and in size; of too many the one used longest ago goes."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from tokencake_sglang.core.errors import GraphError
from tokencake_sglang.core.graph import CompiledGraph
from tokencake_sglang.core.graph_json import graph_id, parse_graph, plan_json

MOST_GRAPHS = 1024
MOST_PARTS = 65536  # nodes and edges of all plans together


class GraphStore:
    """Equal calls in equal order leave equal stores, on every rank."""

    def __init__(self, most_graphs: int = MOST_GRAPHS, most_parts: int = MOST_PARTS) -> None:
        self._most_graphs, self._most_parts = most_graphs, most_parts
        self._graphs: OrderedDict[str, CompiledGraph] = OrderedDict()
        self.parts = 0

    def __len__(self) -> int:
        return len(self._graphs)

    def get(self, name: str | None) -> CompiledGraph | None:
        """The plan of that id, which counts as used now; None if it is not known."""
        found = self._graphs.get(name) if name else None
        if found is not None:
            self._graphs.move_to_end(name)
        return found

    def add(self, obj: Any) -> tuple[bool, str, CompiledGraph]:
        """Keep the plan that decoded JSON describes: whether it is new, its id, and the plan. Raises GraphError."""
        graph = parse_graph(obj)
        name = graph_id(graph)
        known = self.get(name)
        if known is not None:
            return False, name, known
        compiled = graph.compile()
        self._graphs[name] = compiled
        self.parts += _parts(compiled)
        while len(self._graphs) > self._most_graphs or self.parts > self._most_parts:
            if len(self._graphs) == 1:
                break
            self.parts -= _parts(self._graphs.popitem(last=False)[1])
        return True, name, compiled

    # -- answers of the control API: an HTTP status and a body -------------------------------------------------

    def post(self, obj: Any) -> tuple[int, dict[str, Any]]:
        try:
            is_new, name, compiled = self.add(obj)
        except GraphError as error:
            return 400, {"error": {"code": 400, "reason": "graph", "message": str(error)}}
        said = "is known from now on" if is_new else "was known before; nothing changed"
        return 200, {
            "status": "applied" if is_new else "duplicate", "message": f"The graph {said}.", "graph_id": name,
            "nodes": len(compiled.graph.nodes), "critical_path": list(compiled.critical_path),
            "expected_s": compiled.expected_s}

    def show(self, name: str) -> tuple[int, dict[str, Any]]:
        compiled = self.get(name)
        if compiled is None:
            return 404, {"error": {"code": 404, "reason": "unknown_graph", "message": (
                f"No graph has the id {name[:64]!r}. Allowed are ids that POST /v1/tokencake/graphs has answered;"
                f" graphs are forgotten when the server restarts, and beyond {self._most_graphs} the one used longest"
                " ago goes. Send the graph again.")}}
        return 200, plan_json(name, compiled)


def _parts(compiled: CompiledGraph) -> int:
    return len(compiled.graph.nodes) + len(compiled.graph.edges)
