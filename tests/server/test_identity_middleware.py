"""The metadata middleware in front of a real FastAPI application and of a bare ASGI one."""

from __future__ import annotations

import asyncio
import json

import httpx
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse
from hypothesis import given, settings
from hypothesis import strategies as st

from tokencake_sglang.server.identity import AgentIdentityMiddleware

CHAT = "/v1/chat/completions"


def build_app() -> FastAPI:
    """Answers with the raw body and the length header that the application saw."""
    app = FastAPI()

    async def echo(request: Request):
        body = await request.body()

        async def chunks():
            yield json.dumps({"length": request.headers.get("content-length"), "body": body.decode("latin-1")}).encode()

        return StreamingResponse(chunks(), media_type="application/json")

    for path in ("/generate", CHAT, "/v1/completions", "/invocations", "/v1/embeddings"):
        app.add_api_route(path, echo, methods=["POST", "PUT"])
    app.add_middleware(AgentIdentityMiddleware)
    return app


def send(path: str, content, method: str = "POST") -> httpx.Response:
    async def go():
        transport = httpx.ASGITransport(build_app(), raise_app_exceptions=True)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.request(method, path, content=content)

    return asyncio.run(go())


def seen(path: str, content, method: str = "POST") -> bytes:
    answer = send(path, content, method)
    assert answer.status_code == 200, answer.text
    value = answer.json()
    body = value["body"].encode("latin-1")
    if value["length"] is not None:
        assert int(value["length"]) == len(body)
    return body


UNTOUCHED = [
    b"", b"{", b'{"text": "x", "a":  1.50 }', b"[]", b'"tokencake"', b'["tokencake"]',
    b'{"text": "the \\"tokencake\\" word"}',
    b'{"text": {"tokencake": {"agent_id": "a"}}}', b'{"tokencake": null, "text": "x"}',
    b'{"tokencake": {"agent_id": 1}',
    b'{"x": NaN, "tokencake": {"agent_id": 1}}', b"\xff\x00", b'{"agent_metadata": {"agent_id": "a"}, "text":"x"}',
]


@pytest.mark.parametrize("path", ["/generate", CHAT, "/v1/completions", "/invocations"])
@pytest.mark.parametrize("body", UNTOUCHED)
def test_a_body_without_metadata_reaches_the_application_byte_for_byte(path, body):
    assert seen(path, body) == body


def test_other_routes_are_not_read_at_all():
    body = b'{"tokencake": {"agent_id": 1}}'
    assert seen("/v1/embeddings", body) == body


@settings(deadline=None)
@given(st.binary(max_size=60).map(lambda tail: b'{"text": "tok", "tokencake' + tail))
def test_arbitrary_bytes_give_the_same_bytes_or_a_400(body):
    answer = send("/generate", body)
    if answer.status_code == 200:
        assert answer.json()["body"].encode("latin-1") == body
    else:
        assert answer.status_code == 400 and answer.json()["error"]["message"]


@pytest.mark.parametrize("method", ["POST", "PUT"])
def test_metadata_is_renamed_and_everything_else_keeps_its_value(method):
    sent = {"text": "häßlich 智", "sampling_params": {"temperature": 0.1, "n": 2}, "input_ids": [2**60], "tokencake": {
        "agent_id": "a1", "app_id": "deep"}}
    got = json.loads(seen("/generate", json.dumps(sent).encode(), method))
    metadata = sent.pop("tokencake")
    assert got == {**sent, "agent_metadata": metadata}


def test_a_chunked_body_is_put_together_and_gets_a_length():
    async def chunks():
        for piece in (b'{"messages": [], "tok', b'encake": {"lifecycle', b'_id": "l1"}}'):
            yield piece

    assert json.loads(seen(CHAT, chunks())) == {"messages": [], "agent_metadata": {"lifecycle_id": "l1"}}


def test_a_deeply_nested_schema_beside_the_metadata_survives():
    schema = "1"
    for _ in range(600):
        schema = '{"a":' + schema + "}"
    body = f'{{"tokencake": {{"agent_id": "a"}}, "s": {schema}}}'.encode()
    assert json.loads(seen(CHAT, body))["agent_metadata"] == {"agent_id": "a"}


@pytest.mark.parametrize(("path", "body"), [
    ("/generate", {"text": "x", "tokencake": "a"}),
    ("/generate", {"text": "x", "tokencake": {}}),
    ("/generate", {"text": "x", "tokencake": {"agent_id": {"nested": "a"}}}),
    ("/generate", {"text": "x", "tokencake": {"agent_id": "a" * 257}}),
    ("/generate", {"text": "x", "tokencake": [{"agent_id": "a"}]}),
    ("/generate", {"text": ["x", "y"], "tokencake": [{"agent_id": "a"}]}),
    ("/generate", {"text": ["x", "y"], "tokencake": {"lifecycle_id": "l"}}),
    ("/generate", {"input_ids": [[1], [2]], "tokencake": {"lifecycle_id": "l"}}),
    ("/generate", {"text": "x", "sampling_params": {"n": 2}, "tokencake": {"lifecycle_id": "l"}}),
    ("/generate", {"text": "x", "tokencake": {"agent_id": "a"}, "agent_metadata": {"agent_id": "b"}}),
    (CHAT, {"messages": [], "n": 2, "tokencake": {"lifecycle_id": "l"}}),
    ("/v1/completions", {"prompt": ["x", "y"], "tokencake": {"lifecycle_id": "l"}}),
    ("/v1/completions", {"prompt": ["x", "y"], "tokencake": [{"agent_id": "a"}, {"agent_id": "b"}]}),
])
def test_wrong_metadata_is_a_400_with_a_sentence(path, body):
    answer = send(path, json.dumps(body).encode())
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["reason"]) == (400, 400, "schema")
    assert "tokencake" in error["message"] and error["message"].endswith(".")


@pytest.mark.parametrize(("path", "body", "metadata"), [
    ("/generate", {"text": ["x", "y"]}, {"agent_id": "a"}),
    ("/generate", {"text": ["x", "y"]}, [{"agent_id": "a"}, {"lifecycle_id": "l"}]),
    ("/generate", {"input_embeds": [[[0.5]], [[0.5]]]}, [{"agent_id": "a"}, {"agent_id": "b"}]),
    ("/generate", {"input_embeds": [[0.5]]}, {"lifecycle_id": "l"}),
    ("/generate", {"text": "x", "sampling_params": {"n": "two"}}, {"lifecycle_id": "l"}),
    ("/v1/completions", {"prompt": [1, 2]}, {"lifecycle_id": "l"}),
    ("/v1/completions", {"prompt": [[1], [2]]}, {"agent_id": "a"}),
])
def test_batches_carry_one_object_for_all_or_one_per_prompt(path, body, metadata):
    got = json.loads(seen(path, json.dumps({**body, "tokencake": metadata}).encode()))
    assert got == {**body, "agent_metadata": metadata}


@pytest.mark.parametrize("body", [b'{"text": "x"}', b'{"text": "x", "tokencake": {"agent_id": "a"}}'])
def test_a_disconnect_after_the_body_is_still_seen_by_the_application(body):
    received = []

    async def app(scope, receive, send):
        for _ in range(2):
            received.append(await receive())

    incoming = [{"type": "http.request", "body": body, "more_body": False}, {"type": "http.disconnect"}]

    async def receive():
        return incoming.pop(0)

    scope = {"type": "http", "method": "POST", "path": "/generate", "headers": []}
    asyncio.run(AgentIdentityMiddleware(app)(scope, receive, None))
    assert [message["type"] for message in received] == ["http.request", "http.disconnect"]


def test_a_disconnect_within_the_body_reaches_the_application_as_it_came():
    received = []

    async def app(scope, receive, send):
        for _ in range(2):
            received.append(await receive())

    incoming = [{"type": "http.request", "body": b'{"tokencake"', "more_body": True}, {"type": "http.disconnect"}]
    expected = list(incoming)

    async def receive():
        return incoming.pop(0)

    scope = {"type": "http", "method": "POST", "path": CHAT, "headers": []}
    asyncio.run(AgentIdentityMiddleware(app)(scope, receive, None))
    assert received == expected
