"""What a request says of the conversation that it goes on with, on each of the three routes that have tools.

Chat completions have `messages`, Anthropic's Messages the same with results inside user messages, Responses a list of
items that may begin in the middle, after `previous_response_id`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import orjson

CHAT, MESSAGES, RESPONSES = "/v1/chat/completions", "/v1/messages", "/v1/responses"
ROUTES = (CHAT, MESSAGES, RESPONSES)
_TOOLS = re.compile(rb'"tools"\s*:\s*\[\s*[^\]\s]')
_PASSING = frozenset(("cache_control",))  # marks that clients move from turn to turn
_MODEL_ITEMS = ("function_call", "reasoning")


@dataclass(frozen=True)
class Reply:
    """What the model said between two requests, as the client gives it back: its text and the ids of its calls."""

    text: str = ""
    call_ids: tuple[str, ...] = ()


@dataclass(frozen=True)
class Turn:
    """`digests[i]` stands for all items up to the i-th. `results`: ids of the calls that the items after the model's
    last word give results of. `replies[i]`: what the model said right after item i, where something else follows it.
    """

    digests: tuple[bytes, ...] = ()
    results: tuple[str, ...] = ()
    replies: Mapping[int, Reply] = field(default_factory=dict)
    previous_response: str | None = None

    @property
    def digest(self) -> bytes:
        """Of the whole request."""
        return self.digests[-1] if self.digests else b""


def offers_tools(body: bytes) -> bool:
    """Whether a body has a list of tools. Searches; parses nothing."""
    return _TOOLS.search(body) is not None


def read_turn(path: str, body: Mapping[str, Any]) -> Turn:
    """Never raises: what has another shape than the route's says nothing."""
    items = _items(path, body)
    previous = body.get("previous_response_id") if path == RESPONSES else None
    previous = previous if isinstance(previous, str) else None
    digests, digest = [], (previous or "").encode("utf-8", "replace")
    for item in items:
        digest = blake2b(digest + _canonical(item), digest_size=16).digest()
        digests.append(digest)
    said = [_is_said(item) for item in items]
    last = max((number for number, by_model in enumerate(said) if by_model), default=-1)
    results = tuple(dict.fromkeys(one for item in items[last + 1:] for one in _result_ids(item)))
    return Turn(tuple(digests), results, _replies(items, said), previous)


def _items(path: str, body: Mapping[str, Any]) -> list[Any]:
    if path != RESPONSES:
        messages = body.get("messages")
        first = [{"role": "system", "content": body["system"]}] if path == MESSAGES and body.get("system") else []
        return first + (messages if isinstance(messages, list) else [])
    given = body.get("input")
    first = [{"role": "system", "content": body["instructions"]}] if body.get("instructions") else []
    if isinstance(given, str):
        return [*first, {"role": "user", "content": given}]
    return first + (given if isinstance(given, list) else [])


def _canonical(item: Any) -> bytes:
    """Equal bytes for items that say the same."""
    try:
        return orjson.dumps(_without_marks(item), option=orjson.OPT_SORT_KEYS)
    except (orjson.JSONEncodeError, RecursionError):
        return repr(type(item)).encode()


def _without_marks(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_marks(inner) for key, inner in value.items() if key not in _PASSING}
    if isinstance(value, list):
        return [_without_marks(inner) for inner in value]
    return value


def _is_said(item: Any) -> bool:
    """Whether an item comes from the model."""
    return isinstance(item, dict) and (item.get("role") == "assistant" or item.get("type") in _MODEL_ITEMS)


def _result_ids(item: Any) -> Iterable[str]:
    if not isinstance(item, dict):
        return ()
    if item.get("role") == "tool":
        found = [item.get("tool_call_id")]
    elif item.get("type") == "function_call_output":
        found = [item.get("call_id")]
    else:
        found = [part.get("tool_use_id") for part in _parts(item) if part.get("type") == "tool_result"]
    return [one for one in found if isinstance(one, str) and one]


def _replies(items: list[Any], said: list[bool]) -> dict[int, Reply]:
    found: dict[int, Reply] = {}
    number = 0
    while number < len(items):
        if not said[number]:
            number += 1
            continue
        first = number
        while number < len(items) and said[number]:
            number += 1
        if 0 < first and number < len(items):
            found[first - 1] = _reply(items[first:number])
    return found


def _reply(items: list[dict[str, Any]]) -> Reply:
    texts, ids = [], []
    for item in items:
        if item.get("type") == "function_call":
            ids.append(item.get("call_id"))
        elif item.get("type") != "reasoning":
            content = item.get("content")
            texts.append(content if isinstance(content, str) else "")
            texts.extend(part["text"] for part in _parts(item) if isinstance(part.get("text"), str))
            calls = item.get("tool_calls")
            ids.extend(call.get("id") for call in calls if isinstance(call, dict)) if isinstance(calls, list) else None
            ids.extend(part.get("id") for part in _parts(item) if part.get("type") == "tool_use")
    return Reply("".join(texts).strip(), tuple(one for one in ids if isinstance(one, str)))


def _parts(item: dict[str, Any]) -> list[dict[str, Any]]:
    content = item.get("content")
    return [part for part in content if isinstance(part, dict)] if isinstance(content, list) else []
