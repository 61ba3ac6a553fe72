"""Lengths that follow from a program alone."""

from __future__ import annotations

from tokencake_sglang.emulator.program import Program, Text


def prompt_tokens(program: Program) -> dict[str, int]:
    """Prompt length in tokens of every call, by call name."""
    outputs = {call.name: call.output_tokens for call in program.calls}
    return {
        call.name: sum(
            part.tokens if isinstance(part, Text) or part.tokens is not None else outputs[part.call]
            for part in call.prompt)
        for call in program.calls}
