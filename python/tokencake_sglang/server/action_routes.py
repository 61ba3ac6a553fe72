"""POST /v1/tokencake/actions: what clients ask for, with or without a running request, each answered by an outcome."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse

from tokencake_sglang.core.errors import MetadataError
from tokencake_sglang.server.actions import Asked, parse_envelope
from tokencake_sglang.server.openapi import ACTIONS_ROUTE
from tokencake_sglang.server.routes import DISABLED, PREFIX, Gateway, answer, read_body, refusal
from tokencake_sglang.server.schema import decode_object


def build_action_router(gateway: Gateway | None) -> APIRouter:
    """The route, which asks `gateway`; None means TokenCake is off and it answers 503."""
    router = APIRouter(prefix=PREFIX, tags=["tokencake"])

    @router.post("/actions", **ACTIONS_ROUTE)
    async def actions(request: Request) -> JSONResponse:
        """Ask to keep an agent's KV, to move it, or say how long its tool takes."""
        if gateway is None:
            return refusal(503, "disabled", DISABLED)
        try:
            message_id, asked = parse_envelope(decode_object(await read_body(request)))
        except MetadataError as error:
            return refusal(400, "schema", str(error))
        except ClientDisconnect:
            return refusal(400, "schema", "the client left before the body was complete. Send the actions again.")
        status, body = await ask(gateway, asked)
        return answer(status, {"message_id": message_id, **body} if status == 200 else body)

    return router


async def ask(gateway: Gateway, asked: list[Asked]) -> tuple[int, dict[str, Any]]:
    """Have the scheduler carry out those that were not refused; the outcomes of all, in order."""
    checked = [one.action for one in asked if one.action is not None]
    outcomes: list[dict[str, Any]] = []
    if checked:
        status, body = await gateway.call("actions", {"actions": checked})
        if status != 200:
            return status, body
        outcomes = body["outcomes"]
    given = iter(outcomes)
    return 200, {"outcomes": [
        {"action_id": one.action_id, "action_type": one.action_type,
         **({"outcome": "rejected", "message": one.refusal} if one.action is None else next(given))} for one in asked]}
