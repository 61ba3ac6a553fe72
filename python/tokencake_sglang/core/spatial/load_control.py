"""Which programs may use the memory now, so that those that do have all of theirs: the others wait at the door.

Programs are let in by age as long as what they hold and are expected to hold fits both tiers. Without it every
program gets a little further, each pushing out what the others come back for (thrashing). What is held by programs
that are away for long counts for nothing: they are not at it.

The door is open where prompts are computed beside decoding in small chunks. A decode step reads all weights for a few
tokens, and computes some more in the same time, so that computing again costs little but room; to keep the memory of
those that are away free of others costs more.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from tokencake_sglang.core.spatial.means import Means
from tokencake_sglang.core.spatial.programs import Program
from tokencake_sglang.core.spatial.views import Demand

ROOM_FOR_ALL = 0.9  # of the capacity: what programs that were let in may hold
ROOM_FOR_NEW = 0.8  # of the capacity: what there may be with one more program
PEAK_WEIGHT = 0.3  # of the newest peak in the mean of its kind
KINDS_KEPT = 1024
DOOR_WAIT_S = 600.0  # the longest wait at the door
HIDDEN_CHUNK = 256  # prompt tokens that a decode step computes on the side for little more than it takes anyway


class Peaks(Means):
    """How many tokens a program of a kind holds at its largest, from those that ended."""

    def __init__(self) -> None:
        super().__init__(PEAK_WEIGHT, KINDS_KEPT)


def is_open(demand: Demand, balanced: bool) -> bool:
    """Whether computing KV again is hidden behind decoding, so that nobody has to wait for the sake of memory.
    `balanced`: chunks are as small as that by themselves."""
    return demand.beside > 0 and (balanced or demand.beside <= HIDDEN_CHUNK)


class Claim(NamedTuple):
    """What a program wants of the memory: `held` now, `expected` at its largest (0: unknown)."""

    program: Program
    held: int
    expected: float
    inside: bool  # it was let in before


def let_in(claims: Iterable[Claim], capacity: int, now: float) -> list[Claim]:
    """Those that may use the memory, the first of `claims`, which come in order of age: all others have to wait, and
    are not looked at. The oldest never waits."""
    total, largest = 0.0, 0
    room_for_all, room_for_new = ROOM_FOR_ALL * capacity, ROOM_FOR_NEW * capacity
    inside: list[Claim] = []
    for claim in claims:
        program, held, expected, was_inside = claim
        wanted = held if was_inside else max(float(held), expected or largest)
        too_much = total + wanted > (room_for_all if was_inside else room_for_new)
        if inside and too_much and now - program.arrived_at < DOOR_WAIT_S:
            break  # those behind it are younger
        inside.append(claim)
        total += wanted
        largest = max(largest, held)
    return inside
