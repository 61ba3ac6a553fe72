"""The routes for graphs: POST /v1/tokencake/graphs and GET /v1/tokencake/graphs/ID."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse

from tokencake_sglang.core.errors import GraphError, MetadataError
from tokencake_sglang.core.graph_json import parse_graph, to_json
from tokencake_sglang.server.openapi import GRAPH_ROUTE, GRAPHS_ROUTE
from tokencake_sglang.server.routes import DISABLED, PREFIX, Gateway, answer, read_body, refusal
from tokencake_sglang.server.schema import decode_object

MAX_GRAPH_BYTES = 512 * 1024


def build_graph_router(gateway: Gateway | None) -> APIRouter:
    """Routes that ask `gateway`; None means TokenCake is off and every route answers 503."""
    router = APIRouter(prefix=PREFIX, tags=["tokencake"])

    @router.post("/graphs", **GRAPHS_ROUTE)
    async def graphs(request: Request) -> JSONResponse:
        """Tell the server the graph that runs of an application follow."""
        if gateway is None:
            return refusal(503, "disabled", DISABLED)
        try:
            raw = await read_body(request, MAX_GRAPH_BYTES, "Describe the application with fewer nodes.")
            graph = await asyncio.to_thread(parse_plan, raw)
        except MetadataError as error:
            return refusal(400, "schema", str(error))
        except GraphError as error:
            return refusal(400, "graph", str(error))
        except ClientDisconnect:
            return refusal(400, "schema", "the client left before the body was complete. Send the graph again.")
        return answer(*await gateway.call("graph", graph))

    @router.get("/graphs/{graph_id}", **GRAPH_ROUTE)
    async def graph(request: Request) -> JSONResponse:
        """The plan of that id, with its critical path and the facts of each node."""
        if gateway is None:
            return refusal(503, "disabled", DISABLED)
        return answer(*await gateway.call("show_graph", {"graph_id": request.path_params["graph_id"]}))

    return router


def parse_plan(raw: bytes) -> dict[str, Any]:
    """The body of a POST as the plan that goes to the scheduler. Raises MetadataError and GraphError: what passes here
    is a plan that holds."""
    graph = parse_graph(decode_object(raw, MAX_GRAPH_BYTES))
    graph.compile()
    return to_json(graph)
