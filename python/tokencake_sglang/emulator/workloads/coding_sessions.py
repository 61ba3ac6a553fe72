"""Coding-agent sessions: long conversations with many short tool calls, by the statistics of TraceLab.

A session is a program of one agent (more with `sub_agents`): user turns (requests), each a step and then tool steps.
A step's prompt is the one before it plus `growth`: as much of the previous output as fits, then tool result or user
text. Reaching the context limit compacts: the prompt is cut to a share of its length and shares nothing but the system
prompt with what was before. After a step the agent waits for a tool, or, at the end of a request, for its user, which
is a tool of kind "human". Numbers: coding_sessions.json, whose `generator` gives the steps.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tokencake_sglang.emulator.program import Call, Output, Part, Program, Text, ToolCall, Workload
from tokencake_sglang.emulator.workloads import arrivals, forecast
from tokencake_sglang.emulator.workloads.distributions import MEAN_DRAWS, mean, parameter, resolve, sample
from tokencake_sglang.emulator.workloads.files import read_json
from tokencake_sglang.emulator.workloads.parameters import Parameter, choice, flag, number, path, whole
from tokencake_sglang.emulator.workloads.traces import MAX_NEW_TOKENS, max_new_tokens

SCHEMA = "coding-sessions/1"
SYSTEM = "coding_sessions/system"
MAX_STEPS = 1000  # of one session, where the scale has no limit
SECONDS_PER_TOKEN = 0.001  # no device decodes one sequence faster; only used to know when a lane is full
CALLS_PER_STEP = ((1, 0.80), (2, 0.94), (3, 0.97), (4, 1.0))  # cumulative; the file gives 0.06 to 3 and 4 together


def parameters() -> dict[str, Parameter]:
    known = {
        "path": path("a parameter file of the same format, instead of the shipped one"),
        "scale": choice("scaled_32k", "which parameters of the file", "scaled_32k", "full"),
        "sessions": whole(60, "sessions at a time (closed), or in all (poisson, even)"),
        "sub_agents": flag(False, "some tool calls start sub-agents, for which the parent waits"),
        "max_steps": whole(None, "longest session (None: the scale's limit, else 1,000 steps)"),
        "max_context": whole(None, "prompt and output together (None: the scale's limits)", low=1024),
        "max_new_tokens": whole(None, MAX_NEW_TOKENS),
        "tool_wait": parameter(None, "duration of one tool call (None: the scale's)"),
        "forecast": forecast.parameter("exact"),
        "human_forecast": forecast.parameter("none", "the same for the wait for the user"),
        "horizon_s": number(1200.0, "end of the run; lanes are filled up to it", above=True),
    }
    shared = arrivals.parameters(qps=0.05, arrival="closed", ramp_s=60.0)
    return known | {name: shared[name] for name in shared if name != "lanes"}


def build(seed: str, values: Mapping[str, Any]) -> Workload:
    """Sessions in lanes, as many as keep every lane busy up to the horizon; or a given number that arrive."""
    scale = _Scale.read(values)
    horizon_s = values["horizon_s"]
    if values["arrival"] == "closed":
        programs = _lanes(scale, seed, {**values, "lanes": values["sessions"]})
    else:
        times = arrivals.arrivals(values["sessions"], seed, {**values, "lanes": 1})
        programs = [
            _session(scale, f"session-{index:03d}", f"{seed}/{index}", horizon_s).program(time)
            for index, time in enumerate(times)]
    return Workload("coding_sessions", tuple(programs), horizon_s)


def _lanes(scale: _Scale, seed: str, values: Mapping[str, Any]) -> list[Program]:
    found: list[tuple[int, int, Program]] = []
    for lane in range(values["lanes"]):
        busy_s, position = 0.0, 0
        while busy_s <= values["horizon_s"]:
            start = arrivals.in_lane(lane, position, values)
            session = _session(scale, f"session-{lane:03d}-{position:02d}", f"{seed}/{lane}/{position}",
                               values["horizon_s"])
            found.append((position, lane, session.program(start)))
            busy_s += session.least_s + start.arrival_s
            position += 1
    return [program for _, _, program in sorted(found, key=lambda entry: entry[:2])]


@dataclass(frozen=True)
class _Scale:
    """The parameters of one scale, with the user's values applied."""

    figures: Mapping[str, Any]
    values: Mapping[str, Any]
    tool_wait: Any
    max_steps: int
    child_tokens: int
    mean_wait_s: float
    mean_human_s: float

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> _Scale:
        file = read_json("coding_sessions.json", values["path"], SCHEMA)
        try:
            figures = file["scales"][values["scale"]]
            wait = figures["tool_wait_s"] if values["tool_wait"] is None else resolve(values["tool_wait"])
            child = re.search(r"([\d,]+) own tokens", figures["sub_agents"]["child"])
            rng = random.Random("mean")
            return cls(
                figures, values, wait, values["max_steps"] or figures.get("max_steps_per_session", MAX_STEPS),
                int(child.group(1).replace(",", "")) if child else 500,
                sum(_step_wait(wait, rng)[0] for _ in range(MEAN_DRAWS)) / MEAN_DRAWS, mean(figures["human_wait_s"]))
        except (KeyError, TypeError) as error:
            name = values["path"] or "coding_sessions.json"
            raise ValueError(f"{name}: {error!r} while reading scale {values['scale']}") from error


def _step_wait(model: Any, rng: random.Random) -> tuple[float, int]:
    """The wait for the slowest of a step's parallel tool calls, and how many there are."""
    uniform = rng.random()
    calls = next(count for count, until in CALLS_PER_STEP if uniform < until)
    return max(sample(model, rng) for _ in range(calls)), calls


@dataclass
class _Session:
    """A session being written. `least_s`: a lower bound of its length."""

    scale: _Scale
    app_id: str
    rng: random.Random
    limit: int
    spawns: bool
    calls: list[Call] = field(default_factory=list)
    outputs: dict[str, int] = field(default_factory=dict)
    least_s: float = 0.0

    def program(self, arrival: arrivals.Arrival) -> Program:
        return Program(self.app_id, tuple(self.calls), arrival.arrival_s, arrival.lane)

    def draw(self, name: str) -> int:
        return max(1, round(sample(self.scale.figures[name], self.rng)))


@dataclass
class _Conversation:
    """The prompt of one agent as it grows: its parts, their tokens, and the call before."""

    agent: str
    agent_type: str
    prompt: list[Part]
    tokens: int
    after: tuple[str, ...] = ()
    previous: str | None = None
    compactions: int = 0


def _session(scale: _Scale, app_id: str, seed: str, horizon_s: float | None) -> _Session:
    rng = random.Random(f"{seed}/session")
    figures = scale.figures
    limit = scale.values["max_context"] or int(sample(figures["context_limit_tokens"], rng))
    session = _Session(scale, app_id, rng, limit, scale.values["sub_agents"])
    session.spawns &= rng.random() < figures["sub_agents"]["p_session"]
    system = figures["shared_system_prompt_tokens"]
    tokens = session.draw("first_prompt_tokens")
    tokens = min(tokens, limit // 2)
    own = max(tokens - system, min(tokens, 128))
    prompt: list[Part] = [Text(f"{app_id}/first", own)]
    if tokens > own:
        prompt.insert(0, Text(SYSTEM, tokens - own))
    plan = _plan(scale, rng)[: scale.max_steps]
    plan[-1] = "end"
    _converse(session, _Conversation("main", "coding_agent", prompt, tokens), plan, horizon_s)
    return session


def _plan(scale: _Scale, rng: random.Random) -> list[str]:
    """What follows each step: "tool", "human", or "end" after the last."""
    figures = scale.figures["session"]
    one_shot = rng.random() < figures["p_one_shot"]
    shape = figures["one_shot"] if one_shot else figures["interactive"]
    requests = 1 if one_shot else int(sample(shape["requests"], rng))
    plan: list[str] = []
    for _ in range(requests):
        steps = int(sample(shape["tool_steps" if one_shot else "tool_steps_per_request"], rng))
        plan += ["tool"] * steps + ["human"]
        if len(plan) >= scale.max_steps:
            break
    return plan[:-1] + ["end"]


def _converse(session: _Session, talk: _Conversation, plan: list[str], horizon_s: float | None) -> None:
    """Writes the calls of one agent. Steps that cannot begin before the horizon are left out."""
    came_from = "first"
    main = talk.agent_type == "coding_agent"
    for step, follows in enumerate(plan):
        output = min(session.draw("output_tokens"), session.limit // 4)
        if came_from != "first":
            _grow(session, talk, step, output, came_from)
        name = f"{talk.agent}-{step:04d}"
        tool, children = _what_follows(session, follows, spawns=main and session.spawns)
        if main:
            session.least_s += output * SECONDS_PER_TOKEN + (tool.duration_s if tool else 0.0)
        last = follows == "end" or (main and horizon_s is not None and session.least_s > horizon_s)
        session.calls.append(Call(
            name, talk.agent, talk.agent_type, tuple(talk.prompt), output, talk.after, tool, last_of_agent=last,
            max_new_tokens=max_new_tokens(output, session.scale.values)))
        session.outputs[name] = output
        if last:
            return
        talk.previous = name
        talk.after = (name, *(_child(session, name, number, horizon_s) for number in range(children)))
        came_from = follows


def _grow(session: _Session, talk: _Conversation, step: int, output: int, came_from: str) -> None:
    figures = session.scale.figures
    previous = session.outputs[talk.previous or ""]
    growth = session.draw("growth_per_user_turn_tokens" if came_from == "human" else "growth_per_tool_turn_tokens")
    growth = max(growth, round(figures["growth_floor_from_previous_output"] * previous))
    keep = figures["compaction"]["keep_uniform"]
    share = keep[0] + (keep[1] - keep[0]) * session.rng.random()
    if talk.tokens + growth + output > session.limit:
        talk.tokens = max(2, min(round(share * (talk.tokens + growth)), session.limit - output))
        system = min(figures["shared_system_prompt_tokens"], talk.tokens - 1)
        talk.compactions += 1
        summary = Text(f"{session.app_id}/{talk.agent}/compaction-{talk.compactions}", talk.tokens - system)
        talk.prompt = [Text(SYSTEM, system), summary]
        return
    kept = min(growth, previous)
    talk.prompt.append(Output(talk.previous or "", None if kept == previous else kept))
    if growth > kept:
        talk.prompt.append(Text(f"{session.app_id}/{talk.agent}/step-{step}", growth - kept))
    talk.tokens += growth


def _what_follows(session: _Session, follows: str, spawns: bool) -> tuple[ToolCall | None, int]:
    """The wait after a step, and how many sub-agents it starts instead. A tool that takes no time is no wait."""
    scale, rng = session.scale, session.rng
    values = scale.values
    if follows == "end":
        return None, 0
    if follows == "human":
        duration_s, knob, mean_s = sample(scale.figures["human_wait_s"], rng), "human_forecast", scale.mean_human_s
        kind = "human"
    else:
        duration_s, calls = _step_wait(scale.tool_wait, rng)
        kind, knob, mean_s = "tool", "forecast", scale.mean_wait_s
        figures = scale.figures["sub_agents"]
        share = figures["share_of_tool_calls"] / figures["p_session"]
        if spawns and rng.random() < 1 - (1 - share) ** calls:
            return ToolCall("sub_agent", 0.0, None, until_next=True), int(sample(figures["children_per_spawn"], rng))
    told = forecast.forecast_s(values[knob], duration_s, rng, mean_s=mean_s)
    return (ToolCall(kind, duration_s, told) if duration_s > 0 else None), 0


def _child(session: _Session, parent: str, number: int, horizon_s: float | None) -> str:
    """Writes a sub-agent's calls; returns the name of the last."""
    scale, agent = session.scale, f"{parent}.sub{number}"
    system = min(scale.figures["shared_system_prompt_tokens"], session.limit // 4)
    own = min(scale.child_tokens, session.limit // 4)
    prompt: list[Part] = [Text(SYSTEM, system), Text(f"{session.app_id}/{agent}/first", own)]
    steps = int(sample(scale.figures["session"]["one_shot"]["tool_steps"], session.rng))
    plan = (["tool"] * steps)[: scale.max_steps - 1] + ["end"]
    _converse(session, _Conversation(agent, "sub_agent", prompt, system + own, (parent,)), plan, horizon_s)
    return session.calls[-1].name
