"""Anything at all in the fields and headers that are read, before SGLang's own request models and a real controller."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
from typing import Any

import httpx
import msgspec
import pytest
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sglang.srt.entrypoints.anthropic.protocol import AnthropicMessagesRequest
from sglang.srt.entrypoints.openai.protocol import ChatCompletionRequest, CompletionRequest, ResponsesRequest
from sglang.srt.managers.io_struct import GenerateReqInput

from tests.server.test_client import Scheduler
from tests.support.odd_clients import BODIES, encoded, fields, headers
from tokencake_sglang.core.hints import RequestHints
from tokencake_sglang.core.types import CALLS_JOINED_BY, ENDS_CALLS, AgentIdentity
from tokencake_sglang.server.identity import FIELD, SCOPE_KEY, AgentIdentityMiddleware
from tokencake_sglang.server.turns import StallInference

MODELS = {"/generate": GenerateReqInput, "/v1/completions": CompletionRequest,
          "/v1/chat/completions": ChatCompletionRequest, "/v1/messages": AnthropicMessagesRequest,
          "/v1/responses": ResponsesRequest}
MADE_UP = (FIELD, "request_id", "created_at")  # what differs from one parse to the next, and what is ours
ANSWER = {"choices": [{"index": 0, "finish_reason": "tool_calls", "message": {"role": "assistant", "tool_calls": [
    {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": "{}"}}]}}]}


class Server:
    """SGLang's request models on its routes; with a scheduler also the middleware, and agents that it serves."""

    def __init__(self, scheduler: Scheduler | None = None) -> None:
        self.parsed: list[str] = []
        self.scheduler = scheduler
        self.rids = itertools.count()
        self.app = FastAPI()
        for path, model in MODELS.items():
            self.app.add_api_route(path, self._route(model), methods=["POST"])
        self.app.add_exception_handler(RequestValidationError, lambda *_: JSONResponse({}, status_code=400))
        if scheduler is not None:
            self.app.add_middleware(
                AgentIdentityMiddleware, infer=True, gateway=scheduler, stalls=StallInference(scheduler))

    def _route(self, model: type) -> Any:
        async def route(obj, request):
            values = dataclasses.asdict(obj) if dataclasses.is_dataclass(obj) else obj.model_dump()
            metadata = request.scope.get(SCOPE_KEY) or values.get(FIELD)
            self.parsed.append(repr({name: value for name, value in values.items() if name not in MADE_UP}))
            if self.scheduler is not None and metadata is not None:
                for one in metadata if isinstance(metadata, list) else [metadata]:
                    self.serve(one)
            return JSONResponse(ANSWER)

        route.__annotations__ = {"obj": model, "request": Request}
        return route

    def serve(self, metadata: dict[str, str]) -> None:
        """What becomes of a request's metadata on its way to the controller, and there."""
        arrived = msgspec.msgpack.decode(msgspec.msgpack.encode(metadata), type=dict[str, str])
        identity = AgentIdentity.from_metadata(arrived)
        assert identity is not None and identity.program
        ends, rid = arrived.get(ENDS_CALLS), f"fuzz-{next(self.rids)}"
        controller = self.scheduler.controller
        controller.request_added(identity, rid, None if ends is None else ends.split(CALLS_JOINED_BY),
                                 hints=RequestHints.from_metadata(arrived))
        controller.request_ended(identity.key, rid)
        self.scheduler.at(controller.now + 0.1)

    def post(self, path: str, body: bytes, sent: dict[str, str]) -> httpx.Response:
        async def go() -> httpx.Response:
            transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                raw = [(name.encode(), value.strip().encode("latin-1")) for name, value in sent.items()]
                answer = await client.post(path, content=body, headers=[*raw, (b"content-type", b"application/json")])
            for _ in range(3):
                await asyncio.sleep(0)
            return answer

        return asyncio.run(go())


PLAIN = Server()


@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(st.sampled_from(sorted(BODIES)), st.lists(st.tuples(fields(), headers), min_size=1, max_size=3))
def test_sglang_reads_what_it_would_have_read_and_no_request_is_an_error_of_ours(path, requests):
    server = Server(Scheduler())
    for added, sent in requests:
        body = encoded({**BODIES[path], **added})
        if body is None:
            continue
        PLAIN.parsed.clear()
        server.parsed.clear()
        plain, ours = PLAIN.post(path, body, sent), server.post(path, body, sent)
        refused = ours.status_code == 400 and "error" in ours.json()
        if refused and added.get("tokencake") is not None:
            assert ours.json()["error"]["message"].endswith(".") and server.parsed == []
            continue
        assert ours.status_code == plain.status_code and server.parsed == PLAIN.parsed
    assert server.scheduler.stalls_add_up() and server.scheduler.moves_add_up()


@pytest.mark.parametrize("path", sorted(BODIES))
@pytest.mark.parametrize("body", [
    b'{"nvext":' * 50_000, b'{"kv_hints": {"actions": ' + b"[" * 50_000, b'{"session_id": "\xff"}',
    b'{"session_id": "s", "session_id": {"a": 1}}', b'{"tokencake": {"agent_id": "a"', b'"kv_hints"', b"\x00" * 1000,
    b'{"kv_hints": {"actions": [' + b'{"action_type":"kv.demote"},' * 20_000 + b"{}]}}"],
    ids=lambda body: f"{body[:24]!r}-{len(body)}")
def test_what_is_no_json_or_far_too_deep_is_left_to_sglang(path, body):
    PLAIN.parsed.clear()
    server = Server(Scheduler())
    assert server.post(path, body, {"x-session-id": "s"}).status_code == PLAIN.post(path, body, {}).status_code
    assert server.parsed == PLAIN.parsed
