"""Which waiting requests go beside the rest of a long prompt instead of behind it.

A prompt in chunks takes every prompt token of each batch until it is done, which takes seconds; a turn after a tool
needs a few tokens. The first of the queue that need less than is left of the long prompt, and find room beside all of
it, go at once; nobody overtakes one that does not. The long prompt keeps its own tokens of each batch: what it loses is
the time that the short ones take to compute.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

LONG_REST = 4096  # tokens left of a prompt from which on it is long: a second or more of waiting behind it
BESIDE_TOKENS = 512  # prompt tokens of one batch that go to others, at the most
BESIDE_SHARE = 0.5  # the same, of the most that a batch may hold
BESIDE_VIEWED = 16  # waiting requests that are looked at, from the head of the queue


@dataclass(frozen=True)
class Candidate:
    rid: str
    prompt_tokens: int  # to be computed of its prompt
    total_tokens: int  # its prompt and what it is expected to generate


def go_beside(rest: int, room_of: Callable[[], int], most: int,
              waiting: Iterable[Candidate]) -> tuple[dict[str, None], int]:
    """The ids of those that go beside a prompt of which `rest` tokens are left, and their prompt tokens together; none
    beside one of which little is left.
    `room_of()`: device tokens beyond what the long prompt and all that runs need yet, asked for when there is one that
    is short enough. `most`: tokens of a batch."""
    chosen: dict[str, None] = {}
    if rest < LONG_REST:
        return chosen, 0
    tokens, room, most = 0, -1, min(BESIDE_TOKENS, int(BESIDE_SHARE * most))
    for one in waiting:
        if one.prompt_tokens >= rest or tokens + one.prompt_tokens > most:
            break  # nobody overtakes it
        if not chosen:
            room = room_of()
        if one.total_tokens > room:
            break
        chosen[one.rid] = None
        tokens += one.prompt_tokens
        room -= one.total_tokens
    return chosen, tokens
