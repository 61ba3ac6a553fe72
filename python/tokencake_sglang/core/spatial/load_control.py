"""Which programs may use the memory now, so that those that do have all of theirs: the others wait at the door.

Programs are let in by age as long as what they hold and are expected to hold fits both tiers. Without it every
program gets a little further, each pushing out what the others come back for (thrashing). What is held by programs
that are away for long counts for nothing: they are not at it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tokencake_sglang.core.spatial.means import Means
from tokencake_sglang.core.spatial.programs import Program

ROOM_FOR_ALL = 0.9  # of the capacity: what programs that were let in may hold
ROOM_FOR_NEW = 0.8  # of the capacity: what there may be with one more program
PEAK_WEIGHT = 0.3  # of the newest peak in the mean of its kind
KINDS_KEPT = 1024
DOOR_WAIT_S = 600.0  # the longest wait at the door


class Peaks(Means):
    """How many tokens a program of a kind holds at its largest, from those that ended."""

    def __init__(self) -> None:
        super().__init__(PEAK_WEIGHT, KINDS_KEPT)


@dataclass(frozen=True)
class Claim:
    """What a program wants of the memory: `held` now, `expected` at its largest (0: unknown)."""

    program: Program
    held: int
    expected: float
    inside: bool  # it was let in before


def let_in(claims: Iterable[Claim], capacity: int, now: float) -> list[Claim]:
    """Those that may use the memory, the first of `claims`, which come in order of age: all others have to wait, and
    are not looked at. The oldest never waits."""
    total, inside = 0.0, []
    largest = 0
    for claim in claims:
        wanted = max(float(claim.held), claim.expected or largest)
        room = (ROOM_FOR_ALL if claim.inside else ROOM_FOR_NEW) * capacity
        too_much = total + (claim.held if claim.inside else wanted) > room
        if inside and too_much and now - claim.program.arrived_at < DOOR_WAIT_S:
            break  # those behind it are younger
        inside.append(claim)
        total += claim.held if claim.inside else wanted
        largest = max(largest, claim.held)
    return inside
