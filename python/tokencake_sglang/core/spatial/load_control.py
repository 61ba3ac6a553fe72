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
from dataclasses import dataclass

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


@dataclass(frozen=True)
class Claim:
    """What a program wants of the memory: `held` now, `expected` at its largest (0: unknown)."""

    program: Program
    held: int
    expected: float
    inside: bool  # it was let in before


def at_the_door(claims: Iterable[Claim], capacity: int, now: float) -> list[str]:
    """Names of the programs that have to wait; `claims` in order of age. The oldest never waits."""
    total, waiting = 0.0, []
    largest = 0
    for number, claim in enumerate(claims):
        wanted = max(float(claim.held), claim.expected or largest)
        room = (ROOM_FOR_ALL if claim.inside else ROOM_FOR_NEW) * capacity
        too_much = total + (claim.held if claim.inside else wanted) > room
        if number and (waiting or too_much) and now - claim.program.arrived_at < DOOR_WAIT_S:
            waiting.append(claim.program.name)
            continue
        total += claim.held if claim.inside else wanted
        largest = max(largest, claim.held)
    return waiting
