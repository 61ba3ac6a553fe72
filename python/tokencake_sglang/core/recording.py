"""Turns what a server sees of its requests into the rows of a trace: sessions, rounds, shared lengths, waits.

No token and no text leaves this file, only lengths, times, block numbers, and the kinds that clients gave to agents
and tools. A row goes to the sink when its request has finished. What followed it is known when the next round of its
session has finished too, and goes to the sink then. Times are seconds of any one clock.
"""

from __future__ import annotations

from array import array
from collections.abc import Hashable
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Protocol

from tokencake_sglang.core.fingerprint import GRAIN, BlockIds, Trail
from tokencake_sglang.core.types import AgentIdentity

SESSIONS_KEPT = 16384
CALLS_KEPT = 256  # call ids of one wait
CANDIDATES = 32  # sessions compared with one prompt at the most


@dataclass(frozen=True)
class Row:
    """One finished request. Times are whole milliseconds since the first request, lengths are tokens."""

    session_id: int
    session_arrival_ms: int
    timestamp_ms: int
    round_idx: int
    prefix_len: int
    input_length: int
    output_length: int
    hash_ids: list[int]
    agent_type: str | None
    cached_tokens: int


@dataclass(frozen=True)
class Wait:
    """From the end of a round to the next one's arrival, and what the client said of its tools meanwhile."""

    wait_ms: int = 0
    tool_kind: str | None = None
    tool_forecast_ms: int | None = None
    tool_ms: int | None = None


class Sink(Protocol):
    def row(self, row: Row) -> Any:
        """Keep a row; returns what `wait` is to be called with."""

    def wait(self, ref: Any, wait: Wait) -> None:
        """Complete a row that was kept."""


@dataclass
class _Stall:
    """The tool calls of an agent since its last request, taken together."""

    kind: str
    started_at: float
    predicted_end: float | None
    open: dict[str | None, None] = field(default_factory=dict)
    seen: dict[str | None, None] = field(default_factory=dict)
    ended_at: float | None = None


@dataclass
class _Session:
    number: int
    arrived_at: float
    names: tuple[str, ...] = ()
    rounds: int = 0
    live: int = 0
    trail: Trail | None = None  # of the last round that has a row
    ref: Any = None
    ended_at: float = 0.0
    stall: _Stall | None = None


@dataclass
class _Live:
    session: _Session
    added_at: float
    prompt: array
    trail: Trail
    block_ids: list[int]
    agent_type: str | None
    stall: _Stall | None


class Recording:
    """One trace. `dropped` counts requests without a row: aborted, or ended without an output token."""

    def __init__(self, sink: Sink, sessions_kept: int = SESSIONS_KEPT) -> None:
        self.sink = sink
        self.sessions_kept = sessions_kept
        self.blocks = BlockIds()
        self.rows = self.dropped = 0
        self._live: dict[str, _Live] = {}
        self._sessions: dict[int, _Session] = {}  # the one that was used last is the last
        self._named: dict[str, _Session] = {}
        self._tips: dict[int, dict[int, _Session]] = {}  # where a nameless session may go on: mark -> sessions
        self._count = 0
        self._start: float | None = None

    # -- requests -------------------------------------------------------------------------------------------

    def added(self, now: float, rid: str, prompt: array[int], identity: AgentIdentity | None = None,
              space: Hashable = None, agent_type: str | None = None) -> None:
        """A request with this prompt (array of typecode q) has arrived."""
        self._start = now if self._start is None else self._start
        if rid in self._live:
            return
        trail = Trail(prompt, space)
        session = self._named_session(now, identity) if identity else self._continued(trail, prompt)
        session = session or self._new_session(now, ())
        self._touch(session)
        session.live += 1
        stall, session.stall = session.stall, None
        if stall is not None and stall.ended_at is None:
            stall.ended_at = now
        kind = identity.agent_type if identity else agent_type
        self._live[rid] = _Live(session, now, prompt, trail, self.blocks.of(trail), kind, stall)

    def finished(self, now: float, rid: str, output: array[int], cached_tokens: int) -> None:
        """It has ended with this output."""
        live = self._live.pop(rid, None)
        if live is None:
            return
        session = live.session
        session.live -= 1
        if len(output) == 0:
            self._drop(session)
            return
        before = session.trail
        prefix = before.shared(live.trail, live.prompt) if before is not None else 0
        row = Row(session.number, self._ms(session.arrived_at), self._ms(live.added_at), session.rounds, prefix,
                  len(live.prompt), len(output), live.block_ids, live.agent_type, cached_tokens)
        if before is not None:
            self._close(session, live)
        self._leave_tip(session)
        live.trail.extend(output)
        session.ref, session.trail, session.ended_at = self.sink.row(row), live.trail, now
        session.rounds += 1
        self.rows += 1
        self._set_tip(session)

    def vanished(self, rid: str) -> None:
        """It was aborted before it ran, or is otherwise gone."""
        live = self._live.pop(rid, None)
        if live is not None:
            live.session.live -= 1
            self._drop(live.session)

    # -- events ---------------------------------------------------------------------------------------------

    def event(self, now: float, event: dict[str, Any]) -> None:
        """A client event as `server.schema` lets it through. One about an agent that was not seen changes nothing."""
        session = next((self._named[name] for name in (event.get("agent_id"), event.get("lifecycle_id"))
                        if name in self._named), None)
        if session is None:
            return
        if event["event"] == "agent_finished":
            self._forget(session)
        elif event["event"] == "stall_started":
            self._stall_started(now, session, event)
        elif session.stall is not None:
            self._stall_finished(now, session.stall, event.get("call_id"))

    def _stall_started(self, now: float, session: _Session, event: dict[str, Any]) -> None:
        estimate, call = event.get("estimated_duration_s"), event.get("call_id")
        stall = session.stall
        if stall is None:
            stall = session.stall = _Stall(event["kind"], now, None)
        if len(stall.seen) >= CALLS_KEPT or (call in stall.open if call is None else call in stall.seen):
            return
        stall.open[call] = stall.seen[call] = None
        stall.ended_at = None
        if estimate is not None and (stall.predicted_end is None or now + estimate > stall.predicted_end):
            stall.predicted_end, stall.kind = now + estimate, event["kind"]

    def _stall_finished(self, now: float, stall: _Stall, call: str | None) -> None:
        if call is None and len(stall.open) == 1:
            call = next(iter(stall.open))
        if call in stall.open:
            del stall.open[call]
            stall.ended_at = None if stall.open else now

    # -- sessions -------------------------------------------------------------------------------------------

    def _named_session(self, now: float, identity: AgentIdentity) -> _Session:
        names = tuple(name for name in (identity.agent_id, identity.lifecycle_id) if name)
        session = self._named.get(identity.key)
        if session is None:
            return self._new_session(now, names)
        for name in (*session.names, *names):
            if name == identity.key or name in names:
                self._named[name] = session
            elif self._named.get(name) is session:
                del self._named[name]
        session.names = names
        return session

    def _new_session(self, now: float, names: tuple[str, ...]) -> _Session:
        session = _Session(self._count, now, names)
        self._count += 1
        self._named.update(dict.fromkeys(names, session))
        return session

    def _continued(self, trail: Trail, prompt: array[int]) -> _Session | None:
        """The nameless session whose last round this prompt continues best; it is no longer open to others then."""
        if not self._tips:
            return None
        for grains in range(len(prompt) // GRAIN, -1, -1):
            found = self._tips.get(trail.mark(grains))
            for session in islice(reversed(found.values()), CANDIDATES) if found else ():
                if session.trail.continued_by(trail, prompt):
                    self._leave_tip(session)
                    return session
        return None

    def _set_tip(self, session: _Session) -> None:
        if not session.names and session.live == 0 and session.trail is not None and session.number in self._sessions:
            self._tips.setdefault(session.trail.entry, {})[session.number] = session

    def _leave_tip(self, session: _Session) -> None:
        if session.trail is None:
            return
        found = self._tips.get(session.trail.entry, {})
        if found.pop(session.number, None) is not None and not found:
            del self._tips[session.trail.entry]

    def _touch(self, session: _Session) -> None:
        self._sessions.pop(session.number, None)
        self._sessions[session.number] = session
        while len(self._sessions) > self.sessions_kept:
            self._forget(next(iter(self._sessions.values())))

    def _forget(self, session: _Session) -> None:
        """It can have no further round; what it has is in the sink already."""
        self._sessions.pop(session.number, None)
        self._leave_tip(session)
        for name in session.names:
            if self._named.get(name) is session:
                del self._named[name]

    # -- rows -----------------------------------------------------------------------------------------------

    def _close(self, session: _Session, following: _Live) -> None:
        """Complete the last row by what lay between it and the round that follows."""
        stall = following.stall
        wait_ms = max(0, round((following.added_at - session.ended_at) * 1000))
        if stall is None:
            wait = Wait(wait_ms)
        else:
            told = None if stall.predicted_end is None else round((stall.predicted_end - stall.started_at) * 1000)
            wait = Wait(wait_ms, stall.kind, told, round((stall.ended_at - stall.started_at) * 1000))
        self.sink.wait(session.ref, wait)

    def _drop(self, session: _Session) -> None:
        self.dropped += 1
        self._set_tip(session)

    def _ms(self, at: float) -> int:
        return round((at - self._start) * 1000)
