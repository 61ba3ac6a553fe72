"""Who goes first inside a program: four ways to say it, each as a pair of numbers of which the smaller goes first.

Pairs of one way are compared with each other only, among the waiting requests of one program. The two published scores
grow by waiting, so they are to be asked for again from time to time.
"""

from __future__ import annotations

import math

from tokencake_sglang.core.spatial.views import Place, Structure, Waiting

Urgency = tuple[int, float]
NO_PLACE: Urgency = (0, 0.0)
W_STATIC = 10.0  # the paper gives none; of an unaffiliated implementation
UNKNOWN = Structure()


def urgency(priority: str, now: float, waiting: Waiting, joined_at: float, place: Place | None) -> Urgency:
    """`priority` is a setting of TokenCakeConfig; `joined_at` when the request joined the queue first."""
    wait_s = max(0.0, now - joined_at)
    if priority == "critical-path":
        return NO_PLACE if place is None else (int(not place.is_urgent), -place.path_s)
    structure, elapsed_s = (UNKNOWN, 0.0) if place is None else (place.structure, max(0.0, now - place.run_began_at))
    if priority == "paper":
        return 0, -paper_score(structure, waiting.prompt_tokens + waiting.max_new_tokens, wait_s)
    if priority == "shipped":
        return 0, -shipped_score(structure, elapsed_s, wait_s)
    assert priority == "none", priority
    return NO_PLACE


def may_change(priority: str, place: Place | None) -> bool:
    """Whether the urgency of a request may become another while it waits."""
    return priority in ("paper", "shipped") or (priority == "critical-path" and place is not None)


def paper_score(structure: Structure, tokens: float, wait_s: float) -> float:
    """The paper's hybrid: w_static * depth * out_degree + wait * log(tokens / wait).

    Its flaws are mended: a last node counts as if one waited for it, instead of having no static part; without a wait
    the second part is 0, its limit, instead of undefined; and it stays at its peak, which is at wait = tokens / e,
    instead of falling below zero, so that whoever waits longer is not behind.
    """
    static = W_STATIC * structure.depth * max(1, structure.out_degree)
    wait = min(wait_s, tokens / math.e)
    return static + (wait * math.log(tokens / wait) if wait > 0 else 0.0)


def shipped_score(structure: Structure, elapsed_s: float, wait_s: float) -> int:
    """The published code's score of a request, with its weights. Left out is what is equal for all requests of a
    program, or unknown here: when the program arrived, and the weight of its memory (1).

    Both terms of time are capped, as published; the bound on waiting comes from the seniority instead.
    """
    ratio = structure.remaining_depth / max(1, structure.max_depth)
    return int(
        100 * min(10, structure.depth) + 15 * structure.depth + 45 * structure.out_degree + 10 * structure.in_degree
        + 20 * structure.similarity + 20 * structure.remaining_depth + 120 * (1 / structure.similarity - 1)
        + 5 * min(elapsed_s, 300.0) * (1 + 0.75 * ratio) + 8 * min(wait_s, 180.0) * (1 + 0.5 * ratio)
        + 5 * min(elapsed_s, 240.0) * structure.depth / max(1, structure.max_depth)
        + 180 * structure.is_critical + 90 * (structure.remaining_depth == 1) + 20 * (structure.in_degree > 1)
        + 4 * structure.depth_longest + 12 * max(0, structure.out_degree - 1))
