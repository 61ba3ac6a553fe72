"""Traces of agent sessions in TraceLab's replay layout, one round a line, as CSV with a header:

    session_id, arrival_time (ms, optional), round_idx, prefix_len, input_len, output_len, tool_wait_after_ms

A round's prompt is `prefix_len` tokens of the previous round's prompt and output, then `input_len` new ones. A shorter
prefix cuts, also inside an output: its first tokens stay shared. What a prefix claims beyond prompt and output of the
round before is new text, since nothing in the trace says what it was. The prefix of a session's first round is a text
that all sessions share. Each session is one program of one agent; a wait of 0 is no tool call. Other columns are not
read.
"""

from __future__ import annotations

import csv
import random
from collections.abc import Mapping
from typing import Any

from tokencake_sglang.emulator.program import Call, Output, Part, Program, Text, ToolCall, Workload
from tokencake_sglang.emulator.workloads import forecast, traces
from tokencake_sglang.emulator.workloads.files import read_text
from tokencake_sglang.emulator.workloads.parameters import Parameter
from tokencake_sglang.emulator.workloads.parts import cut, prompt_tokens

SHIPPED = "multi_session_example.csv"
NEEDED = ("session_id", "round_idx", "prefix_len", "input_len", "output_len", "tool_wait_after_ms")


def parameters() -> dict[str, Parameter]:
    return traces.parameters("sessions")


def build(seed: str, values: Mapping[str, Any]) -> Workload:
    """One program a session. ValueError names file and line of what cannot be read."""
    name = traces.name_of(SHIPPED, values["path"])
    sessions = _sessions(values)
    arrived = {session: _arrival_s(rounds[0], values) for session, rounds in sessions.items()}
    kept = sorted((session for session in sessions if arrived[session] >= values["start_s"]), key=arrived.__getitem__)
    kept = kept[: values["limit"]]
    if not kept:
        raise ValueError(f"{name}: no session arrives at {values['start_s']:g} s or later")
    times = traces.arrival_list([arrived[session] - values["start_s"] for session in kept], seed, values)
    programs = tuple(
        _program(f"{name}-{session}", name, sessions[session], random.Random(f"{seed}/{session}"), values, time)
        for session, time in zip(kept, times, strict=True))
    return Workload(name, programs, values["horizon_s"])


def _sessions(values: Mapping[str, Any]) -> dict[str, list[traces.Line]]:
    file = values["path"] or SHIPPED
    reader = csv.DictReader(read_text(SHIPPED, values["path"]).splitlines(), skipinitialspace=True)
    missing = [column for column in NEEDED if column not in (reader.fieldnames or ())]
    if missing:
        raise ValueError(f"{file}:1: no column {', '.join(missing)}; the first line must name {', '.join(NEEDED)}")
    sessions: dict[str, list[traces.Line]] = {}
    for row in reader:
        line = traces.Line(file, reader.line_num, row)
        if None in row or None in row.values():
            raise line.error(f"not as many values as the {len(reader.fieldnames or ())} columns of the header")
        rounds = sessions.setdefault(row["session_id"], [])
        if rounds and line.whole("round_idx") <= rounds[-1].whole("round_idx"):
            raise line.error(f"round_idx is {row['round_idx']} after {rounds[-1].values['round_idx']} of session "
                             f"{row['session_id']}; the rounds of a session must ascend")
        rounds.append(line)
    if not sessions:
        raise ValueError(f"{file}: no round in it")
    return sessions


def _arrival_s(first: traces.Line, values: Mapping[str, Any]) -> float:
    if values["arrival"] != "trace":
        return first.number("arrival_time", 0.0) / 1000
    if "arrival_time" not in first.values:
        raise ValueError(f"{first.file}:1: no column arrival_time; add it (ms) or give arrival poisson, even or closed")
    return first.number("arrival_time") / 1000


def _program(
    app_id: str, trace: str, rounds: list[traces.Line], rng: random.Random, values: Mapping[str, Any], time: Any
) -> Program:
    calls: list[Call] = []
    outputs: dict[str, int] = {}
    for line in rounds:
        prefix, fresh = line.whole("prefix_len"), line.whole("input_len")
        name = f"round-{line.whole('round_idx'):04d}"
        if prefix + fresh == 0:
            raise line.error("prefix_len and input_len are both 0; a prompt needs at least one token")
        prompt: tuple[Part, ...]
        if calls:
            before = (*calls[-1].prompt, Output(calls[-1].name))
            prompt = cut(before, prefix, outputs)
            fresh += prefix - prompt_tokens(prompt, outputs)
        else:
            prompt = (Text(f"{trace}/system", prefix),) if prefix else ()
        if fresh:
            prompt = (*prompt, Text(f"{app_id}/{name}", fresh))
        outputs[name] = line.whole("output_len", low=1)
        wait_s = line.number("tool_wait_after_ms") / 1000
        told = forecast.forecast_s(values["forecast"], wait_s, rng)
        calls.append(Call(
            name, "session", "session", prompt, outputs[name], (calls[-1].name,) if calls else (),
            ToolCall("tool", wait_s, told) if wait_s > 0 else None, last_of_agent=line is rounds[-1],
            max_new_tokens=traces.max_new_tokens(outputs[name], values)))
    return Program(app_id, tuple(calls), time.arrival_s, time.lane)
