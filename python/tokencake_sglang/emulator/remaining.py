"""How long the calls of a program take alone on the device, and how long the program then still takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tokencake_sglang.emulator.program import Program
from tokencake_sglang.emulator.workloads.parts import cached_tokens, output_lengths, prompt_tokens


@dataclass(frozen=True)
class AloneCost:
    """One call without any contention; seconds. `token_s` is the mean time of one decode step."""

    prefill_s: float
    token_s: float
    output_tokens: int

    @property
    def total_s(self) -> float:
        return self.prefill_s + self.token_s * self.output_tokens

    def left_s(self, generated: int) -> float:
        """What is left of it once `generated` tokens are out (0: all of it)."""
        return self.token_s * max(0, self.output_tokens - generated) if generated else self.total_s


def alone_costs(program: Program, profile: Any) -> dict[str, AloneCost]:
    """Cost of every call, by name, if what the calls before it have computed is still cached. `profile`: a
    DeviceProfile."""
    outputs, cached = output_lengths(program), cached_tokens(program)
    costs = {}
    for call in program.calls:
        prompt = prompt_tokens(call.prompt, outputs)
        new = max(1, prompt - cached[call.name])
        steps = max(1, call.output_tokens)
        costs[call.name] = AloneCost(
            profile.prefill_s([(new, prompt - new)]), profile.decode_s(1, prompt + steps // 2), call.output_tokens)
    return costs


def remaining_s(program: Program, costs: dict[str, AloneCost]) -> dict[str, float]:
    """Seconds from the submission of each call to the end of the program along its longest path, by call name."""
    after: dict[str, float] = {}  # from a call's end, its tool included, to the program's
    remaining = {}
    for call in reversed(program.calls):
        tool = call.tool.duration_s if call.tool else 0.0
        remaining[call.name] = costs[call.name].total_s + tool + after.get(call.name, 0.0)
        for parent in call.after:
            after[parent] = max(after.get(parent, 0.0), call.delay_s + remaining[call.name])
    return remaining
