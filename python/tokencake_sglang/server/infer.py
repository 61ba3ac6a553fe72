"""The agent of a request whose client sent no `tokencake` object: what to look at, and the end of an agent.

A request that speaks no dialect costs a look at its header names and one search of its body.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from tokencake_sglang.server.background import Background
from tokencake_sglang.server.dialects import HEADER_NAMES, NEEDLES
from tokencake_sglang.server.routes import Gateway

_HEADERS = {name.encode(): name for name in HEADER_NAMES}
# A quote within a JSON text is escaped, so that a key which a prompt only quotes is not found.
_KEYS = re.compile(b'"(?:' + "|".join(map(re.escape, sorted(NEEDLES))).encode() + b')"\\s*:')


def header_hints(headers: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """The headers (as ASGI gives them) that a dialect reads; the first of a name counts."""
    found: dict[str, str] = {}
    for name, value in headers:
        known = _HEADERS.get(name.lower())
        if known is not None:
            found.setdefault(known, value.decode("latin-1"))
    return found


def may_speak(body: bytes) -> bool:
    """Whether the body has a key with which a dialect names an agent. Searches; parses nothing."""
    return _KEYS.search(body) is not None


class AgentEnds:
    """Ends agents whose client said that a request was the last, without keeping the answer waiting for it."""

    def __init__(self, gateway: Gateway) -> None:
        self._calls = Background(gateway, "an agent could not be ended after its last request")

    def end(self, agent_id: str, program: bool = False) -> None:
        """Send the event `agent_finished`, or `program_finished`; to be called once the answer has ended."""
        event = "program_finished" if program else "agent_finished"
        self._calls.send("event", {"event": event, "agent_id": agent_id})
