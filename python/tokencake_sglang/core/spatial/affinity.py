"""Cache affinity: a session whose KV was given up goes behind those of its pool whose KV is here, for a while.

To run it now would take room from others, whose KV would be given up for it, and the prefill of what they can use at
once. So agents in turns with a person or with tools use what is there before it goes, whichever of them came first.
Classes are coarse, so that in each the order by program holds. Not for programs of many agents: such a program ends
with its last agent, and to let others go before that one makes it later without making them much sooner.
"""

from __future__ import annotations

CLASS_TOKENS = 1024  # less than this is as good as nothing; twice as much is one class more
PATIENCE_S = 240.0  # a request that has waited for so long goes as if its KV were here


def affinity(lost: int, now: float, joined_at: float) -> int:
    """The class of a request that waits since `joined_at` and whose agent has lost `lost` tokens of KV that it had
    computed; the smaller goes first."""
    return 0 if now >= ends_at(joined_at) else (lost // CLASS_TOKENS).bit_length()


def ends_at(joined_at: float) -> float:
    """From when on it counts no more."""
    return joined_at + PATIENCE_S
