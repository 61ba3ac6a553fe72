"""Agent metadata on a request: checks the object `tokencake` and hands it to SGLang as the field `agent_metadata`.

A pure ASGI middleware, so that streaming answers and client disconnects pass as without it. A body without the key
reaches SGLang byte for byte, in the chunks in which it came; so does a body that is not JSON (SGLang answers it).
"""

from __future__ import annotations

import json
from typing import Any

import orjson

from tokencake_sglang.core.errors import MetadataError
from tokencake_sglang.server.routes import error_body
from tokencake_sglang.server.schema import parse_request_metadata

KEY = "tokencake"
FIELD = "agent_metadata"
NATIVE_PATH = "/generate"
OPENAI_PATHS = ("/v1/chat/completions", "/v1/completions", "/invocations")
PATHS = frozenset((NATIVE_PATH, *OPENAI_PATHS))
_NEEDLE = b'"' + KEY.encode() + b'"'


class AgentIdentityMiddleware:
    """Replaces `tokencake` by the validated `agent_metadata` in the body of a generation request, or answers 400."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["method"] not in ("POST", "PUT") or _path(scope) not in PATHS:
            await self.app(scope, receive, send)
            return
        messages, body = await _read(receive)
        if body is None or _NEEDLE not in body:
            await self.app(scope, _replay(messages, receive), send)
            return
        try:
            changed = rewrite_body(body, native=_path(scope) == NATIVE_PATH)
        except MetadataError as error:
            await _refuse(send, str(error))
            return
        if changed is None:
            await self.app(scope, _replay(messages, receive), send)
            return
        message = {"type": "http.request", "body": changed, "more_body": False}
        await self.app(_with_length(scope, len(changed)), _replay([message], receive), send)


def rewrite_body(body: bytes, native: bool) -> bytes | None:
    """The body with `tokencake` replaced, or None when it is not a JSON object with that key (not null) at its top.

    Parsed by orjson, as SGLang does, so that what SGLang reads afterwards is what it would have read before.
    """
    try:
        values = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(values, dict) or values.get(KEY) is None:
        return None
    metadata = values.pop(KEY)
    if values.get(FIELD) is not None:
        raise MetadataError(f"the request has both {KEY} and {FIELD}; allowed: one of them. Remove {FIELD}.")
    if isinstance(metadata, list) and not native:
        raise MetadataError(f"{KEY} is a list of {len(metadata)}; allowed on the OpenAI routes: one object for all"
                            f" prompts. Send one object, or use {NATIVE_PATH} for one object per prompt.")
    prompts, samples = _native_size(values) if native else _openai_size(values)
    values[FIELD] = parse_request_metadata(metadata, prompts, samples)
    return _dumps(values)


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
