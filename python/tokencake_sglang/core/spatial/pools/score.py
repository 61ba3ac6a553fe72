"""How much an agent type matters: the paper's score and the shipped one, from what its live requests show."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tokencake_sglang.core.spatial.urgency import paper_score
from tokencake_sglang.core.spatial.views import Structure

MOST_IMPORTANCE = 10.0
LONGEST_ELAPSED_S = 180.0


@dataclass(frozen=True)
class LiveRequest:
    tokens: int  # prompt and most output
    live_s: float  # since it joined the queue first
    elapsed_s: float  # of its run
    waits: bool
    structure: Structure = Structure()


@dataclass(frozen=True)
class TypeFacts:
    """Of one agent type in one class of applications, now. `used`: by its running requests; `needed`: by its critical
    work, soon; denials and retractions: of its requests so far."""

    requests: Sequence[LiveRequest] = ()
    used: int = 0
    needed: int = 0
    denials: int = 0
    retractions: int = 0


def paper_type_score(facts: TypeFacts) -> float:
    """The mean of the paper's hybrid over the type's requests; the paper scores types and does not say how."""
    return _mean([
        paper_score(one.structure, one.tokens, one.live_s if one.waits else 0.0) for one in facts.requests])


def shipped_type_score(facts: TypeFacts) -> float:
    """The published code's score of a type, with its weights; means over the type's requests."""
    waits = [one.live_s for one in facts.requests if one.waits]
    tokens = _mean([one.tokens for one in facts.requests])
    seconds = _mean([one.live_s for one in facts.requests])
    structures = [one.structure for one in facts.requests]
    importance = _mean([min(MOST_IMPORTANCE, structure.depth) for structure in structures])
    return max(1.0, (
        2 * importance
        + math.log1p(_mean(waits)) + math.log1p(len(waits)) + math.log1p(facts.denials)
        + 1.5 * math.log1p(facts.retractions)
        + 0.5 * (math.log1p(tokens) + math.log1p(seconds) + math.log1p(tokens / seconds if seconds else 0.0))
        + 0.7 * _mean([structure.depth for structure in structures])
        + 0.5 * _mean([structure.out_degree for structure in structures])
        + 0.25 * _mean([structure.in_degree for structure in structures])
        + 0.20 * _mean([structure.remaining_depth for structure in structures])
        + 0.10 * min(_mean([one.elapsed_s for one in facts.requests]), LONGEST_ELAPSED_S)))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
