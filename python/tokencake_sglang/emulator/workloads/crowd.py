"""Many agents that the server knows, of which only some are at work: what one scheduler step costs with them.

First `known` agents make one tiny call each and then wait for a tool that never returns within the run. Then
`active` agents converse: a call, a tool, the next call. At last `waiting` agents ask for one long answer each, all at
once, and stand in the queue behind the others. Measure from `crowd_s` on (RunSpec.measure_from_s), or from `tool_s`
later where there are waiting ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokencake_sglang.emulator.program import Call, Output, Part, Program, Text, ToolCall, Workload
from tokencake_sglang.emulator.workloads.parameters import Parameter, number, whole

NEVER_S = 1e6
KNOWN_PROMPT_TOKENS = 16
TURNS = 8
LONG_OUTPUT_TOKENS = 2000  # of those that wait: few end within the run, so that the others go on waiting


def parameters() -> dict[str, Parameter]:
    return {
        "active": whole(64, "agents that converse"),
        "known": whole(0, "further agents that the server remembers", low=0),
        "waiting": whole(0, "further agents that ask for a long answer at once, when all active ones have come", low=0),
        "crowd_s": number(60.0, "time in which the known agents make their call; then the active ones start"),
        "prompt_tokens": whole(1500, "first prompt of an active agent"),
        "output_tokens": whole(100, "output of a call"),
        "result_tokens": whole(100, "tool result in the next prompt"),
        "tool_s": number(2.0, "tool time of an active agent"),
        "horizon_s": number(180.0, "end of the run", above=True),
    }


def build(seed: str, values: Mapping[str, Any]) -> Workload:
    known, active = values["known"], values["active"]
    remembered = tuple(
        Program(f"known-{i:05d}", (Call(
            "only", "agent", "known", (Text(f"{seed}/known-{i:05d}", KNOWN_PROMPT_TOKENS),), 1,
            tool=ToolCall("never", NEVER_S, NEVER_S / 100), last_of_agent=True),),
            i * values["crowd_s"] / max(1, known))
        for i in range(known))
    busy = tuple(
        Program(app_id, _conversation(seed, app_id, values), values["crowd_s"] + i * values["tool_s"] / active)
        for i in range(active) for app_id in [f"active-{i:04d}"])
    queued = tuple(
        Program(f"waiting-{i:05d}", (Call(
            "only", "agent", "waiting", (Text(f"{seed}/waiting-{i:05d}", values["prompt_tokens"]),), LONG_OUTPUT_TOKENS,
            last_of_agent=True),), values["crowd_s"] + values["tool_s"])
        for i in range(values["waiting"]))
    return Workload("crowd", remembered + busy + queued, values["horizon_s"])


def _conversation(seed: str, app_id: str, values: Mapping[str, Any]) -> tuple[Call, ...]:
    prompt: list[Part] = [Text(f"{seed}/{app_id}", values["prompt_tokens"])]
    calls: list[Call] = []
    for turn in range(TURNS):
        name = f"turn-{turn}"
        calls.append(Call(name, "agent", "active", tuple(prompt), values["output_tokens"],
                          (calls[-1].name,) if calls else (), ToolCall("tool", values["tool_s"], values["tool_s"]),
                          last_of_agent=turn == TURNS - 1))
        prompt += [Output(name), Text(f"{seed}/{app_id}/{turn}", values["result_tokens"])]
    return tuple(calls)
