"""Chats between people and a model, without agents: the other traffic of a server, to be mixed with agents.

A turn's prompt is the turn before, its output, and the user's next text. Calls have an empty agent: the client says
nothing to the server beyond the request.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

from tokencake_sglang.emulator.program import Call, Output, Part, Program, Text, Workload
from tokencake_sglang.emulator.workloads import arrivals
from tokencake_sglang.emulator.workloads.distributions import parameter, resolve, sample
from tokencake_sglang.emulator.workloads.parameters import Parameter, number, whole
from tokencake_sglang.emulator.workloads.traces import MAX_NEW_TOKENS, max_new_tokens

LENGTH = {"kind": "lognormal", "p50": 7000, "sigma": 0.5, "min": 64, "max": 28000}
OUTPUT = {"kind": "lognormal", "p50": 240, "sigma": 0.7, "min": 8, "max": 2048}


def parameters() -> dict[str, Parameter]:
    known = {
        "chats": whole(64, "how many chats arrive"),
        "turns": parameter(1, "turns of a chat"),
        "prompt_tokens": parameter(LENGTH, "first prompt, beside the system prompt"),
        "turn_tokens": parameter(120, "user text of each later turn"),
        "output_tokens": parameter(OUTPUT, "output of a turn"),
        "think_s": parameter(20.0, "time between an answer and the user's next turn"),
        "system_tokens": whole(0, "system prompt that all chats share", low=0),
        "max_new_tokens": whole(None, MAX_NEW_TOKENS),
        "horizon_s": number(None, "end of the run", above=True),
    }
    return known | arrivals.parameters(qps=0.16)


def build(seed: str, values: Mapping[str, Any]) -> Workload:
    times = arrivals.arrivals(values["chats"], seed, values)
    programs = tuple(
        Program(app_id, _turns(app_id, random.Random(f"{seed}/{index}"), values), time.arrival_s, time.lane)
        for index, time in enumerate(times) for app_id in [f"chat-{index:03d}"])
    return Workload("chat", programs, values["horizon_s"])


def _turns(app_id: str, rng: random.Random, values: Mapping[str, Any]) -> tuple[Call, ...]:
    def draw(name: str) -> int:
        return max(1, round(sample(resolve(values[name]), rng)))

    prompt: list[Part] = [Text("chat/system", values["system_tokens"])] if values["system_tokens"] else []
    calls: list[Call] = []
    for turn in range(draw("turns")):
        prompt.append(Text(f"{app_id}/turn-{turn}", draw("turn_tokens" if turn else "prompt_tokens")))
        delay_s = sample(resolve(values["think_s"]), rng) if turn else 0.0
        name = f"turn-{turn:03d}"
        output = draw("output_tokens")
        calls.append(Call(name, "", "chat", tuple(prompt), output, (calls[-1].name,) if calls else (),
                          delay_s=delay_s, max_new_tokens=max_new_tokens(output, values)))
        prompt.append(Output(name))
    return tuple(calls)
