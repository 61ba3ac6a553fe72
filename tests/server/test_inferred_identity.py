"""The middleware for clients that send no `tokencake` object: what it finds, what it leaves alone, whom it ends."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace

import httpx
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.test_dialect_convert import bodies
from tokencake_sglang.server import identity
from tokencake_sglang.server.dialects import HEADER_NAMES
from tokencake_sglang.server.identity import PATHS, SCOPE_KEY, AgentIdentityMiddleware, attach_metadata
from tokencake_sglang.server.routes import error_body

CHAT, MESSAGES, RESPONSES = "/v1/chat/completions", "/v1/messages", "/v1/responses"
DYNAMO = {"x-dynamo-session-id": "s1"}
FINAL = {**DYNAMO, "x-dynamo-session-final": "true"}


class MemoryGateway:
    """Remembers what it was asked."""

    def __init__(self, status=200, fails=False):
        self.calls, self.status, self.fails = [], status, fails

    async def call(self, op, payload, timeout_s=30.0):
        self.calls.append((op, payload))
        if self.fails:
            raise OSError("the socket is closed")
        return self.status, {} if self.status == 200 else error_body(self.status, "busy", "Later.")


def build_app(infer: bool = True, gateway: MemoryGateway | None = None) -> FastAPI:
    """Answers with the raw body that the application saw, and with what a request's scope gives SGLang's request."""
    app = FastAPI()

    async def echo(request: Request):
        body = await request.body()
        internal = SimpleNamespace(agent_metadata=None)
        attach_metadata(None, internal, request)
        seen = {"body": body.decode("latin-1"), "metadata": internal.agent_metadata,
                "length": request.headers.get("content-length")}

        async def chunks():
            yield json.dumps(seen).encode()

        return StreamingResponse(chunks(), media_type="application/json")

    for path in (*PATHS, "/v1/embeddings", "/v1/messages/count_tokens"):
        app.add_api_route(path, echo, methods=["POST", "PUT"])
    app.add_middleware(AgentIdentityMiddleware, infer=infer, gateway=gateway)
    return app


def send(path: str, content: bytes, headers=None, *, infer: bool = True, gateway=None) -> httpx.Response:
    async def go():
        transport = httpx.ASGITransport(build_app(infer, gateway), raise_app_exceptions=True)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            answer = await client.post(path, content=content, headers=headers)
        await asyncio.sleep(0)
        return answer

    return asyncio.run(go())


def metadata(path: str, body: dict, headers=None, **kwargs):
    """What SGLang's request was given; the body must have passed byte for byte."""
    content = json.dumps(body, ensure_ascii=False).encode()
    answer = send(path, content, headers, **kwargs)
    assert answer.status_code == 200, answer.text
    assert answer.json()["body"].encode("latin-1") == content and answer.json()["length"] == str(len(content))
    return answer.json()["metadata"]


@pytest.mark.parametrize("path", sorted(PATHS))
@pytest.mark.parametrize(("body", "headers", "expected"), [
    ({"messages": []}, {"X-Claude-Code-Session-Id": "c", "X-Claude-Code-Agent-Id": "a"},
     {"agent_id": "c/a", "graph_id": "c", "parent_agent_id": "c", "program_id": "c"}),
    ({"text": "häßlich 智", "priority": 3, "session_id": "s"}, None, {"agent_id": "s"}),
    ({"nvext": {"agent_context": {"session_id": "n"}, "agent_hints": {"priority": 9}}}, None,
     {"agent_id": "n", "priority": "9"}),
    ({"prompt": ["x", "y"], "n": 2, "prompt_cache_key": "k"}, DYNAMO,
     {"agent_id": "s1", "app_id": "k", "program_id": "s1"}),
    ({"tokencake": None, "session_id": "s"}, None, {"agent_id": "s"}),
])
def test_the_agent_is_found_on_every_generation_route_and_the_body_stays_as_it_was(path, body, headers, expected):
    assert metadata(path, body, headers) == expected


@pytest.mark.parametrize(("body", "headers"), [
    ({"messages": []}, None), ({"prompt_cache_key": "k"}, None), ({"user": "u", "metadata": {"user_id": "u"}}, None),
    ({"messages": []}, {"x-session-token": "t", "authorization": "Bearer x"}), ({"session_id": 5}, None),
    ({"messages": []}, {"x-session-id": "undefined"}),
])
def test_a_request_that_names_no_agent_has_none(body, headers):
    assert metadata(CHAT, body, headers) is None


@pytest.mark.parametrize("path", ["/v1/embeddings", "/v1/messages/count_tokens"])
def test_routes_that_do_not_generate_are_left_alone(path):
    assert metadata(path, {"session_id": "s"}, DYNAMO) is None


def test_nothing_is_inferred_when_it_is_switched_off():
    gateway = MemoryGateway()
    assert metadata(CHAT, {"session_id": "s"}, FINAL, infer=False, gateway=gateway) is None
    assert gateway.calls == []


def test_a_native_object_wins_and_other_dialects_add_nothing_to_it():
    gateway = MemoryGateway()
    body = {"messages": [], "tokencake": {"agent_id": "own"}, "prompt_cache_key": "k"}
    answer = send(CHAT, json.dumps(body).encode(), FINAL, gateway=gateway)
    assert json.loads(answer.json()["body"]) == {
        "messages": [], "prompt_cache_key": "k", "agent_metadata": {"agent_id": "own"}}
    assert answer.json()["metadata"] is None and gateway.calls == []


@pytest.mark.parametrize("infer", [True, False])
@pytest.mark.parametrize("path", [MESSAGES, RESPONSES])
def test_a_native_object_is_carried_where_the_request_has_no_field_for_it(path, infer):
    given_ = {"agent_id": "own", "app_id": "app"}
    assert metadata(path, {"messages": [], "tokencake": given_}, infer=infer) == given_


@pytest.mark.parametrize("wrong", [{}, "a", [{"agent_id": "a"}], {"agent_id": 1}, {"agent_id": "a" * 257}])
@pytest.mark.parametrize("path", [MESSAGES, RESPONSES])
def test_a_wrong_native_object_is_a_400_there_too(path, wrong):
    answer = send(path, json.dumps({"tokencake": wrong}).encode(), DYNAMO)
    assert answer.status_code == 400 and answer.json()["error"]["reason"] == "schema"
    assert "tokencake" in answer.json()["error"]["message"]


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff\x00", b'{"session_id": ', b'{"session_id": "s"} x'])
def test_a_body_that_is_no_json_object_passes_with_what_its_headers_say(body):
    answer = send(CHAT, body, DYNAMO)
    assert answer.json()["body"].encode("latin-1") == body and answer.json()["metadata"] == {"agent_id": "s1"}


def test_a_request_without_hints_is_neither_parsed_nor_resolved(monkeypatch):
    def fail(*_):
        raise AssertionError("it was looked into")

    monkeypatch.setattr(identity, "_object", fail)
    monkeypatch.setattr(identity, "resolve", fail)
    assert metadata(CHAT, {"messages": [{"role": "user", "content": '{"session_id": "s"}'}], "user": "u"}) is None


def test_headers_alone_name_the_agent_without_parsing_the_body(monkeypatch):
    monkeypatch.setattr(identity, "_object", lambda _: pytest.fail("the body was parsed"))
    assert metadata(CHAT, {"messages": []}, DYNAMO) == {"agent_id": "s1"}


def test_the_first_of_a_repeated_header_counts():
    answer = send(CHAT, b"{}", [("x-session-id", "one"), ("x-session-id", "two")])
    assert answer.json()["metadata"] == {"agent_id": "one"}


printable = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=300)


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(sorted(PATHS)), st.dictionaries(st.sampled_from(sorted(HEADER_NAMES)), printable, max_size=5),
       bodies(), st.binary(max_size=20))
def test_whatever_clients_send_the_body_passes_unchanged_and_nothing_fails(path, headers, body, tail):
    body.pop("tokencake", None)
    content = json.dumps(body).encode("utf-8", "surrogatepass") + tail
    answer = send(path, content, headers)
    assert answer.status_code == 200 and answer.json()["body"].encode("latin-1") == content


# -- what SGLang's request is given -------------------------------------------------------------------------------


def request_with(scope: dict) -> SimpleNamespace:
    return SimpleNamespace(scope=scope)


def test_metadata_that_a_request_has_of_its_own_are_kept():
    obj = SimpleNamespace(agent_metadata={"agent_id": "own"})
    attach_metadata(None, obj, request_with({SCOPE_KEY: {"agent_id": "inferred"}}))
    assert obj.agent_metadata == {"agent_id": "own"}


@pytest.mark.parametrize("request_", [None, SimpleNamespace(), request_with({})])
def test_a_request_without_metadata_in_its_scope_is_given_none(request_):
    obj = SimpleNamespace(agent_metadata=None)
    attach_metadata(None, obj, request_)
    assert obj.agent_metadata is None


def test_an_embedding_request_which_has_no_such_field_is_left_alone():
    obj = SimpleNamespace()
    attach_metadata(None, obj, request_with({SCOPE_KEY: {"agent_id": "a"}}))
    assert vars(obj) == {}


# -- the end of an agent ------------------------------------------------------------------------------------------

ENDED = [("event", {"event": "agent_finished", "agent_id": "s1"})]


@pytest.mark.parametrize(("headers", "body"), [
    (FINAL, {"messages": []}),
    (None, {"nvext": {"session_control": {"session_id": "s1", "action": "close"}}}),
    (DYNAMO, {"nvext": {"session_control": {"action": "close"}}}),
])
def test_the_agent_is_ended_after_its_last_request(headers, body):
    gateway = MemoryGateway()
    assert metadata(CHAT, body, headers, gateway=gateway) == {"agent_id": "s1"}
    assert gateway.calls == ENDED


def test_the_program_is_ended_after_its_last_step():
    gateway = MemoryGateway()
    assert metadata(CHAT, {"vllm_xargs": {"job_id": "s1", "is_last_step": True}}, gateway=gateway) == {"agent_id": "s1"}
    assert gateway.calls == [("event", {"event": "program_finished", "agent_id": "s1"})]
    metadata(CHAT, {"vllm_xargs": {"job_id": "s1", "is_last_step": False}}, gateway=gateway)
    assert len(gateway.calls) == 1


@pytest.mark.parametrize(("headers", "body"), [
    (DYNAMO, {}), ({"x-dynamo-session-final": "true"}, {}), ({**DYNAMO, "x-dynamo-session-final": "maybe"}, {}),
    ({"x-session-id": "s1"}, {"vllm_xargs": {"is_last_step": False}})])
def test_an_agent_without_that_word_or_a_word_without_an_agent_ends_nothing(headers, body):
    gateway = MemoryGateway()
    send(CHAT, json.dumps(body).encode(), headers, gateway=gateway)
    assert gateway.calls == []


@pytest.mark.parametrize("gateway", [MemoryGateway(status=429), MemoryGateway(status=504), MemoryGateway(fails=True)])
def test_an_end_that_fails_is_logged_and_disturbs_no_answer(gateway, caplog):
    metadata(CHAT, {"messages": []}, FINAL, gateway=gateway)
    assert gateway.calls == ENDED and "could not be ended" in caplog.text


def run(app, gateway, incoming, sent):
    """One request with FINAL headers to a bare ASGI application, and a moment for what comes after it."""
    scope = {"type": "http", "method": "POST", "path": CHAT,
             "headers": [(name.encode(), value.encode()) for name, value in FINAL.items()]}

    async def receive():
        return incoming.pop(0)

    async def send_(message):
        sent.append((message["type"], len(gateway.calls)))

    async def go():
        try:
            await AgentIdentityMiddleware(app, infer=True, gateway=gateway)(scope, receive, send_)
        finally:
            await asyncio.sleep(0)

    asyncio.run(go())


BODY = {"type": "http.request", "body": b"{}", "more_body": False}


def test_the_agent_is_ended_only_when_the_whole_answer_is_out():
    gateway, sent = MemoryGateway(), []

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for more in (True, True, False):
            await asyncio.sleep(0)
            await send({"type": "http.response.body", "body": b"x", "more_body": more})

    run(app, gateway, [BODY], sent)
    assert [calls for _, calls in sent] == [0, 0, 0, 0] and gateway.calls == ENDED


def test_the_agent_is_ended_when_its_client_leaves_or_its_request_fails():
    async def left(scope, receive, send):
        while (await receive())["type"] != "http.disconnect":
            pass

    async def failed(scope, receive, send):
        raise ValueError("the request is disconnected")

    gateway = MemoryGateway()
    run(left, gateway, [BODY, {"type": "http.disconnect"}], [])
    assert gateway.calls == ENDED
    gateway = MemoryGateway()
    with pytest.raises(ValueError):
        run(failed, gateway, [BODY], [])
    assert gateway.calls == ENDED
