"""The tool calls of one agent: what is open, what has ended, and the answer to every event about them.

Events may come twice, late, or from several clients at once; the answer depends only on what was folded
before (published port: applied, duplicate, late_finish, conflict).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace

from tokencake_sglang.core.forecast import Forecast, Forecaster, Stages, latest, stage_kind
from tokencake_sglang.core.forecast.presets import HUMAN_KINDS
from tokencake_sglang.core.types import StallView

OPEN_CALLS_MAX = 256
CLOSED_CALLS_KEPT = OPEN_CALLS_MAX  # all calls may be open when the next request ends them

StageList = tuple[tuple[str, float], ...]  # names and estimates in seconds


@dataclass(frozen=True)
class Reply:
    """Answer to a control event: an HTTP status, a word for programs, a sentence for people."""

    status: int
    result: str
    message: str


@dataclass(frozen=True)
class Lesson:
    """A call, or a stage of one, took so many seconds; its client had given this estimate."""

    kind: str
    estimate_s: float | None
    duration_s: float


@dataclass
class Call:
    call_id: str
    kind: str
    estimated_duration_s: float | None
    started_at: float
    stages: StageList = ()
    p90_s: float | None = None  # what nine of ten such calls stay below, as the client says
    finished_stages: dict[str, None] = field(default_factory=dict)
    stage_began_at: float | None = None  # when a stage finished last; None: none has
    revised: tuple[float, float] | None = None  # when its client said anew how long it takes from then on, and that
    ended_by: str | None = None  # "finish", "request" or "silence"; None while it is open
    outcome: str | None = None
    inferred: bool = False  # from an answer, not told by the client

    def same_start(self, kind: str, estimate: float | None, stages: StageList, p90_s: float | None) -> bool:
        return (self.kind, self.estimated_duration_s, self.stages, self.p90_s) == (kind, estimate, stages, p90_s)

    @property
    def estimate_s(self) -> float | None:
        """Of the whole call: what its client gave, else the sum of its stages."""
        if self.estimated_duration_s is None and self.stages:
            return sum(seconds for _, seconds in self.stages)
        return self.estimated_duration_s

    def remaining_stages(self) -> StageList:
        return tuple(stage for stage in self.stages if stage[0] not in self.finished_stages)

    def forecast(self, now: float, forecaster: Forecaster, agent_type: str | None) -> Forecast:
        if self.revised is not None:
            at, left_s = self.revised
            rest = forecaster.predict(agent_type, self.kind, left_s, None, now - at)
            return replace(rest, expected_s=rest.expected_s + (at - self.started_at))
        stages = None
        if self.stages:
            since = None if self.stage_began_at is None else now - self.stage_began_at
            stages = Stages(self.remaining_stages(), since)
        return forecaster.predict(agent_type, self.kind, self.estimate_s, stages, now - self.started_at, self.p90_s)


@dataclass
class CallTable:
    """All calls of one agent by call id; ended ones are remembered so that late and repeated events are known."""

    open: dict[str, Call] = field(default_factory=dict)
    closed: dict[str, Call] = field(default_factory=dict)
    unnamed: int = 0
    _lessons: list[Lesson] = field(default_factory=list)

    @property
    def waits_for_tools(self) -> bool:
        """Whether any open call is of something else than a person, who may stay away for long."""
        return any(call.kind not in HUMAN_KINDS for call in self.open.values())

    def start(
        self, now: float, call_id: str | None, kind: str, estimate: float | None, stages: StageList = (),
        inferred: bool = False, p90_s: float | None = None,
    ) -> Reply:
        name = call_id if call_id is not None else self._unnamed_id()
        known = self.open.get(name) or self.closed.get(name)
        if known is not None:
            if known.same_start(kind, estimate, stages, p90_s):
                return Reply(200, "duplicate", f"Call {name!r} was started before with the same content.")
            return Reply(409, "conflict", (
                f"Call {name!r} was started before as kind {known.kind!r} with estimate "
                f"{known.estimated_duration_s} and {len(known.stages)} stages; a call id stands for one call."
                " Use a new call_id."))
        if len(self.open) >= OPEN_CALLS_MAX:
            return Reply(409, "conflict", (
                f"This agent has {OPEN_CALLS_MAX} open calls, the most allowed. Finish some of them first."))
        self.open[name] = Call(name, kind, estimate, now, stages, p90_s, inferred=inferred)
        return Reply(200, "applied", f"Call {name!r} is open.")

    def finish(self, now: float, call_id: str | None, outcome: str) -> Reply:
        if call_id is None:
            if len(self.open) > 1:
                return self._which_one()
            call_id = next(iter(self.open), None) or next(reversed(self.closed), None)
        if call_id in self.open:
            if outcome == "ok":
                self._learn_from(now, self.open[call_id])
            self._close(call_id, "finish", outcome)
            return Reply(200, "applied", f"Call {call_id!r} has ended.")
        ended = self.closed.get(call_id) if call_id is not None else None
        if ended is None:
            return Reply(409, "conflict", (
                "A finish came for a call that was not started. Send stall_started first, with the same call_id."))
        if ended.ended_by in ("request", "silence"):
            ended.ended_by, ended.outcome = "finish", outcome
            return Reply(200, "late_finish", f"Call {call_id!r} had ended when the agent's next request came.")
        if ended.outcome != outcome:
            return Reply(409, "conflict", (
                f"Call {call_id!r} ended before with outcome {ended.outcome!r}, now {outcome!r} was sent."
                " The first stands."))
        return Reply(200, "duplicate", f"Call {call_id!r} was finished before with the same content.")

    def revise(self, now: float, call_id: str | None, left_s: float) -> Reply:
        """The client of an open call expects it to end in `left_s` seconds. What is learnt from the call's end is
        about its first estimate."""
        if call_id is None:
            if len(self.open) > 1:
                return self._which_one()
            call_id = next(iter(self.open), None)
        call = self.open.get(call_id) if call_id is not None else None
        if call is None:
            return Reply(409, "conflict", f"No open call has the id {call_id!r}. Send the id of a call that is open.")
        call.revised = now, left_s
        return Reply(200, "applied", f"Call {call_id!r} is expected to end in {left_s:.3g} s.")

    def finish_stage(self, now: float, call_id: str | None, stage: str) -> Reply:
        """A stage of an open call is over; stages may finish in any order, and the next begins then."""
        if call_id is None:
            if len(self.open) > 1:
                return self._which_one()
            call_id = next(iter(self.open), None) or next(reversed(self.closed), None)
        call = self.open.get(call_id) or self.closed.get(call_id) if call_id is not None else None
        if call is None:
            return Reply(409, "conflict", (
                "A stage finished of a call that was not started. Send stall_started first, with the same call_id."))
        estimates = dict(call.stages)
        if stage not in estimates:
            names = ", ".join(repr(name) for name in estimates) or "none"
            return Reply(409, "conflict", (
                f"Call {call.call_id!r} has no stage {stage!r}; it was started with the stages: {names}."))
        if stage in call.finished_stages:
            return Reply(200, "duplicate", f"Stage {stage!r} of call {call.call_id!r} was finished before.")
        if call.ended_by is not None:
            return Reply(200, "late_finish", f"Call {call.call_id!r} has ended already.")
        self._learn_stage(now, call, stage, estimates[stage])
        call.finished_stages[stage] = None
        call.stage_began_at = now
        return Reply(200, "applied", f"Stage {stage!r} of call {call.call_id!r} has ended.")

    def drop_inferred(self) -> int:
        """The client tells of its calls itself: what was inferred had never been. Returns how many calls it was."""
        names = [name for name, call in self.open.items() if call.inferred]
        for name in names:
            del self.open[name]
        return len(names)

    def end_all(self, now: float | None = None, only: Collection[str] | None = None) -> int:
        """The agent's next request is here (at `now`), so its tools have returned; or the agent is gone (None), and
        nobody knows. `only`: no other calls than these. Returns how many calls that ended."""
        names = [name for name in self.open if only is None or name in only]
        if now is not None and len(names) == 1:
            self._learn_from(now, self.open[names[0]])
        for name in names:
            self._close(name, "request", None)
        return len(names)

    def give_up(self, now: float, at_least_s: float) -> int:
        """What was inferred to be a stall and has lasted so long may last for ever: end it. It teaches that such stalls
        are long, so that the KV of others like it gives way earlier. Returns how many calls that ended."""
        names = [name for name, call in self.open.items() if call.inferred and now - call.started_at >= at_least_s]
        for name in names:
            self._learn_from(now, self.open[name])
            self._close(name, "silence", None)
        return len(names)

    def take_lessons(self) -> list[Lesson]:
        """What the calls that ended since the last time have taught, each once."""
        lessons, self._lessons = self._lessons, []
        return lessons

    def view(self, now: float, forecaster: Forecaster, agent_type: str | None) -> StallView | None:
        """The open calls taken together, as of now: the one that is expected to end last gives kind and end."""
        if not self.open:
            return None
        if len(self.open) == 1:
            (only,) = self.open.values()
            forecast = only.forecast(now, forecaster, agent_type)
            return StallView(only.kind, only.started_at, only.started_at + forecast.expected_s, 1, forecast)
        calls = [(call, call.forecast(now, forecaster, agent_type)) for call in self.open.values()]
        last, its_forecast = max(calls, key=lambda one: one[0].started_at + one[1].expected_s)
        return StallView(
            last.kind, min(call.started_at for call, _ in calls), last.started_at + its_forecast.expected_s,
            len(calls), latest(forecast for _, forecast in calls))

    def _learn_from(self, now: float, call: Call) -> None:
        self._lessons.append(Lesson(call.kind, call.estimate_s, now - call.started_at))
        left = call.remaining_stages()
        if call.finished_stages and len(left) == 1:
            self._learn_stage(now, call, *left[0])

    def _learn_stage(self, now: float, call: Call, stage: str, estimate_s: float) -> None:
        began = call.started_at if call.stage_began_at is None else call.stage_began_at
        self._lessons.append(Lesson(stage_kind(call.kind, stage), estimate_s, now - began))

    def _which_one(self) -> Reply:
        return Reply(409, "conflict", f"This agent has {len(self.open)} open calls; say which one ended with call_id.")

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
