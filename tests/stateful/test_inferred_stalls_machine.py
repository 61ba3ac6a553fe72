"""Agents that nobody tells apart, in any order of requests and answers: no stall is ended by another agent's request.

The real inference and the real controller; clients that keep their histories well, and ones that repeat a request, drop
a turn, compact their history, branch off, lose an answer or are refused. Some agents have equal prompts, some share a
session, and some models just count their calls.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from dataclasses import dataclass, field
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from tests.support.mechanism import MemoryMechanism
from tokencake_sglang.core.config import TokenCakeConfig
from tokencake_sglang.core.controller import Controller
from tokencake_sglang.core.types import CALLS_JOINED_BY, ENDS_CALLS, AgentIdentity
from tokencake_sglang.server.turns.conversations import ConversationTable
from tokencake_sglang.server.turns.inference import Exchange, StallInference

CHAT = "/v1/chat/completions"
IDLE_S = 100.0


@dataclass(eq=False)
class Client:
    """One true agent: its history as it keeps it, and what is under way."""

    session: str | None
    counts_calls: bool  # its model numbers the calls instead of making ids up
    history: list[dict[str, Any]]
    calls: int = 0
    answers: int = 0
    waiting: list[tuple[Exchange, list[dict[str, Any]]]] = field(default_factory=list)
    wanders: bool = False  # it has done something from which a new agent may come
    ids: set[str] = field(default_factory=set)  # agents that its requests were taken for
    shared: set[tuple[str, str]] = field(default_factory=set)  # stalls that were open when another branched off


class ControllerGateway:
    """Folds the events at once, and knows for whom each stall was opened."""

    def __init__(self) -> None:
        self.controller = Controller(TokenCakeConfig(agent_idle_s=IDLE_S), MemoryMechanism())
        self.speaking: Client | None = None
        self.owner: dict[tuple[str, str], Client] = {}
        self.began_at: dict[tuple[str, str], float] = {}

    async def call(self, op: str, payload: dict[str, Any], timeout_s: float = 30.0) -> tuple[int, dict[str, Any]]:
        reply = self.controller.event(payload)
        assert reply.status in (200, 404), reply
        if payload["event"] == "stall_started" and reply.result == "applied":
            key = payload["agent_id"], payload["call_id"]
            self.owner[key], self.began_at[key] = self.speaking, self.controller.now
        return reply.status, {}

    def open_calls(self) -> dict[tuple[str, str], Client]:
        open_now = {(agent.key, call) for agent in self.controller.agents for call in agent.calls.open}
        return {key: owner for key, owner in self.owner.items() if key in open_now}

    def was_given_up(self, key: tuple[str, str]) -> bool:
        """Whether it has lasted so long that the agent's next request ends it, whoever sends that."""
        return self.controller.now - self.began_at[key] >= IDLE_S

    def is_human(self, key: tuple[str, str]) -> bool:
        return key[1].startswith("turn")


class InferredStallsMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.gateway = ControllerGateway()
        self.inference = StallInference(self.gateway, ConversationTable(most=64))
        self.clients: list[Client] = []
        self.numbers = itertools.count()

    def teardown(self) -> None:
        controller = self.gateway.controller
        for client in self.clients:
            while client.waiting:
                self.finish(client, 0, None)
        self.loop.run_until_complete(asyncio.sleep(0))
        assert not self.inference._sending
        table = self.inference.table
        assert all(one.running == 0 for one in table._all.values())
        for one in list(table._all.values()):
            table.forget(one)
        assert not (table._by_call or table._by_digest or table._by_response or table._by_agent)
        for _ in range(4 + len(controller.agents)):  # long after: nobody has come back
            controller.tick(controller.now + 1e6)
            controller.step()
        assert len(controller.agents) == 0
        self.loop.close()

    # -- what clients do ------------------------------------------------------------------------------------

    @rule(session=st.sampled_from((None, None, "s1")), counts=st.booleans(), prompt=st.sampled_from(("go", "write")),
          brings_history=st.booleans())
    def begin(self, session: str | None, counts: bool, prompt: str, brings_history: bool) -> None:
        if len(self.clients) < 6:
            history = [{"role": "user", "content": prompt}]
            if brings_history:
                history += [{"role": "assistant", "content": "from elsewhere"}, {"role": "user", "content": "and"}]
            self.clients.append(Client(session, counts, history))
            self.send(self.clients[-1])

    @precondition(lambda self: self.ready() and len(self.clients) < 6)
    @rule(data=st.data(), session=st.sampled_from((None, "s1")))
    def fork(self, data: st.DataObject, session: str | None) -> None:
        """Another agent goes on from here too; which of the two the open stall is of, nobody can say."""
        client = data.draw(st.sampled_from(self.ready()))
        other = Client(session, client.counts_calls, list(client.history), client.calls, wanders=True)
        client.wanders = True
        other.shared = {key for key, owner in self.gateway.open_calls().items() if owner is client} | client.shared
        client.shared = set(other.shared)
        self.clients.append(other)

    def ready(self) -> list[Client]:
        """Clients that nothing keeps from going on."""
        return [one for one in self.clients if not one.waiting and one.history[-1]["role"] == "assistant"]

    @precondition(lambda self: self.ready())
    @rule(data=st.data())
    def go_on(self, data: st.DataObject) -> None:
        """All results of the last answer come back, or the person goes on."""
        client = data.draw(st.sampled_from(self.ready()))
        self.take_up(client)
        self.send(client)

    @precondition(lambda self: self.clients)
    @rule(data=st.data(), what=st.sampled_from((
        "repeat", "drop", "compact", "branch", "rewind", "fail", "leave", "wait")))
    def wander(self, data: st.DataObject, what: str) -> None:
        """Something that a tidy client does not do."""
        client = data.draw(st.sampled_from(self.clients))
        client.wanders = True
        if what == "wait":
            self.gateway.controller.tick(self.gateway.controller.now + 30.0)
        elif what == "repeat" and client.history[-1]["role"] != "assistant":
            self.send(client)
        elif client in self.ready():
            if what == "drop":  # the person speaks instead of the tools
                client.history.append({"role": "user", "content": "never mind"})
            elif what == "compact":
                client.history = [{"role": "user", "content": f"so far: {next(self.numbers)}"}]
            elif what == "branch" and len(client.history) > 2:
                client.history = client.history[:-2] + [{"role": "user", "content": "otherwise"}]
            elif what == "rewind" and any(one["role"] == "tool" for one in client.history):
                last = max(i for i, one in enumerate(client.history) if one["role"] == "tool")
                client.history = client.history[:last + 1]
            else:
                self.take_up(client)
            self.send(client)
            if what in ("fail", "leave"):
                self.finish(client, len(client.waiting) - 1, None)

    @precondition(lambda self: any(one.waiting for one in self.clients))
    @rule(data=st.data(), calls=st.integers(0, 3), streamed=st.booleans())
    def answer(self, data: st.DataObject, calls: int, streamed: bool) -> None:
        client = data.draw(st.sampled_from([one for one in self.clients if one.waiting]))
        self.finish(client, data.draw(st.integers(0, len(client.waiting) - 1)), calls, streamed)

    # -- how it is done -------------------------------------------------------------------------------------

    def take_up(self, client: Client) -> None:
        calls = client.history[-1].get("tool_calls", ())
        client.history += [{"role": "tool", "tool_call_id": call["id"], "content": "done"} for call in calls]
        if not calls:
            client.history.append({"role": "user", "content": "go on"})

    def send(self, client: Client) -> None:
        """The request, and what it must not do: end a stall that was opened for somebody else."""
        gateway, controller = self.gateway, self.gateway.controller
        controller.tick(controller.now + 0.1)
        before = gateway.open_calls()
        history = list(client.history)
        body = {"messages": history, "tools": [{}]}
        exchange = self.inference.begin(CHAT, body, client.session)
        self.loop.run_until_complete(exchange.begin())
        rid, ends = f"r{next(self.numbers)}", exchange.metadata.get(ENDS_CALLS)
        controller.request_added(AgentIdentity(agent_id=exchange.agent_id), rid,
                                 None if ends is None else ends.split(CALLS_JOINED_BY))
        controller.request_ended(exchange.agent_id, rid)
        ended = before.keys() - gateway.open_calls().keys()
        for key in ended:
            of_its_session = client.session is not None and key[0] == client.session
            owner = before[key]
            is_like = of_its_session and history[:len(owner.history)] == owner.history  # nobody can tell them apart
            own = owner is client or key in client.shared or (of_its_session and gateway.is_human(key))
            assert own or is_like or gateway.was_given_up(key), (key, "ended by another")
        client.waiting.append((exchange, history))
        client.ids.add(exchange.agent_id)
        if not client.wanders and not client.counts_calls and not self.has_twin(client):
            assert len(client.ids) == 1, "a tidy client is taken for several agents"
            assert not [key for key, owner in gateway.open_calls().items() if owner is client], "its own stall stays"

    def has_twin(self, client: Client) -> bool:
        """Another client's history cannot be told from this one's."""
        return any(one is not client and one.history[0] == client.history[0] for one in self.clients)

    def finish(self, client: Client, which: int, calls: int | None, streamed: bool = False) -> None:
        """The answer with so many calls; None: the request fails."""
        exchange, history = client.waiting.pop(which)
        sent: list[dict[str, Any]] = []

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        self.gateway.speaking = client
        messages = [{"type": "http.response.start", "status": 400}, {"type": "http.response.body", "body": b"{}"}]
        if calls is not None:
            said = self.said(client, calls)
            messages = response(said, streamed)
            if not client.waiting:  # else the client goes by the answer that comes last
                client.history = [*history, said]
        watch = exchange.watch(send)
        for message in messages:
            self.loop.run_until_complete(watch(message))
        exchange.end()
        assert sent == messages

    def said(self, client: Client, calls: int) -> dict[str, Any]:
        client.answers += 1
        found = []
        for _ in range(calls):
            client.calls += 1
            number = next(self.numbers)
            name = f"functions.look:{client.calls}" if client.counts_calls else f"call_{number:024x}"
            found.append({"id": name, "type": "function", "function": {"name": "look", "arguments": "{}"}})
        text = f"the answer {client.answers}"  # a twin's is the same
        return {"role": "assistant", "content": text, **({"tool_calls": found} if found else {})}


def response(said: dict[str, Any], streamed: bool) -> list[dict[str, Any]]:
    """What SGLang sends for this message, cut into pieces."""
    reason = "tool_calls" if "tool_calls" in said else "stop"
    if not streamed:
        raw = json.dumps({"choices": [{"index": 0, "message": said, "finish_reason": reason}]}).encode()
    else:
        calls = [{"delta": {"tool_calls": [call]}, "index": 0} for call in said.get("tool_calls", ())]
        parts = [{"delta": {"content": said["content"]}, "index": 0}, *calls,
                 {"delta": {}, "index": 0, "finish_reason": reason}]
        raw = b"".join(b"data: " + json.dumps({"choices": [part]}).encode() + b"\n\n" for part in parts)
        raw += b"data: [DONE]\n\n"
    kind = b"text/event-stream; charset=utf-8" if streamed else b"application/json"
    half = len(raw) // 2
    return [{"type": "http.response.start", "status": 200, "headers": [(b"content-type", kind)]},
            {"type": "http.response.body", "body": raw[:half], "more_body": True},
            {"type": "http.response.body", "body": raw[half:], "more_body": False}]


TestInferredStalls = InferredStallsMachine.TestCase
TestInferredStalls.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
