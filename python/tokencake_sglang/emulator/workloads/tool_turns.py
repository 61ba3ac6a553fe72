"""Few agents with long contexts and tools of unequal length, on a server that is mostly idle: the latency of turns.

An agent is a conversation: a long first prompt, then turns that each add the answer before and a tool's result. It
waits for a tool after every turn but the last. The server has little to compute; what a turn waits for is its KV.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

from tokencake_sglang.emulator.program import Call, Output, Part, Program, Text, ToolCall, Workload
from tokencake_sglang.emulator.workloads import arrivals, forecast
from tokencake_sglang.emulator.workloads.distributions import mean, parameter, resolve, sample
from tokencake_sglang.emulator.workloads.parameters import Parameter, number, whole

CONTEXT = {"kind": "bounded_pareto", "L": 16_000, "H": 56_000, "alpha": 0}
TOOL = {"kind": "bounded_pareto", "L": 2, "H": 60, "alpha": 0}


def parameters() -> dict[str, Parameter]:
    known = {
        "agents": whole(8, "how many agents there are in all"),
        "turns": whole(24, "calls of an agent"),
        "context_tokens": parameter(CONTEXT, "first prompt of an agent"),
        "result_tokens": parameter(200, "tool result in the next prompt"),
        "output_tokens": parameter(120, "output of a call"),
        "tool_wait": parameter(TOOL, "duration of a tool"),
        "forecast": forecast.parameter("exact"),
        "horizon_s": number(None, "end of the run", above=True),
    }
    return known | arrivals.parameters(qps=0.05, arrival="closed", lanes=8, ramp_s=120.0)


def build(seed: str, values: Mapping[str, Any]) -> Workload:
    models = {name: resolve(values[name]) for name in ("context_tokens", "result_tokens", "output_tokens", "tool_wait")}
    mean_s = mean(models["tool_wait"])
    programs = tuple(
        Program(app_id, _conversation(app_id, random.Random(f"{seed}/{index}"), models, values, mean_s),
                start.arrival_s, start.lane)
        for index, start in enumerate(arrivals.arrivals(values["agents"], seed, values))
        for app_id in [f"agent-{index:03d}"])
    return Workload("tool_turns", programs, values["horizon_s"])


def _conversation(app_id: str, rng: random.Random, models: Mapping[str, Any], values: Mapping[str, Any],
                  mean_s: float) -> tuple[Call, ...]:
    def tokens(name: str) -> int:
        return max(1, round(sample(models[name], rng)))

    prompt: list[Part] = [Text(f"{app_id}/context", tokens("context_tokens"))]
    calls: list[Call] = []
    for turn in range(values["turns"]):
        name, last = f"turn-{turn:03d}", turn == values["turns"] - 1
        duration_s = sample(models["tool_wait"], rng)
        told = forecast.forecast_s(values["forecast"], duration_s, rng, mean_s=mean_s)
        calls.append(Call(
            name, "agent", "tool_agent", tuple(prompt), tokens("output_tokens"), (calls[-1].name,) if calls else (),
            None if last else ToolCall("tool", duration_s, told), last_of_agent=last))
        prompt += [Output(name), Text(f"{app_id}/result-{turn}", tokens("result_tokens"))]
    return tuple(calls)
