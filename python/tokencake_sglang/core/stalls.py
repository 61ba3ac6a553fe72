"""The tool calls of one agent: what is open, what has ended, and the answer to every event about them.

Events may come twice, late, or from several clients at once; the answer depends only on what was folded
before (published port: applied, duplicate, late_finish, conflict).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from tokencake_sglang.core.types import StallView

OPEN_CALLS_MAX = 256
CLOSED_CALLS_KEPT = OPEN_CALLS_MAX  # all calls may be open when the next request ends them


@dataclass(frozen=True)
class Reply:
    """Answer to a control event: an HTTP status, a word for programs, a sentence for people."""

    status: int
    result: str
    message: str


@dataclass
class Call:
    call_id: str
    kind: str
    estimated_duration_s: float | None
    started_at: float
    predicted_end: float
    ended_by: str | None = None  # "finish" or "request"; None while it is open
    outcome: str | None = None

    def same_start(self, kind: str, estimate: float | None) -> bool:
        return self.kind == kind and self.estimated_duration_s == estimate


@dataclass
class CallTable:
    """All calls of one agent by call id; ended ones are remembered so that late and repeated events are known."""

    default_stall_s: float
    open: dict[str, Call] = field(default_factory=dict)
    closed: dict[str, Call] = field(default_factory=dict)
    unnamed: int = 0

    def start(self, now: float, call_id: str | None, kind: str, estimate: float | None) -> Reply:
        name = call_id if call_id is not None else self._unnamed_id()
        known = self.open.get(name) or self.closed.get(name)
        if known is not None:
            if known.same_start(kind, estimate):
                return Reply(200, "duplicate", f"Call {name!r} was started before with the same content.")
            return Reply(409, "conflict", (
                f"Call {name!r} was started before as kind {known.kind!r} with estimate "
                f"{known.estimated_duration_s}; a call id stands for one call. Use a new call_id."))
        if len(self.open) >= OPEN_CALLS_MAX:
            return Reply(409, "conflict", (
                f"This agent has {OPEN_CALLS_MAX} open calls, the most allowed. Finish some of them first."))
        length = estimate if estimate is not None else self.default_stall_s
        self.open[name] = Call(name, kind, estimate, now, now + length)
        return Reply(200, "applied", f"Call {name!r} is open; the tool is expected back in {length:g} s.")

    def finish(self, call_id: str | None, outcome: str) -> Reply:
        if call_id is None:
            if len(self.open) > 1:
                return Reply(409, "conflict", (
                    f"This agent has {len(self.open)} open calls; say which one ended with call_id."))
            call_id = next(iter(self.open), None) or next(reversed(self.closed), None)
        if call_id in self.open:
            self._close(call_id, "finish", outcome)
            return Reply(200, "applied", f"Call {call_id!r} has ended.")
        ended = self.closed.get(call_id) if call_id is not None else None
        if ended is None:
            return Reply(409, "conflict", (
                "A finish came for a call that was not started. Send stall_started first, with the same call_id."))
        if ended.ended_by == "request":
            ended.ended_by, ended.outcome = "finish", outcome
            return Reply(200, "late_finish", f"Call {call_id!r} had ended when the agent's next request came.")
        if ended.outcome != outcome:
            return Reply(409, "conflict", (
                f"Call {call_id!r} ended before with outcome {ended.outcome!r}, now {outcome!r} was sent."
                " The first stands."))
        return Reply(200, "duplicate", f"Call {call_id!r} was finished before with the same content.")

    def end_all(self) -> int:
        """The agent's next request is here, so its tools have returned. Returns how many calls that ended."""
        names = list(self.open)
        for name in names:
            self._close(name, "request", None)
        return len(names)

    def view(self) -> StallView | None:
        if not self.open:
            return None
        calls = list(self.open.values())
        last = max(calls, key=lambda c: c.predicted_end)
        return StallView(last.kind, min(c.started_at for c in calls), last.predicted_end, len(calls))

    def _unnamed_id(self) -> str:
        current = f"#{self.unnamed}"
        if current in self.closed:
            self.unnamed += 1
            current = f"#{self.unnamed}"
        return current

    def _close(self, name: str, ended_by: str, outcome: str | None) -> None:
        call = self.open.pop(name)
        call.ended_by, call.outcome = ended_by, outcome
        self.closed[name] = call
        while len(self.closed) > CLOSED_CALLS_KEPT:
            self.closed.pop(next(iter(self.closed)))
