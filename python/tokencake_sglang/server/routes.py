"""The control API: POST /v1/tokencake/events and GET /v1/tokencake/state."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Protocol

from fastapi import APIRouter, Request
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse

from tokencake_sglang.core.errors import MetadataError
from tokencake_sglang.server.openapi import EVENTS_ROUTE, state_route
from tokencake_sglang.server.schema import MAX_EVENT_BYTES, decode_object, parse_event

PREFIX = "/v1/tokencake"
DEFAULT_AGENTS = 100
MAX_AGENTS = 10_000
DEFAULT_STALLS = 0
MAX_STALLS = 1_024
DISABLED = ("TokenCake is off on this server, so it takes no events and has no state; generation is not affected."
            " Start the server with `python -m tokencake_sglang.launch_server ... --enable-tokencake`.")


class Gateway(Protocol):
    """What the routes need of the scheduler."""

    async def call(self, op: str, payload: dict[str, Any], timeout_s: float = ...) -> tuple[int, dict[str, Any]]: ...


def error_body(code: int, reason: str, message: str) -> dict[str, Any]:
    """The shape of every refusal."""
    return {"error": {"code": code, "reason": reason, "message": message}}


def build_router(gateway: Gateway | None, reports: Mapping[str, Callable[[], Any]] = MappingProxyType({})) -> APIRouter:
    """Routes that ask `gateway`; None means TokenCake is off and every route answers 503. `reports`: what the HTTP
    process adds to the state, by name."""
    router = APIRouter(prefix=PREFIX, tags=["tokencake"])

    @router.post("/events", **EVENTS_ROUTE)
    async def events(request: Request) -> JSONResponse:
        """Tell the server that an agent waits for a tool, goes on, or has ended."""
        if gateway is None:
            return refusal(503, "disabled", DISABLED)
        try:
            event = parse_event(decode_object(await read_body(request)))
        except MetadataError as error:
            return refusal(400, "schema", str(error))
        except ClientDisconnect:
            return refusal(400, "schema", "the client left before the body was complete. Send the event again.")
        return answer(*await gateway.call("event", event))

    @router.get("/state", **state_route((DEFAULT_AGENTS, MAX_AGENTS), (DEFAULT_STALLS, MAX_STALLS)))
    async def state(request: Request) -> JSONResponse:
        """Agents, owned tokens, moves in flight, counters, ended stalls; `agents` and `stalls` limit the two lists."""
        if gateway is None:
            return refusal(503, "disabled", DISABLED)
        try:
            agents = parse_limit(request.query_params.get("agents"))
            stalls = parse_limit(request.query_params.get("stalls"), "stalls", DEFAULT_STALLS, MAX_STALLS)
        except MetadataError as error:
            return refusal(400, "schema", str(error))
        status, body = await gateway.call("state", {"agents": agents, "stalls": stalls})
        if status == 200:
            body = {**body, **{name: report() for name, report in reports.items()}}
        return answer(status, body)

    return router


def parse_limit(text: str | None, name: str = "agents", default: int = DEFAULT_AGENTS, most: int = MAX_AGENTS) -> int:
    """A query parameter that says how many of something GET state lists at most."""
    if text is None:
        return default
    fits = text.isascii() and text.isdigit() and len(text) <= 9 and int(text) <= most
    if not fits:
        raise MetadataError(f"{name} is {text[:40]!r}; allowed: a whole number from 0 to {most}. Correct it, or"
                            f" leave it out for {default}.")
    return int(text)


async def read_body(
        request: Request, most: int = MAX_EVENT_BYTES, advice: str = "Send one event per request.") -> bytes:
    """The body, refused as soon as it is known to have more than `most` bytes; `advice` says what to do then."""
    raw = bytearray()
    async for chunk in request.stream():
        raw += chunk
        if len(raw) > most:
            raise MetadataError(f"the body has more than {most} bytes, the most that is allowed. {advice}")
    return bytes(raw)


def refusal(code: int, reason: str, message: str) -> JSONResponse:
    """An answer that refuses, with a sentence."""
    return answer(code, error_body(code, reason, message))


def answer(status: int, body: dict[str, Any]) -> JSONResponse:
    """What the scheduler said; with Retry-After where the same call may succeed soon."""
    headers = {"Retry-After": "1"} if status in (429, 504) else None
    return JSONResponse(body, status_code=status, headers=headers)
