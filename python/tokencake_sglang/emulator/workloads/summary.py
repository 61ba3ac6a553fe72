"""A workload in a dozen numbers."""

from __future__ import annotations

from typing import Any

from tokencake_sglang.emulator.program import Program, Text, Workload
from tokencake_sglang.emulator.workloads.parts import output_lengths, part_tokens, prompt_tokens


def describe(workload: Workload) -> dict[str, Any]:
    """Counts, tokens and seconds of a workload.

    `distinct_tokens`: tokens of all prompts and outputs with every common prefix counted once, i.e. what a cache
    without limit would hold in the end. `reusable_share`: share of the prompt tokens that it would not compute.
    """
    calls = [call for program in workload.programs for call in program.calls]
    prompts, outputs, distinct = 0, 0, _Prefixes()
    for program in workload.programs:
        lengths = output_lengths(program)
        outputs += sum(lengths.values())
        for call in program.calls:
            prompts += prompt_tokens(call.prompt, lengths)
            distinct.add(program, call, lengths)
    tools = [call.tool for call in calls if call.tool]
    return {
        "name": workload.name, "programs": len(workload.programs), "calls": len(calls),
        "agents": sum(len({call.agent for call in program.calls if call.agent}) for program in workload.programs),
        "prompt_tokens": prompts, "prompt_tokens_mean": prompts / max(1, len(calls)),
        "output_tokens": outputs, "output_tokens_mean": outputs / max(1, len(calls)),
        "distinct_tokens": distinct.tokens,
        "reusable_share": 1 - max(0, distinct.tokens - outputs) / max(1, prompts),
        "tools": len(tools), "tool_s": sum(tool.duration_s for tool in tools),
        "forecast_tools": sum(tool.forecast_s is not None for tool in tools),
        "last_arrival_s": max((program.arrival_s for program in workload.programs), default=0.0),
        "horizon_s": workload.horizon_s}


class _Prefixes:
    """Prompts and outputs as a tree of parts; texts of one key at one place count with the longest of them."""

    def __init__(self) -> None:
        self.tokens = 0
        self._longest: dict[tuple[int, object], int] = {}
        self._places: dict[tuple[int, object, int], int] = {}

    def add(self, program: Program, call: Any, lengths: dict[str, int]) -> None:
        place = 0
        for part in call.prompt:
            source = part.key if isinstance(part, Text) else (program.app_id, part.call)
            place = self._step(place, source, part_tokens(part, lengths))
        self._step(place, (program.app_id, call.name), call.output_tokens)

    def _step(self, place: int, source: object, tokens: int) -> int:
        known = self._longest.get((place, source), 0)
        if tokens > known:
            self.tokens += tokens - known
            self._longest[place, source] = tokens
        return self._places.setdefault((place, source, tokens), len(self._places) + 1)
