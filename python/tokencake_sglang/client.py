"""A small client of the control API for any agent stack: names an agent on its requests, reports its tools, asks for
actions. Standard library only; docs/clients.md shows it beside the OpenAI SDK.

A call that the server refuses raises ControlError, as does a server that cannot be reached (code 0). Reporting a tool
with `tool()` is the exception: what goes wrong there is logged, because a tool must not fail for its report.
"""

from __future__ import annotations

import asyncio
import functools
import json
import logging
import urllib.error
import urllib.request
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from http.client import HTTPException
from typing import Any

from tokencake_sglang.core.errors import ControlError

logger = logging.getLogger(__name__)

PREFIX = "/v1/tokencake"
Stages = Sequence[tuple[str, float]]


class Client:
    """One server. Thread-safe: it keeps no connection and no state.

    `url` is the server's root, without `/v1`; `timeout_s` bounds each call.
    """

    def __init__(self, url: str, api_key: str | None = None, timeout_s: float = 30.0) -> None:
        self.url = url.rstrip("/")
        self.timeout_s = timeout_s
        self._api_key = api_key
        self._headers = {"Content-Type": "application/json"}
        if api_key is not None:
            self._headers["Authorization"] = f"Bearer {api_key}"

    def agent(self, agent_id: str, **identity: str) -> Agent:
        """An agent of this server; `identity` may name `app_id`, `graph_id`, `node_id`, `agent_type`."""
        return Agent(self, {"agent_id": agent_id, **identity})

    def event(self, event: str, **fields: Any) -> dict[str, Any]:
        """Send one event; fields that are None are left out."""
        return self._call("/events", {"event": event, **{k: v for k, v in fields.items() if v is not None}})

    def act(self, action_type: str, **payload: Any) -> dict[str, Any]:
        """Ask for one action ("kv.retain", "signal.resume_estimate", ...); returns its outcome."""
        action = {"action_id": uuid.uuid4().hex, "action_type": action_type, "action_version": "1", "payload": payload}
        return self._call("/actions", {"protocol_version": "0.1", "actions": [action]})["outcomes"][0]

    def state(self, agents: int = 100, stalls: int = 0) -> dict[str, Any]:
        """The live state with at most so many agents and ended stalls."""
        return self._call(f"/state?agents={agents}&stalls={stalls}")

    def _call(self, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + PREFIX + path, data=data, headers=self._headers)
        try:
            with urllib.request.urlopen(request, timeout=self.timeout_s) as answer:
                return json.loads(answer.read())
        except urllib.error.HTTPError as error:
            with error:
                raise _refusal(error.code, error.read()) from None
        except (OSError, HTTPException, ValueError) as error:
            raise ControlError(0, "unreachable", f"{self.url} gave no answer: {error}.") from None


class Agent:
    """One agent. Send its requests with `extra_body`, or with `headers` where a body cannot be changed."""

    def __init__(self, client: Client, identity: dict[str, str]) -> None:
        self.client = client
        self.identity = identity

    @property
    def agent_id(self) -> str:
        return self.identity["agent_id"]

    @property
    def extra_body(self) -> dict[str, Any]:
        """For the body of a generation request: `create(..., extra_body=agent.extra_body)`."""
        return {"tokencake": dict(self.identity)}

    @property
    def headers(self) -> dict[str, str]:
        """Names the agent without a change of the body; its app, type and node stay unsaid. For ids that a header can
        hold, which are of Latin-1 characters."""
        return {"x-session-id": self.agent_id}

    @contextmanager
    def tool(self, kind: str = "tool", estimate: float | None = None, *, p90: float | None = None,
             call_id: str | None = None, stages: Stages = ()) -> Iterator[ToolCall]:
        """The agent waits for a tool as long as the block lasts. `estimate` (the median), `p90` (nine of ten calls are
        over by then) and each stage's second part are seconds.

        The outcome is "ok", "error" after an exception, "cancelled" after one that is no error, as KeyboardInterrupt.
        """
        call = ToolCall(self, call_id or uuid.uuid4().hex)
        call.report("stall_started", kind=kind, estimated_duration_s=estimate, estimated_p90_s=p90,
                    stages=[{"name": name, "estimated_s": seconds} for name, seconds in stages] or None)
        outcome = "ok"
        try:
            yield call
        except Exception:
            outcome = "error"
            raise
        except BaseException:
            outcome = "cancelled"
            raise
        finally:
            call.report("stall_finished", outcome=outcome)

    def finish(self) -> dict[str, Any]:
        """The agent has ended."""
        return self.client.event("agent_finished", agent_id=self.agent_id)

    def finish_program(self) -> dict[str, Any]:
        """The run that the agent belongs to has ended, with all its agents."""
        return self.client.event("program_finished", agent_id=self.agent_id)

    def state(self) -> dict[str, Any] | None:
        """What the server knows of the agent; None: nothing."""
        found = self.client.state(agents=10_000)["agents"]
        return next((one for one in found if one["agent"] == self.agent_id), None)

    def retain(self, seconds: float) -> dict[str, Any]:
        """Ask to have its KV given up after all other for so long; returns the outcome, as the following."""
        return self.client.act("kv.retain", agent_id=self.agent_id, ttl_seconds=seconds)

    def release(self) -> dict[str, Any]:
        return self.client.act("kv.release", agent_id=self.agent_id)

    def demote(self) -> dict[str, Any]:
        return self.client.act("kv.demote", agent_id=self.agent_id)

    def prefetch(self) -> dict[str, Any]:
        return self.client.act("kv.prefetch", agent_id=self.agent_id)

    def resume_in(self, seconds: float, call_id: str | None = None) -> dict[str, Any]:
        """Its open call (or the one of that id) is expected to end in so many seconds from now."""
        call = {} if call_id is None else {"call_id": call_id}
        return self.client.act("signal.resume_estimate", agent_id=self.agent_id, resume_in_s=seconds, **call)


class ToolCall:
    """A tool that runs. `stage_done(name)` makes the forecast better where the call was started with stages."""

    def __init__(self, agent: Agent, call_id: str) -> None:
        self.agent = agent
        self.call_id = call_id

    def stage_done(self, name: str) -> None:
        self.report("stage_finished", stage=name)

    def report(self, event: str, **fields: Any) -> None:
        """Send an event of this call. Never raises for the server or the network."""
        try:
            self.agent.client.event(event, agent_id=self.agent.agent_id, call_id=self.call_id, **fields)
        except ControlError as error:
            logger.warning("the event %s of agent %s had no effect: %s", event, self.agent.agent_id, error)


def _refusal(status: int, raw: bytes) -> ControlError:
    """The server's sentence, or what else it answered."""
    try:
        error = json.loads(raw)["error"]
        return ControlError(status, error["reason"], error["message"])
    except (ValueError, TypeError, KeyError):
        return ControlError(status, "http", f"the server answered {status}: {raw[:200].decode(errors='replace')}.")


# -- for programs with an event loop: the same, each call in a thread of its own ----------------------------------


def _in_thread(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    async def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return await asyncio.to_thread(method, self, *args, **kwargs)

    return call


class AsyncClient(Client):
    """As Client, with methods to be awaited."""

    event = _in_thread(Client.event)
    act = _in_thread(Client.act)
    state = _in_thread(Client.state)

    def agent(self, agent_id: str, **identity: str) -> AsyncAgent:
        """An agent of this server, with methods to be awaited."""
        plain = Client(self.url, self._api_key, self.timeout_s)
        return AsyncAgent(plain, {"agent_id": agent_id, **identity})


class AsyncAgent(Agent):
    """As Agent, with methods to be awaited, and `tool` for `async with`."""

    finish = _in_thread(Agent.finish)
    finish_program = _in_thread(Agent.finish_program)
    state = _in_thread(Agent.state)
    retain = _in_thread(Agent.retain)
    release = _in_thread(Agent.release)
    demote = _in_thread(Agent.demote)
    prefetch = _in_thread(Agent.prefetch)
    resume_in = _in_thread(Agent.resume_in)

    @asynccontextmanager
    async def tool(self, kind: str = "tool", estimate: float | None = None, *, p90: float | None = None,
                   call_id: str | None = None, stages: Stages = ()) -> AsyncIterator[ToolCall]:
        """As Agent.tool. `stage_done` of the call is to be called in a thread."""
        block = Agent.tool(self, kind, estimate, p90=p90, call_id=call_id, stages=stages)
        call = await asyncio.to_thread(block.__enter__)
        try:
            yield call
        except BaseException as error:
            await asyncio.shield(asyncio.to_thread(block.__exit__, type(error), error, error.__traceback__))
            raise
        await asyncio.to_thread(block.__exit__, None, None, None)
