"""What an answer says on its way to the client: the tools that it calls, its text, and that it is complete.

Reads a copy of the bytes, whole or streamed; a stream is understood as it passes, so that a stall is known before the
client sees the end of the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import orjson

from tokencake_sglang.server.turns.request import CHAT, MESSAGES, RESPONSES

MAX_BODY_BYTES = 16 * 1024 * 1024  # of an answer in one piece
MAX_EVENT_BYTES = 4 * 1024 * 1024  # of one event of a stream
MAX_CALLS = 64


@dataclass(frozen=True)
class ToolCall:
    call_id: str
    name: str


@dataclass(frozen=True)
class Answer:
    """Of several choices (`n`) the first."""

    calls: tuple[ToolCall, ...] = ()
    text: str = ""
    response_id: str | None = None


@dataclass
class _Heard:
    """What has been understood so far. `done`: the model has said all."""

    calls: dict[str, str] = field(default_factory=dict)
    texts: list[str] = field(default_factory=list)
    response_id: str | None = None
    done: bool = False

    def call(self, call_id: Any, name: Any) -> None:
        if isinstance(call_id, str) and call_id and isinstance(name, str) and name and len(self.calls) < MAX_CALLS:
            self.calls.setdefault(call_id, name)

    def say(self, text: Any) -> None:
        if isinstance(text, str):
            self.texts.append(text)

    def answer(self) -> Answer:
        calls = tuple(ToolCall(*one) for one in self.calls.items())
        return Answer(calls, "".join(self.texts).strip(), self.response_id)


class AnswerReader:
    """Feed it the chunks of one answer's body; once, it gives the complete answer. Nothing in them makes it raise.

    An answer that is no JSON, too large, or ends before the model has ended is never complete.
    """

    def __init__(self, path: str, streamed: bool) -> None:
        self._streamed = streamed
        self._read = (_STREAMED if streamed else _WHOLE)[path]
        self._heard = _Heard()
        self._buffer = bytearray()
        self._over = False

    def feed(self, chunk: bytes, last: bool) -> Answer | None:
        """The answer, when this chunk completes it. `last`: no chunk follows."""
        if self._over:
            return None
        self._buffer += chunk
        if len(self._buffer) > (MAX_EVENT_BYTES if self._streamed else MAX_BODY_BYTES):
            self._over = True
            self._buffer.clear()
            return None
        for value in self._events() if self._streamed else self._body(last):
            if isinstance(value, dict):
                try:
                    self._read(self._heard, value)
                except (AttributeError, KeyError, TypeError, IndexError):
                    continue  # no answer of SGLang's looks like this
        if not self._heard.done:
            return None
        self._over = True
        return self._heard.answer()

    def _body(self, last: bool) -> Iterator[Any]:
        if last:
            yield _parsed(bytes(self._buffer))

    def _events(self) -> Iterator[Any]:
        while (end := self._buffer.find(b"\n\n")) >= 0:
            event = bytes(self._buffer[:end])
            del self._buffer[:end + 2]
            for line in event.split(b"\n"):
                if line.startswith(b"data:"):
                    yield _parsed(line[5:])


def _parsed(text: bytes) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return None


def _chat(heard: _Heard, body: dict[str, Any], key: str = "message") -> None:
    """A chat completion, or with `key` "delta" one chunk of it."""
    for choice in body.get("choices", ()):
        if choice.get("index", 0) != 0:
            continue
        said = choice.get(key) or {}
        for call in said.get("tool_calls") or ():
            heard.call(call.get("id"), (call.get("function") or {}).get("name"))
        heard.say(said.get("content"))
        heard.done |= choice.get("finish_reason") not in (None, "abort")


def _chat_chunk(heard: _Heard, chunk: dict[str, Any]) -> None:
    _chat(heard, chunk, "delta")


def _message(heard: _Heard, body: dict[str, Any]) -> None:
    for block in body.get("content", ()):
        if block.get("type") == "tool_use":
            heard.call(block.get("id"), block.get("name"))
        heard.say(block.get("text"))
    heard.done |= body.get("stop_reason") is not None


def _message_event(heard: _Heard, event: dict[str, Any]) -> None:
    if event.get("type") == "content_block_start":
        block = event.get("content_block") or {}
        if block.get("type") == "tool_use":
            heard.call(block.get("id"), block.get("name"))
    elif event.get("type") == "content_block_delta":
        heard.say((event.get("delta") or {}).get("text"))
    elif event.get("type") == "message_delta":
        heard.done |= (event.get("delta") or {}).get("stop_reason") is not None


def _response(heard: _Heard, body: dict[str, Any]) -> None:
    if body.get("status") not in ("completed", "incomplete"):
        return
    heard.response_id = body["id"] if isinstance(body.get("id"), str) else None
    for item in body.get("output", ()):
        if item.get("type") == "function_call":
            heard.call(item.get("call_id"), item.get("name"))
        for part in item.get("content") or ():
            if item.get("type") == "message":
                heard.say(part.get("text"))
    heard.done = True


def _response_event(heard: _Heard, event: dict[str, Any]) -> None:
    if event.get("type") in ("response.completed", "response.incomplete"):
        _response(heard, event["response"])


_Reader = Callable[[_Heard, dict[str, Any]], None]
_WHOLE: dict[str, _Reader] = {CHAT: _chat, MESSAGES: _message, RESPONSES: _response}
_STREAMED: dict[str, _Reader] = {CHAT: _chat_chunk, MESSAGES: _message_event, RESPONSES: _response_event}
