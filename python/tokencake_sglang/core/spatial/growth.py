"""How much more memory requests will hold at a time than now, when each generates and some end before others."""

from __future__ import annotations

from collections.abc import Callable, Sequence


def most_at_once(left: Sequence[float], frees: Callable[[int], int]) -> float:
    """Tokens that requests will hold at the most beyond what they hold now. Request `i` generates `left[i]` tokens, as
    fast as the others, and gives them back at its end with `frees(i)` tokens that it holds already.

    `frees` is asked of those that end first, until what was given back is enough for all that is left.
    """
    order = sorted(range(len(left)), key=left.__getitem__)
    needed, grown, freed, since, most = sum(left), 0.0, 0.0, 0.0, 0.0
    for ended, i in enumerate(order):
        grown += (left[i] - since) * (len(order) - ended)
        since = left[i]
        most = max(most, grown - freed)
        freed += frees(i) + left[i]
        if freed >= needed:
            break
    return most
