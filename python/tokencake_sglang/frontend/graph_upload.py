"""The graph that the programs of an app follow, and telling it to a server."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tokencake_sglang.core import graph as plan
from tokencake_sglang.core.errors import GraphError
from tokencake_sglang.core.graph_json import graph_id, to_json
from tokencake_sglang.frontend.events import EventClient

GRAPHS_PATH = "/v1/tokencake/graphs"
TOLD_FOR_S = 300.0  # after this long a graph is sent again: the server may be a new one, or may have forgotten it
_GRAPHS: dict[str, list[tuple[str, dict[str, Any]]]] = {}  # of the blocks that are open, by app: id and JSON
_LOCK = threading.Lock()


@contextmanager
def following(app_id: str, graph: Any) -> Iterator[None]:
    """Requests of `app_id` name this graph while the block is open; None: no graph. GraphError if it is no plan."""
    if graph is None:
        yield
        return
    value = graph.value() if hasattr(graph, "value") else graph
    if not isinstance(value, plan.AgentGraph):
        raise GraphError(f"app: graph found {type(graph).__name__}; allowed is an AgentGraph")
    value.compile()
    told = graph_id(value), to_json(value)
    with _LOCK:
        _GRAPHS.setdefault(app_id, []).append(told)
    try:
        yield
    finally:
        with _LOCK:
            _GRAPHS[app_id].remove(told)
            if not _GRAPHS[app_id]:
                del _GRAPHS[app_id]


class GraphUpload:
    """Sends graphs to one server, each before the first request that names it. Thread-safe; does not raise for what
    the server or the network does."""

    def __init__(self, events: EventClient) -> None:
        self._events = events
        self._sent: dict[str, float] = {}  # graph id: when
        self._lock = threading.Lock()

    def id_of(self, app_id: str | None) -> str | None:
        """The id of the graph that the app follows, once the server has been told of it; None without a graph."""
        with _LOCK:
            open_blocks = _GRAPHS.get(app_id or "")
            told = open_blocks[-1] if open_blocks else None
        if told is None:
            return None
        name, graph = told
        with self._lock:
            now = time.monotonic()
            if now - self._sent.get(name, -TOLD_FOR_S) >= TOLD_FOR_S:
                self._sent[name] = now
                self._events.post(GRAPHS_PATH, graph)
        return name
