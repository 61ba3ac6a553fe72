"""Envelopes `kv_hints` in the body of a generation request. They are only read: the body reaches SGLang as it came.

An action for the request's own agent is carried out when the answer has ended, so that it finds the KV of this request;
one for another agent at once. Nobody is told of the outcome; the live state shows it. Nothing here is ever an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from tokencake_sglang.core.errors import MetadataError
from tokencake_sglang.server.actions import parse_envelope
from tokencake_sglang.server.background import Background
from tokencake_sglang.server.dialects.dialect import at, lookup
from tokencake_sglang.server.routes import Gateway

PLACES = (at("kv_hints"), at("kv_transfer_params.kv_hint"), at("kv_transfer_params.kv_hints"))
NEEDLE = b'"kv_hint'


@dataclass(frozen=True)
class Hints:
    """Checked actions: for other agents, and for the agent that sent the request."""

    at_once: tuple[dict[str, Any], ...] = ()
    afterwards: tuple[dict[str, Any], ...] = ()


def find_hints(body: bytes, metadata: Mapping[str, str] | None) -> Hints:
    """The actions in a request's body. `metadata`: of its agent, where it was found outside of the body."""
    if NEEDLE not in body:
        return Hints()
    try:
        values = orjson.loads(body)
    except orjson.JSONDecodeError:
        return Hints()
    named = metadata or lookup(values, ("tokencake",)) or lookup(values, ("agent_metadata",))
    own = lookup(named, ("agent_id",)) or lookup(named, ("lifecycle_id",))
    own = own if isinstance(own, str) else None
    found = [action for place in PLACES for action in _actions(lookup(values, place), own)]
    is_own = [own is not None and own in (one.get("agent_id"), one.get("lifecycle_id")) for one in found]
    return Hints(tuple(a for a, mine in zip(found, is_own, strict=True) if not mine),
                 tuple(a for a, mine in zip(found, is_own, strict=True) if mine))


def _actions(envelope: Any, own: str | None) -> list[dict[str, Any]]:
    if envelope is None:
        return []
    try:
        return [one.action for one in parse_envelope(envelope, own)[1] if one.action is not None]
    except MetadataError:
        return []


class HintSender:
    """Hands actions to the scheduler without keeping a request waiting for it."""

    def __init__(self, gateway: Gateway) -> None:
        self._calls = Background(gateway, "the actions of a request could not be handed on")

    def send(self, actions: tuple[dict[str, Any], ...]) -> None:
        """Those that the scheduler has no time for are dropped."""
        if actions:
            self._calls.send("actions", {"actions": list(actions)})
