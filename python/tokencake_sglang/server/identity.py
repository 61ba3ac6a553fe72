"""Agent metadata on a request: the object `tokencake`, or else what the client's own stack says of its agent.

A pure ASGI middleware, so that streaming answers and client disconnects pass as without it. The object is checked and
becomes the field `agent_metadata` of the body; on routes whose request has no such field, and for an agent that was
inferred, the body reaches SGLang byte for byte and the metadata travels in the ASGI scope, from which a hook takes it.
So does every body without the object, in the chunks in which it came, and one that is not JSON (SGLang answers it).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import orjson

from tokencake_sglang.core.errors import MetadataError
from tokencake_sglang.core.types import TENANT
from tokencake_sglang.server.dialects import resolve
from tokencake_sglang.server.hints import Hints, HintSender, find_hints
from tokencake_sglang.server.infer import AgentEnds, header_hints, may_speak
from tokencake_sglang.server.routes import Gateway, error_body
from tokencake_sglang.server.schema import parse_metadata, parse_request_metadata
from tokencake_sglang.server.tenants import tenant_of
from tokencake_sglang.server.turns import ROUTES as TURN_PATHS
from tokencake_sglang.server.turns import Exchange, StallInference, offers_tools

KEY = "tokencake"
FIELD = "agent_metadata"
SCOPE_KEY = "tokencake.agent_metadata"
SCOPE_TENANT = "tokencake.tenant"
NATIVE_PATH = "/generate"
OPENAI_PATHS = ("/v1/chat/completions", "/v1/completions", "/invocations")
FIELDLESS_PATHS = ("/v1/responses", "/v1/messages")
PATHS = frozenset((NATIVE_PATH, *OPENAI_PATHS, *FIELDLESS_PATHS))
_NEEDLE = b'"' + KEY.encode() + b'"'


@dataclass(frozen=True)
class Carried:
    """What goes with a request: a body in place of its own, metadata in the scope, the agent that ends with it, and the
    exchange in which stalls are inferred."""

    body: bytes | None = None
    metadata: dict[str, str] | None = None
    ends: str | None = None
    exchange: Exchange | None = None
    ends_program: bool = False  # and with it all of its program


class AgentIdentityMiddleware:
    """Gives generation requests their agent's metadata; a wrong `tokencake` object is answered with a 400.

    `infer`: look for other stacks' identity where there is no such object. `gateway`: by which an agent is ended whose
    client says so in a dialect; None: it is not. `stalls`: infer them from answers, and agents from conversations.
    `tenant_header`: by which tenants are told apart; "": they are not.
    """

    def __init__(self, app: Any, infer: bool = False, gateway: Gateway | None = None,
                 stalls: StallInference | None = None, tenant_header: str = "") -> None:
        self.app = app
        self.tenant_header = tenant_header
        self.infer = infer
        self.ends = None if gateway is None else AgentEnds(gateway)
        self.stalls = stalls
        self.hints = None if gateway is None or not infer else HintSender(gateway)

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["method"] not in ("POST", "PUT") or _path(scope) not in PATHS:
            await self.app(scope, receive, send)
            return
        messages, body = await _read(receive)
        if body is None:
            await self.app(scope, _replay(messages, receive), send)
            return
        try:
            carried = self._carried(_path(scope), scope["headers"], body)
        except MetadataError as error:
            await _refuse(send, str(error))
            return
        if carried.body is not None:
            scope = _with_length(scope, len(carried.body))
            messages = [{"type": "http.request", "body": carried.body, "more_body": False}]
        if carried.metadata is not None:
            scope = {**scope, SCOPE_KEY: carried.metadata}
        if self.tenant_header:
            scope = {**scope, SCOPE_TENANT: tenant_of(scope["headers"], self.tenant_header) or ""}
        hints = Hints()
        try:
            if self.hints is not None:
                hints = find_hints(body, carried.metadata)
                self.hints.send(hints.at_once)
            if carried.exchange is not None:
                await carried.exchange.begin()
                send = carried.exchange.watch(send)
            await self.app(scope, _replay(messages, receive), send)
        finally:
            if carried.exchange is not None:
                carried.exchange.end()
            if self.hints is not None:
                self.hints.send(hints.afterwards)
            if carried.ends is not None and self.ends is not None:
                self.ends.end(carried.ends, carried.ends_program)

    def _carried(self, path: str, headers: list[tuple[bytes, bytes]], body: bytes) -> Carried:
        hints = header_hints(headers) if self.infer else {}
        turns = self.stalls is not None and path in TURN_PATHS
        speaks = may_speak(body) if self.infer else _NEEDLE in body
        values = _object(body) if speaks or (turns and (hints or offers_tools(body))) else {}
        if values.get(KEY) is not None:
            return self._told(path, values, turns)
        if not self.infer or not (hints or values):
            return Carried()
        resolved = resolve(path, hints, values)
        metadata, exchange = resolved.metadata(), None
        final = resolved.final or resolved.last_step
        if turns and (metadata is not None or offers_tools(body)):
            exchange = self.stalls.begin(path, values, resolved.agent_id, estimate_s=resolved.expected_tool_s,
                                         final=final)
            metadata = {**resolved.of_conversation(exchange.agent_id).metadata(), **exchange.metadata}
        return Carried(metadata=metadata, ends=resolved.agent_id if final else None, ends_program=resolved.last_step,
                       exchange=exchange)

    def _told(self, path: str, values: dict[str, Any], turns: bool) -> Carried:
        """The client names its agent in our words; it may report its tool calls, or not."""
        metadata = values.pop(KEY)
        if path in FIELDLESS_PATHS:
            _refuse_list(metadata)
            parsed = parse_metadata(metadata)
        else:
            parsed = _checked(values, metadata, native=path == NATIVE_PATH)
        exchange = None
        if turns and parsed.get("agent_id") is not None:
            exchange = self.stalls.begin(path, values, parsed["agent_id"], people=False)
            parsed = {**parsed, **exchange.metadata}
        if path in FIELDLESS_PATHS:
            return Carried(metadata=parsed, exchange=exchange)
        try:
            return Carried(body=_dumps({**values, FIELD: parsed}), exchange=exchange)
        except MetadataError:
            if exchange is not None:
                exchange.end()
            raise


def attach_metadata(_manager: Any, obj: Any, request: Any = None, *_args: Any, **_kwargs: Any) -> None:
    """Before SGLang's TokenizerManager.generate_request: what the middleware put into the request's scope goes to its
    internal request, unless that has metadata of its own. `obj` is a GenerateReqInput (or an embedding request)."""
    scope = getattr(request, "scope", {})
    metadata, tenant = scope.get(SCOPE_KEY), scope.get(SCOPE_TENANT)
    if metadata is not None and getattr(obj, FIELD, metadata) is None:
        setattr(obj, FIELD, metadata)
    if tenant is not None and hasattr(obj, FIELD):  # whatever the client itself says of tenants
        given = getattr(obj, FIELD)
        named = {TENANT: tenant}
        one_each = isinstance(given, list)
        setattr(obj, FIELD, [{**(one or {}), **named} for one in given] if one_each else {**(given or {}), **named})


def _object(body: bytes) -> dict[str, Any]:
    """The JSON object in the body, empty if there is none.

    Parsed by orjson, as SGLang does, so that what SGLang reads afterwards is what it would have read before.
    """
    try:
        values = orjson.loads(body)
    except orjson.JSONDecodeError:
        return {}
    return values if isinstance(values, dict) else {}


def _checked(values: dict[str, Any], metadata: Any, native: bool) -> Any:
    """The metadata for the field `agent_metadata`; MetadataError if it is wrong. `values`: the rest of the body."""
    if values.get(FIELD) is not None:
        raise MetadataError(f"the request has both {KEY} and {FIELD}; allowed: one of them. Remove {FIELD}.")
    if not native:
        _refuse_list(metadata)
    prompts, samples = _native_size(values) if native else _openai_size(values)
    return parse_request_metadata(metadata, prompts, samples)


def _refuse_list(metadata: Any) -> None:
    if isinstance(metadata, list):
        raise MetadataError(f"{KEY} is a list of {len(metadata)}; allowed on this route: one object for all"
                            f" prompts. Send one object, or use {NATIVE_PATH} for one object per prompt.")


def _dumps(values: dict[str, Any]) -> bytes:
    """JSON text; orjson reads deeper nesting (1024) than it writes (254), so the standard library writes the rest."""
    try:
        return orjson.dumps(values)
    except orjson.JSONEncodeError:
        try:
            return json.dumps(values).encode()
        except (RecursionError, ValueError):
            raise MetadataError("the request is nested too deeply to carry agent metadata; allowed: about 900 levels."
                                f" Send it without {KEY}, or flatter.") from None


def _native_size(values: dict[str, Any]) -> tuple[int | None, int]:
    """(prompts in the batch or None for a single prompt, answers per prompt) of a /generate body."""
    text, ids, embeds = values.get("text"), values.get("input_ids"), values.get("input_embeds")
    if text is not None:
        prompts = len(text) if isinstance(text, list) else None
    elif isinstance(ids, list) and ids and isinstance(ids[0], list):
        prompts = len(ids)
    elif isinstance(embeds, list) and embeds and isinstance(embeds[0], list) and embeds[0]:
        prompts = len(embeds) if isinstance(embeds[0][0], list) else None
    else:
        prompts = None
    params = values.get("sampling_params")
    if isinstance(params, list):
        params = params[0] if params else None
    return prompts, _count(params.get("n") if isinstance(params, dict) else None)


def _openai_size(values: dict[str, Any]) -> tuple[int | None, int]:
    """The same of an OpenAI body; `prompt` may be a string, token ids, or a list of either."""
    prompt = values.get("prompt")
    batch = isinstance(prompt, list) and bool(prompt) and isinstance(prompt[0], (str, list))
    return (len(prompt) if batch else None), _count(values.get("n"))


def _count(value: Any) -> int:
    """`n` if it is a number; anything else is left to SGLang, which refuses it in its own words."""
    return value if isinstance(value, int) else 1


def _path(scope: dict[str, Any]) -> str:
    root = scope.get("root_path", "")
    path = scope["path"]
    return path[len(root):] if root and path.startswith(root + "/") else path


async def _read(receive: Any) -> tuple[list[dict[str, Any]], bytes | None]:
    """All body messages and the body; None when the client left before it was complete."""
    messages = []
    while True:
        message = await receive()
        messages.append(message)
        if message["type"] != "http.request":
            return messages, None
        if not message.get("more_body", False):
            return messages, b"".join(m.get("body", b"") for m in messages)


def _replay(messages: list[dict[str, Any]], receive: Any) -> Any:
    """A receive that gives `messages` first and then whatever comes, so that a later disconnect is seen."""
    queue = list(reversed(messages))

    async def replayed() -> dict[str, Any]:
        return queue.pop() if queue else await receive()

    return replayed


def _with_length(scope: dict[str, Any], length: int) -> dict[str, Any]:
    dropped = (b"content-length", b"transfer-encoding")
    headers = [(name, value) for name, value in scope["headers"] if name.lower() not in dropped]
    return {**scope, "headers": [*headers, (b"content-length", str(length).encode())]}


async def _refuse(send: Any, message: str) -> None:
    body = json.dumps(error_body(400, "schema", message)).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 400, "headers": headers})
    await send({"type": "http.response.body", "body": body})
