"""The Python client over HTTP against the real routes, with a real controller behind them."""

from __future__ import annotations

import asyncio
import logging
import threading
from contextlib import contextmanager

import pytest
import uvicorn
from fastapi import FastAPI

from tests.support.server import free_port
from tests.unit.test_controller import Server
from tokencake_sglang.client import AsyncClient, Client
from tokencake_sglang.core.actions import ClientActions
from tokencake_sglang.core.errors import ControlError
from tokencake_sglang.core.types import AgentIdentity
from tokencake_sglang.engine.extension import reply_body
from tokencake_sglang.server.action_routes import build_action_router
from tokencake_sglang.server.routes import build_router


class Scheduler(Server):
    """A controller that answers control calls as the extension does. Agent "a" is known."""

    def __init__(self):
        super().__init__()
        self.actions = ClientActions(self.controller)
        self.at(100.0)
        self.ask("a")
        self.answer("a")
        self.events = []

    async def call(self, op, payload, timeout_s=30.0):
        if op == "event":
            self.events.append(payload)
            reply = self.controller.event(payload)
            return reply.status, reply_body(reply.status, reply.result, reply.message)
        if op == "actions":
            return 200, {"outcomes": [self.actions.apply(one) for one in payload["actions"]]}
        known = [{"agent": agent.key, "state": agent.state} for agent in self.controller.agents]
        return 200, {"agents": known[:payload["agents"]], "counters": self.counters}

    def named(self, event):
        return [one for one in self.events if one["event"] == event]


@contextmanager
def serving(scheduler, *middleware):
    app = FastAPI()
    for each in middleware:
        app.add_middleware(each)
    app.include_router(build_router(scheduler))
    app.include_router(build_action_router(scheduler))
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture
def scheduler():
    return Scheduler()


@pytest.fixture
def client(scheduler):
    with serving(scheduler) as url:
        yield Client(url)


def test_an_agent_is_named_in_the_body_or_by_a_header(client):
    agent = client.agent("a", app_id="run-1", agent_type="planner")
    assert agent.extra_body == {"tokencake": {"agent_id": "a", "app_id": "run-1", "agent_type": "planner"}}
    assert agent.headers == {"x-session-id": "a"}


def test_a_tool_is_a_stall_as_long_as_its_block_lasts(client, scheduler):
    agent = client.agent("a")
    with agent.tool("search", estimate=2.5, p90=9.0, stages=[("network", 2.0), ("rank", 0.5)]) as call:
        assert agent.state()["state"] == "stalled"
        call.stage_done("network")
    assert agent.state()["state"] == "idle"
    (started,), (finished,) = scheduler.named("stall_started"), scheduler.named("stall_finished")
    assert (started["kind"], started["estimated_duration_s"], len(started["stages"])) == ("search", 2.5, 2)
    assert started["estimated_p90_s"] == 9.0
    assert (finished["call_id"], finished["outcome"]) == (started["call_id"], "ok")
    assert scheduler.named("stage_finished")[0]["stage"] == "network"


@pytest.mark.parametrize(("error", "outcome"), [(ValueError, "error"), (KeyboardInterrupt, "cancelled")])
def test_a_tool_that_raises_ends_its_stall_and_still_raises(client, scheduler, error, outcome):
    with pytest.raises(error), client.agent("a").tool("shell", call_id="mine"):
        raise error
    assert [(one["call_id"], one["outcome"]) for one in scheduler.named("stall_finished")] == [("mine", outcome)]


def test_a_tool_does_not_fail_for_its_report(client, caplog):
    with caplog.at_level(logging.WARNING), client.agent("nobody").tool("search"):
        pass
    assert "stall_started" in caplog.text and "nobody" in caplog.text
    with Client(f"http://127.0.0.1:{free_port()}").agent("a").tool("search"):
        pass


def test_actions_answer_with_their_outcomes(client, scheduler):
    agent = client.agent("a")
    assert agent.retain(60)["outcome"] == "accepted" and agent.retain(86400)["outcome"] == "clipped"
    assert agent.release()["outcome"] == "accepted" and agent.demote()["outcome"] == "accepted"
    assert agent.prefetch()["outcome"] == "accepted" and agent.resume_in(5)["outcome"] == "missing"
    with agent.tool("search", call_id="c"):
        assert agent.resume_in(5, call_id="c")["outcome"] == "accepted"
    assert client.act("kv.nothing", agent_id="a")["outcome"] == "rejected"


def test_the_end_of_an_agent_and_of_its_program(client, scheduler):
    for key in ("b", "c"):
        scheduler.controller.request_added(AgentIdentity(agent_id=key, app_id="run"), f"of {key}")
        scheduler.controller.request_ended(key, f"of {key}")
    assert client.agent("a").finish() == {"status": "applied", "message": "Agent 'a' has ended; its KV is ordinary"
                                          " cache now."}
    assert client.agent("b").finish_program()["status"] == "applied"
    assert client.agent("a").state() is None and client.state()["agents"] == []


@pytest.mark.parametrize(("fields", "code", "reason"), [
    ({"event": "agent_finished", "agent_id": "nobody"}, 404, "unknown_agent"),
    ({"event": "stall_finished", "agent_id": "a", "call_id": "never"}, 409, "conflict"),
    ({"event": "stall_started", "agent_id": "a", "kind": 5}, 400, "schema"),
])
def test_a_refusal_is_a_control_error_with_the_servers_sentence(client, fields, code, reason):
    with pytest.raises(ControlError) as caught:
        client.event(**fields)
    assert (caught.value.code, caught.value.reason) == (code, reason) and str(caught.value).endswith(".")


def test_no_server_a_server_without_tokencake_and_another_server_are_control_errors():
    with pytest.raises(ControlError) as nobody:
        Client(f"http://127.0.0.1:{free_port()}").state()
    assert (nobody.value.code, nobody.value.reason) == (0, "unreachable")
    with serving(None) as url, pytest.raises(ControlError) as off:
        Client(url).state()
    assert (off.value.code, off.value.reason) == (503, "disabled")
    with serving(None) as url, pytest.raises(ControlError) as other:
        Client(url + "/elsewhere").event("agent_finished", agent_id="a")
    assert (other.value.code, other.value.reason) == (404, "http")


def test_the_key_goes_along(scheduler):
    seen = []

    class Key:
        def __init__(self, app):
            self.app = app

        async def __call__(self, scope, receive, send):
            seen.append(dict(scope.get("headers", [])).get(b"authorization"))
            await self.app(scope, receive, send)

    with serving(scheduler, Key) as url:
        Client(url, api_key="k").state()
        asyncio.run(AsyncClient(url, api_key="k").agent("a").state())
    assert seen[-2:] == [b"Bearer k", b"Bearer k"]


def test_all_of_it_can_be_awaited(scheduler):
    async def program(url):
        client = AsyncClient(url)
        agent = client.agent("a", app_id="run")
        async with agent.tool("search", estimate=1.0) as call:
            assert (await agent.state())["state"] == "stalled"
            assert (await agent.resume_in(3.0, call_id=call.call_id))["outcome"] == "accepted"
        with pytest.raises(ValueError):
            async with agent.tool("search"):
                raise ValueError
        waiting = asyncio.create_task(stay(agent))
        while len(scheduler.named("stall_started")) < 3:
            await asyncio.sleep(0.01)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert [one["outcome"] for one in scheduler.named("stall_finished")] == ["ok", "error", "cancelled"]
        assert (await agent.retain(5))["outcome"] == (await agent.release())["outcome"] == "accepted"
        assert (await client.act("kv.demote", agent_id="nobody"))["outcome"] == "missing"
        assert (await agent.finish())["status"] == "applied" and (await client.state())["agents"] == []

    async def stay(agent):
        async with agent.tool("shell"):
            await asyncio.sleep(60)

    with serving(scheduler) as url:
        asyncio.run(program(url))
