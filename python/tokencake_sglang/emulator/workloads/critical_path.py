"""How long a program takes when nothing stands in its way."""

from __future__ import annotations

from typing import Protocol

from tokencake_sglang.emulator.program import Program
from tokencake_sglang.emulator.workloads.parts import cached_tokens, output_lengths, prompt_tokens

BLOCK = 32  # decode steps charged at a time, at the mean of their contexts


class Costs(Protocol):
    """What is needed of a device profile."""

    def prefill_s(self, chunks: list[tuple[int, int]]) -> float: ...

    def decode_s(self, batch: int, total_context: int) -> float: ...


def critical_path_s(program: Program, profile: Costs) -> float:
    """Seconds from a program's arrival to its end along its longest path, tools and client delays included.

    Every call runs alone on the device, and finds in the cache the longest prefix that a call it waits for (or one
    that this one waited for, and so on) has computed, as prompt or output. Nothing is evicted, nothing waits in a
    queue, the host takes no time.

    It is not a strict lower bound: a call may find a prefix that a sibling or another program has computed, which is
    not counted here, and a chunked prefill or a batch may cost less in sum. It says nothing about the time that
    several programs need on one device: with contention the sum of their work binds first.
    """
    outputs, cached = output_lengths(program), cached_tokens(program)
    ended: dict[str, float] = {}
    for call in program.calls:
        ready = max((ended[parent] for parent in call.after), default=0.0)
        busy_s = _alone_s(prompt_tokens(call.prompt, outputs), cached[call.name], call.output_tokens, profile)
        ended[call.name] = ready + call.delay_s + busy_s + (call.tool.duration_s if call.tool else 0.0)
    return max(ended.values(), default=0.0)


def _alone_s(prompt: int, cached: int, output: int, profile: Costs) -> float:
    """Prefill, which gives the first token, then one decode step for each of the others."""
    new = max(1, prompt - cached)
    seconds = profile.prefill_s([(new, prompt - new)])
    for start in range(1, output, BLOCK):
        steps = min(BLOCK, output - start)
        seconds += steps * profile.decode_s(1, prompt + start + (steps - 1) // 2)
    return seconds
