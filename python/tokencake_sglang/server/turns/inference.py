"""Tells the scheduler of stalls that clients do not report: one `Exchange` for each request and its answer.

An answer that calls tools starts a stall; the request that goes on with the conversation ends it, because it is the
agent's next. Any other answer starts a stall of the person who reads it, unless the client reports its own calls. What
is sent goes through the same channel as requests, so that a start is known before the client sees the answer's end.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Mapping
from itertools import count
from typing import Any

from tokencake_sglang.core.types import CALLS_JOINED_BY, ENDS_CALLS
from tokencake_sglang.server.background import Background
from tokencake_sglang.server.routes import Gateway
from tokencake_sglang.server.turns.answer import Answer, AnswerReader
from tokencake_sglang.server.turns.conversations import UNIQUE_ID, Conversation, ConversationTable
from tokencake_sglang.server.turns.request import Turn, read_turn

HUMAN = "human"
MAX_KIND = 256


class StallInference:
    """All exchanges of a server; to be used on its event loop."""

    def __init__(self, gateway: Gateway, table: ConversationTable | None = None) -> None:
        self.table = table or ConversationTable()
        self._prefix = uuid.uuid4().hex[:8]
        self._numbers = count(1)
        self._sending = Background(gateway, "a stall that was inferred could not be told to the scheduler")

    def begin(self, path: str, body: Mapping[str, Any], agent_id: str | None, *, people: bool = True,
              estimate_s: float | None = None, final: bool = False) -> Exchange:
        """A request has come in. `agent_id`: the agent that its client names; None: the conversation is its own agent.
        `people`: an answer without calls is read by somebody who may go on. `estimate_s`: of the tools that the answer
        may call. `final`: nothing comes after it."""
        turn = read_turn(path, body)
        found = self.table.find(turn, agent_id)
        conversation = found or self.table.add(agent_id or f"conversation-{self._prefix}-{next(self._numbers)}",
                                               named=agent_id is not None)
        return Exchange(self, path, turn, conversation, found is None, people, estimate_s, final)

    def new_call_id(self, call_id: str) -> str:
        """The id itself if nobody makes it twice, else one that is ours."""
        return call_id if UNIQUE_ID.search(call_id) else f"{call_id}#{next(self._numbers)}"

    async def tell(self, events: list[dict[str, Any]]) -> None:
        """Send events, in their order, before anything that is sent after this; waits for no answer."""
        for event in events:
            self._sending.send("event", event)
        if events:
            await asyncio.sleep(0)  # the tasks have run as far as their messages now


class Exchange:
    """One request and its answer. `metadata` is to travel with the request's identity."""

    def __init__(self, inference: StallInference, path: str, turn: Turn, conversation: Conversation, is_new: bool,
                 people: bool, estimate_s: float | None, final: bool) -> None:
        self._inference, self._path, self._turn, self._conversation = inference, path, turn, conversation
        self._people, self._estimate_s, self._final = people, estimate_s, final
        self._is_new = is_new
        self._reader: AnswerReader | None = None
        self._answered = False
        conversation.running += 1
        self._before, self.metadata = self._ends()

    @property
    def agent_id(self) -> str:
        return self._conversation.agent_id

    async def begin(self) -> None:
        """To be awaited before the request goes on its way."""
        await self._inference.tell(self._before)

    def watch(self, send: Any) -> Any:
        """An ASGI send that passes everything on unchanged and reads along."""
        async def watching(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start" and message["status"] == 200:
                headers = {name.lower(): value for name, value in message.get("headers", ())}
                streamed = headers.get(b"content-type", b"").startswith(b"text/event-stream")
                self._reader = AnswerReader(self._path, streamed)
            elif message["type"] == "http.response.body" and self._reader is not None:
                answer = self._reader.feed(message.get("body", b""), not message.get("more_body", False))
                if answer is not None:
                    await self._inference.tell(self._answer(answer))
            await send(message)

        return watching

    def end(self) -> None:
        """The answer has been sent, or the client has left."""
        table = self._inference.table
        if not self._answered:
            self._conversation.running -= 1
        if self._final:
            for conversation in table.of_agent(self.agent_id):
                table.forget(conversation)
        elif self._is_new and not self._answered:
            table.forget(self._conversation)

    def _ends(self) -> tuple[list[dict[str, Any]], dict[str, str]]:
        """What to tell before the request, and which calls the request itself ends where it does not end all."""
        conversation, others = self._conversation, self._others()
        given_up: list[str] = []
        if self._is_new:  # somebody is there, whether or not he was away
            for other in others:
                if other.awaits_person:
                    given_up += other.open_calls
                    other.open_calls = ()
        ends, conversation.open_calls = conversation.open_calls, ()
        kept = any(other.open_calls for other in others)
        events = [{"event": "stall_finished", "agent_id": self.agent_id, "call_id": call_id, "outcome": "cancelled",
                   "inferred": True} for call_id in given_up]
        return events, {ENDS_CALLS: CALLS_JOINED_BY.join(ends)} if kept else {}

    def _reader_may_go_on(self) -> bool:
        """Whether a person is all that the agent waits for now."""
        others = self._others()
        return self._people and not any(one.open_calls or one.running for one in others)

    def _others(self) -> list[Conversation]:
        return [one for one in self._inference.table.of_agent(self.agent_id) if one is not self._conversation]

    def _answer(self, answer: Answer) -> list[dict[str, Any]]:
        self._answered = True
        self._conversation.running -= 1  # now: a client need not wait for the end of the stream
        self._inference.table.answered(self._conversation, self._turn, answer)
        if self._final or not (answer.calls or self._reader_may_go_on()):
            return []
        calls = [(self._inference.new_call_id(call.call_id), call.name[:MAX_KIND]) for call in answer.calls]
        self._conversation.awaits_person = not calls
        calls = calls or [(self._inference.new_call_id("turn"), HUMAN)]
        self._conversation.open_calls += tuple(call_id for call_id, _ in calls)
        estimate = {} if self._estimate_s is None or not answer.calls else {"estimated_duration_s": self._estimate_s}
        return [{"event": "stall_started", "agent_id": self.agent_id, "call_id": call_id, "kind": kind,
                 "inferred": True, **estimate} for call_id, kind in calls]
