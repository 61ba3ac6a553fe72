"""Request traces in Mooncake's format, one JSON object a line:

    {"timestamp": ms, "input_length": tokens, "output_length": tokens, "hash_ids": [one per 512 tokens]}

Equal ids are equal blocks, so a prompt is a chain of 512-token texts whose last may be shorter. Each request is a
program of one call without an agent. A line may also have `session_id`, `tool_wait_after_ms` and `agent_type`; with
`closed_loop` the requests of one session are then one program of one agent, each sent when the one before it and its
wait have ended, and only the first one's timestamp counts. Other fields are not read.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from typing import Any

from tokencake_sglang.emulator.program import Call, Program, Text, ToolCall, Workload
from tokencake_sglang.emulator.workloads import forecast, traces
from tokencake_sglang.emulator.workloads.files import read_text
from tokencake_sglang.emulator.workloads.parameters import Parameter, flag

SHIPPED = "mooncake_conversation_4k.jsonl"
BLOCK = 512


def parameters() -> dict[str, Parameter]:
    return traces.parameters("requests") | {
        "closed_loop": flag(False, "requests with one session_id follow one another after their tool waits")}


def build(seed: str, values: Mapping[str, Any]) -> Workload:
    """Programs of the requests in the window. ValueError names file and line of what cannot be read."""
    trace = traces.name_of(SHIPPED, values["path"])
    lines = [line for line in _lines(values) if line.number("timestamp") / 1000 >= values["start_s"]]
    lines = sorted(lines, key=lambda line: line.number("timestamp"))[: values["limit"]]
    if not lines:
        raise ValueError(f"{trace}: no request at {values['start_s']:g} s or later")
    groups: dict[str, list[traces.Line]] = {}
    for line in lines:
        session = line.values.get("session_id") if values["closed_loop"] else None
        groups.setdefault(f"request-{line.line:05d}" if session is None else f"session-{session}", []).append(line)
    arrived = [group[0].number("timestamp") / 1000 - values["start_s"] for group in groups.values()]
    times = traces.arrival_list(arrived, seed, values)
    programs = tuple(
        _program(f"{trace}/{name}", trace, group, random.Random(f"{seed}/{name}"), values, time)
        for (name, group), time in zip(groups.items(), times, strict=True))
    return Workload(trace, programs, values["horizon_s"])


def _lines(values: Mapping[str, Any]) -> list[traces.Line]:
    file = values["path"] or SHIPPED
    found: list[traces.Line] = []
    for index, text in enumerate(read_text(SHIPPED, values["path"]).splitlines(), 1):
        if not text.strip():
            continue
        try:
            entry = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"{file}:{index}: not JSON: {error.msg}; each line must be one JSON object") from error
        if not isinstance(entry, dict):
            raise ValueError(f"{file}:{index}: {type(entry).__name__}; each line must be one JSON object")
        found.append(traces.Line(file, index, entry))
    return found


def _prompt(line: traces.Line, trace: str) -> tuple[Text, ...]:
    tokens, ids = line.whole("input_length", low=1), line.values.get("hash_ids")
    blocks = -(-tokens // BLOCK)
    if not isinstance(ids, list) or len(ids) != blocks:
        found = f"{len(ids)} ids" if isinstance(ids, list) else repr(ids)
        raise line.error(f"hash_ids is {found}; input_length {tokens} takes a list of {blocks} ids")
    sizes = [BLOCK] * (blocks - 1) + [tokens - BLOCK * (blocks - 1)]
    return tuple(Text(f"{trace}/block/{block}", size) for block, size in zip(ids, sizes, strict=True))


def _program(
    app_id: str, trace: str, group: list[traces.Line], rng: random.Random, values: Mapping[str, Any], time: Any
) -> Program:
    in_session = values["closed_loop"] and group[0].values.get("session_id") is not None
    calls: list[Call] = []
    for index, line in enumerate(group):
        wait_s = line.number("tool_wait_after_ms", 0.0) / 1000 if in_session else 0.0
        told = forecast.forecast_s(values["forecast"], wait_s, rng)
        calls.append(Call(
            f"call-{index:04d}", "session" if in_session else "", str(line.values.get("agent_type") or "request"),
            _prompt(line, trace), line.whole("output_length", low=1), (calls[-1].name,) if calls else (),
            ToolCall(line.values.get("tool_kind") or "tool", wait_s, told) if wait_s > 0 else None,
            last_of_agent=in_session and line is group[-1],
            max_new_tokens=traces.max_new_tokens(line.whole("output_length"), values)))
    return Program(app_id, tuple(calls), time.arrival_s, time.lane)
