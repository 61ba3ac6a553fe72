"""The middleware with inference: whose a request is, what the scheduler is told, and that bytes pass unchanged."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse

from tests.server.test_inferred_identity import MemoryGateway
from tests.unit.test_turns import ANSWERS, UNIQUE, chat_call, chat_result
from tokencake_sglang.core.types import ENDS_CALLS
from tokencake_sglang.server.identity import FIELD, SCOPE_KEY, AgentIdentityMiddleware
from tokencake_sglang.server.turns import ROUTES, StallInference
from tokencake_sglang.server.turns.request import read_turn

CHAT, MESSAGES, RESPONSES = ROUTES
TOOLS = [{"type": "function", "function": {"name": "look"}}]
USER = {"role": "user", "content": "Which city?"}
SESSION = {"x-session-id": "s1"}


class Server:
    """Answers what the test says; remembers the metadata that came with each request."""

    def __init__(self, stalls: bool = True, infer: bool = True) -> None:
        self.gateway = MemoryGateway()
        self.answers: list[Any] = []
        self.seen: list[dict[str, str] | None] = []
        app = FastAPI()

        async def generate(request: Request):
            body = json.loads(await request.body())
            self.seen.append(body.get(FIELD) or request.scope.get(SCOPE_KEY))
            answer = self.answers.pop(0)
            if isinstance(answer, tuple):
                return JSONResponse(answer[1], status_code=answer[0])
            if isinstance(answer, list):
                async def chunks():
                    for chunk in answer:
                        yield chunk
                return StreamingResponse(chunks(), media_type="text/event-stream")
            return JSONResponse(answer)

        for path in (*ROUTES, "/v1/completions", "/generate"):
            app.add_api_route(path, generate, methods=["POST"])
        inference = StallInference(self.gateway) if stalls else None
        app.add_middleware(AgentIdentityMiddleware, infer=infer, gateway=self.gateway, stalls=inference)
        self.app = app

    def post(self, path: str, body: dict[str, Any], answer: Any, headers: dict[str, str] | None = None) -> bytes:
        async def go() -> bytes:
            transport = httpx.ASGITransport(app=self.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
                response = await client.post(path, json=body, headers=headers)
                await asyncio.sleep(0)
                return response.content

        self.answers.append(answer)
        return asyncio.run(go())

    def events(self) -> list[tuple[str, str, str]]:
        return [(e["event"], e["agent_id"], e.get("kind") or e.get("call_id")) for _, e in self.gateway.calls]


def calls(*ids: str) -> dict[str, Any]:
    found = [{"id": one, "type": "function", "function": {"name": f"look_{one[-1]}"}} for one in ids]
    return {"choices": [{"index": 0, "message": {"content": "", "tool_calls": found}, "finish_reason": "tool_calls"}]}


def text(words: str) -> dict[str, Any]:
    return {"choices": [{"index": 0, "message": {"content": words}, "finish_reason": "stop"}]}


def ask(*messages: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"messages": list(messages), "tools": TOOLS, **more}


def test_a_conversation_with_tools_is_one_agent_whose_calls_are_stalls():
    server = Server()
    server.post(CHAT, ask(USER), calls(UNIQUE))
    server.post(CHAT, ask(USER, chat_call(UNIQUE), chat_result(UNIQUE)), text("Rome."))
    first, second = server.seen
    assert first == second and first["agent_id"].startswith("conversation-")
    agent = first["agent_id"]
    assert server.events() == [("stall_started", agent, "look_7"), ("stall_started", agent, "human")]
    assert all(event["inferred"] for _, event in server.gateway.calls)


def test_another_conversation_is_another_agent():
    server = Server()
    for city in ("Rome", "Oslo"):
        server.post(CHAT, ask({"role": "user", "content": city}), calls(UNIQUE))
    assert server.seen[0] != server.seen[1]


def test_a_chat_without_tools_and_without_a_name_is_left_alone():
    server = Server()
    server.post(CHAT, {"messages": [USER]}, text("Rome."))
    server.post(CHAT, {"messages": [USER], "tools": []}, text("Rome."))
    server.post(CHAT, {"messages": [USER], "prompt_cache_key": "assistant"}, text("Rome."))
    assert server.seen == [None, None, None] and not server.gateway.calls


def test_a_named_session_keeps_its_name_and_its_stalls_are_inferred_without_tools_too():
    server = Server()
    server.post(CHAT, {"messages": [USER]}, text("Rome."), SESSION)
    assert server.seen == [{"agent_id": "s1"}] and server.events() == [("stall_started", "s1", "human")]


def test_a_request_beside_the_conversation_ends_no_tool_call_of_its_session():
    server = Server()
    server.post(CHAT, ask(USER), calls(UNIQUE), SESSION)
    server.post(CHAT, ask({"role": "user", "content": "A title, please."}), text("Rome"), SESSION)
    server.post(CHAT, ask(USER, chat_call(UNIQUE), chat_result(UNIQUE)), text("Rome."), SESSION)
    assert [seen.get(ENDS_CALLS) for seen in server.seen] == [None, "", None]
    assert server.events() == [("stall_started", "s1", "look_7"), ("stall_started", "s1", "human")], (
        "while a tool is out, nobody waits for a person")


def test_whoever_speaks_in_a_session_has_come_back_to_it():
    server = Server()
    server.post(CHAT, ask(USER), text("Rome."), SESSION)
    server.post(CHAT, ask({"role": "user", "content": "Anew."}), calls(UNIQUE), SESSION)
    told = [(e["event"], e["call_id"], e.get("outcome")) for _, e in server.gateway.calls]
    assert told == [("stall_started", "turn#1", None), ("stall_finished", "turn#1", "cancelled"),
                    ("stall_started", UNIQUE, None)]


def test_parallel_flows_of_a_session_end_only_their_own_calls():
    server, other = Server(), {"role": "user", "content": "Which river?"}
    second = "call_aaaaaaaaaaaaaaaaaaaaaaaa"
    server.post(CHAT, ask(USER), calls(UNIQUE), SESSION)
    server.post(CHAT, ask(other), calls(second), SESSION)
    server.post(CHAT, ask(other, chat_call(second), chat_result(second)), text("Tiber."), SESSION)
    assert server.seen[-1][ENDS_CALLS] == second


def test_an_agent_named_in_our_words_has_its_calls_inferred_and_no_person():
    server = Server()
    body = ask(USER, tokencake={"agent_id": "mine"})
    server.post(CHAT, body, text("Rome."))
    server.post(CHAT, body, calls(UNIQUE))
    server.post(MESSAGES, body, json.loads(ANSWERS["messages"][2]))
    assert server.events() == [("stall_started", "mine", "look_7"), ("stall_started", "mine", "look")]
    assert server.seen[0] == {"agent_id": "mine"}


def test_the_time_that_a_client_expects_goes_with_the_stall():
    server = Server()
    hints = {"agent_id": "h", "tool_name": "look", "expected_tool_duration_ms": 2500}
    server.post(CHAT, ask(USER, agent_hints=hints), calls(UNIQUE))
    assert server.gateway.calls[0][1]["estimated_duration_s"] == 2.5


def test_nothing_is_waited_for_after_the_last_request():
    server = Server()
    headers = {"x-dynamo-session-id": "d", "x-dynamo-session-final": "true"}
    server.post(CHAT, ask(USER), calls(UNIQUE), headers)
    assert server.events() == [("agent_finished", "d", None)]


@pytest.mark.parametrize("answer", [(400, calls(UNIQUE)), (500, {}), {"choices": []}, text("x")["choices"][0]])
def test_an_answer_that_is_none_starts_no_stall(answer):
    server = Server()
    server.post(CHAT, ask(USER), answer, SESSION)
    assert not server.gateway.calls
    table = server.app.user_middleware[0].kwargs["stalls"].table
    assert len(table) == 0


@pytest.mark.parametrize("name", ANSWERS)
def test_every_route_tells_of_its_calls_and_changes_no_byte(name):
    path, streamed, raw = ANSWERS[name]
    server = Server()
    answer = [raw[i:i + 50] for i in range(0, len(raw), 50)] if streamed else json.loads(raw)
    body = {"input": "go", "tools": TOOLS} if path == RESPONSES else ask(USER)
    plain = Server(stalls=False)
    assert server.post(path, body, answer) == plain.post(path, body, answer)
    assert [kind for _, _, kind in server.events()] == ["look"]


def test_a_call_is_told_before_the_client_sees_the_end_of_the_answer():
    path, _, raw = ANSWERS["chat stream"]
    gateway, told = MemoryGateway(), []

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
        await send({"type": "http.response.body", "body": raw, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def receive():
        return {"type": "http.request", "body": json.dumps(ask(USER)).encode(), "more_body": False}

    async def send(message):
        told.append((message["type"], len(gateway.calls)))
        next_one = stalls.table.find(read_turn(CHAT, ask(USER, chat_call(UNIQUE), chat_result(UNIQUE))), None)
        assert (next_one is not None) is (len(told) > 1), "the client may go on as soon as it has seen the calls"

    scope = {"type": "http", "method": "POST", "path": path, "headers": []}
    stalls = StallInference(gateway)
    middleware = AgentIdentityMiddleware(app, infer=True, gateway=gateway, stalls=stalls)
    asyncio.run(middleware(scope, receive, send))
    assert told == [("http.response.start", 0), ("http.response.body", 1), ("http.response.body", 1)]


@pytest.mark.parametrize("infer", [False, True])
def test_without_inference_names_are_read_or_not_and_no_stall_is_told(infer):
    server = Server(stalls=False, infer=infer)
    server.post(CHAT, ask(USER), calls(UNIQUE))
    server.post(CHAT, ask(USER), calls(UNIQUE), SESSION)
    assert server.seen == [None, {"agent_id": "s1"} if infer else None] and not server.gateway.calls


def test_a_scheduler_that_is_busy_or_gone_changes_no_answer():
    for trouble in ({"status": 429}, {"fails": True}):
        server = Server()
        vars(server.gateway).update(trouble)
        assert json.loads(server.post(CHAT, ask(USER), calls(UNIQUE))) == calls(UNIQUE)
