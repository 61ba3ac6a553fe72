"""The control routes over a gateway that keeps events in memory, and the words of a 401."""

from __future__ import annotations

import asyncio
import json

import httpx
import pytest
from fastapi import FastAPI

from tokencake_sglang.server.auth import UnauthorizedSentence
from tokencake_sglang.server.routes import build_router, error_body, parse_limit
from tokencake_sglang.server.schema import MAX_EVENT_BYTES

EVENTS, STATE = "/v1/tokencake/events", "/v1/tokencake/state"
STALL = {"event": "stall_started", "agent_id": "a"}


class MemoryGateway:
    """Remembers what it was asked; answers with what it was told to answer."""

    def __init__(self, status=200, body=None):
        self.calls = []
        self.answer = (status, body or {"status": "applied", "message": "The stall of agent a is noted."})

    async def call(self, op, payload, timeout_s=30.0):
        self.calls.append((op, payload))
        return self.answer


def ask(gateway, method, url, *, middleware=None, **kwargs) -> httpx.Response:
    app = FastAPI()
    app.include_router(build_router(gateway))
    for each in middleware or []:
        app.add_middleware(each)

    async def go():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            return await client.request(method, url, **kwargs)

    return asyncio.run(go())


def test_a_good_event_reaches_the_scheduler_normalised_and_its_answer_comes_back():
    gateway = MemoryGateway()
    answer = ask(gateway, "POST", EVENTS, json=STALL)
    assert (answer.status_code, answer.json()["status"]) == (200, "applied")
    assert gateway.calls == [("event", {"event": "stall_started", "agent_id": "a", "kind": "tool"})]


def test_the_content_type_does_not_matter():
    answer = ask(MemoryGateway(), "POST", EVENTS, content=json.dumps(STALL), headers={"content-type": "text/plain"})
    assert answer.status_code == 200


@pytest.mark.parametrize("body", [
    b"", b"{", b"[]", b"null", b"\xff", b'{"event": "stall_started"}', b'{"event":"x","agent_id":"a"}', b"[" * 60000,
    b'{"event":"stall_started","agent_id":"a","estimated_duration_s":-1}',
    b'{"event":"stall_started","agent_id":"a","estimated_duration_s":NaN}',
    b'{"event":"stall_started","agent_id":{"a":{"b":1}}}',
    json.dumps({**STALL, "agent_id": "a" * 300}).encode(), b" " * (MAX_EVENT_BYTES + 1), b"x" * 5_000_000,
], ids=lambda body: f"{body[:20]!r}-{len(body)}")
def test_a_bad_event_is_a_400_with_a_sentence_and_never_reaches_the_scheduler(body):
    gateway = MemoryGateway()
    answer = ask(gateway, "POST", EVENTS, content=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["reason"]) == (400, 400, "schema")
    assert error["message"].endswith(".") and gateway.calls == []


@pytest.mark.parametrize(("status", "reason"), [
    (404, "unknown_agent"), (409, "conflict"), (429, "busy"), (504, "timeout")])
def test_a_refusal_of_the_scheduler_is_handed_on(status, reason):
    gateway = MemoryGateway(status, error_body(status, reason, "It cannot be done."))
    answer = ask(gateway, "POST", EVENTS, json=STALL)
    assert (answer.status_code, answer.json()["error"]["reason"]) == (status, reason)
    assert ("retry-after" in answer.headers) == (status in (429, 504))


def test_state_asks_for_a_hundred_agents_unless_told():
    gateway = MemoryGateway(200, {"enabled": True})
    assert ask(gateway, "GET", STATE).json() == {"enabled": True}
    ask(gateway, "GET", STATE + "?agents=0")
    ask(gateway, "GET", STATE + "?stalls=1024&agents=1")
    assert gateway.calls == [
        ("state", {"agents": 100, "stalls": 0}), ("state", {"agents": 0, "stalls": 0}),
        ("state", {"agents": 1, "stalls": 1024})]


@pytest.mark.parametrize("text", ["-1", "1025", "1e3", "", "x", "٣", "9" * 5000, "1.0"])
def test_a_wrong_number_of_stalls_is_a_400(text):
    answer = ask(MemoryGateway(), "GET", STATE, params={"stalls": text})
    message = answer.json()["error"]["message"]
    assert answer.status_code == 400 and message.startswith("stalls is ") and "0 to 1024" in message


@pytest.mark.parametrize("text", ["-1", "10001", "1e3", "", "x", "٣", "9" * 5000, "1.0"])
def test_a_wrong_number_of_agents_is_a_400(text):
    answer = ask(MemoryGateway(), "GET", STATE, params={"agents": text})
    assert answer.status_code == 400 and "0 to 10000" in answer.json()["error"]["message"]


def test_the_largest_number_of_agents_is_allowed():
    assert parse_limit("10000") == 10_000


@pytest.mark.parametrize(("method", "url"), [("POST", EVENTS), ("GET", STATE)])
def test_a_server_without_tokencake_answers_503_and_says_how_to_enable_it(method, url):
    answer = ask(None, method, url, content=b"{")
    error = answer.json()["error"]
    assert (answer.status_code, error["reason"]) == (503, "disabled") and "--enable-tokencake" in error["message"]


class RefuseAll:
    """Answers as SGLang's api-key check does for a wrong key."""

    def __init__(self, app):
        pass

    async def __call__(self, scope, receive, send):
        await send({"type": "http.response.start", "status": 401, "headers": [(b"content-length", b"24")]})
        await send({"type": "http.response.body", "body": b'{"error":"Unauthorized"}'})


def test_a_missing_key_is_a_401_with_a_sentence_on_our_routes_only():
    layers = [RefuseAll, UnauthorizedSentence]
    ours = ask(MemoryGateway(), "POST", EVENTS, middleware=layers, json=STALL)
    assert ours.status_code == 401 and ours.json()["error"]["reason"] == "unauthorized"
    assert "Bearer" in ours.json()["error"]["message"] and ours.headers["www-authenticate"] == "Bearer"
    other = ask(MemoryGateway(), "POST", "/generate", middleware=layers)
    assert (other.status_code, other.text) == (401, '{"error":"Unauthorized"}')
