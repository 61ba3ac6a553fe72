"""Lengths of prompts and the prefixes they share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tokencake_sglang.emulator.program import Output, Part, Program, Text


def output_lengths(program: Program) -> dict[str, int]:
    return {call.name: call.output_tokens for call in program.calls}


def part_tokens(part: Part, outputs: Mapping[str, int]) -> int:
    """Tokens of one part. `outputs`: generated tokens of each call of the program."""
    if isinstance(part, Text):
        return part.tokens
    whole = outputs[part.call]
    return whole if part.tokens is None else min(part.tokens, whole)


def prompt_tokens(prompt: Sequence[Part], outputs: Mapping[str, int]) -> int:
    return sum(part_tokens(part, outputs) for part in prompt)


def source(part: Part) -> tuple[str, str]:
    """What a part's tokens follow from: two parts of one source agree as far as the shorter goes."""
    return ("text", part.key) if isinstance(part, Text) else ("output", part.call)


def common_prefix(first: Sequence[Part], second: Sequence[Part], outputs: Mapping[str, int]) -> int:
    """Tokens that two prompts of one program have in common at the start."""
    shared = 0
    for one, other in zip(first, second, strict=False):
        if one is not other and source(one) != source(other):
            break
        lengths = part_tokens(one, outputs), part_tokens(other, outputs)
        shared += min(lengths)
        if lengths[0] != lengths[1]:
            break
    return shared


def cached_tokens(program: Program) -> dict[str, int]:
    """Per call name: the longest prefix of its prompt that a call it waits for (or one that this one waited for, and
    so on) has computed, as prompt or output."""
    outputs = output_lengths(program)
    calls = {call.name: call for call in program.calls}
    computed = {call.name: prompt_tokens(call.prompt, outputs) + call.output_tokens for call in program.calls}
    before: dict[str, frozenset[str]] = {}
    cached = {}
    for call in program.calls:
        before[call.name] = frozenset(call.after).union(*(before[parent] for parent in call.after))
        best = 0
        for name in sorted(before[call.name], key=computed.__getitem__, reverse=True):
            if computed[name] <= best:
                break
            best = max(best, common_prefix(call.prompt, (*calls[name].prompt, Output(name)), outputs))
        cached[call.name] = best
    return cached


def cut(prompt: Sequence[Part], tokens: int, outputs: Mapping[str, int]) -> tuple[Part, ...]:
    """The first `tokens` tokens of a prompt, or all of it where it is shorter."""
    kept: list[Part] = []
    for part in prompt:
        length = min(part_tokens(part, outputs), tokens)
        if length <= 0:
            break
        if length == part_tokens(part, outputs):
            kept.append(part)
        else:
            kept.append(Text(part.key, length) if isinstance(part, Text) else Output(part.call, length))
        tokens -= length
    return tuple(kept)
