"""What the spatial scheduler is told, as values. Tokens are KV slots, times are seconds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

PLAIN = "plain"  # class of requests without an agent; all others are of AGENTS
AGENTS = "agents"


@dataclass(frozen=True)
class Waiting:
    """A request as it joins the queue. `program` is "" for a plain request, which is a program of its own."""

    rid: str
    program: str = ""
    agent: str = ""
    kind: str = ""  # the agent's type, by which output lengths are forecast
    application: str = ""  # the kind of program, by which its memory is forecast
    tenant: str = ""
    prompt_tokens: int = 0
    max_new_tokens: int = 0
    expected_tokens: int | None = None  # that it will generate, as its client says
    priority: int = 0  # among the requests of its program, higher is sooner

    @property
    def pool(self) -> tuple[str, str]:
        return self.tenant, AGENTS if self.program else PLAIN


@dataclass(frozen=True)
class Demand:
    """Memory in this step: `capacity` is what both tiers can hold together, `held` what they hold, by program, and
    `total_held` all of it; `running` says whether any request runs. `beside` are the prompt tokens that are computed
    in one step with decoding at the most (0: prompts have steps of their own)."""

    capacity: int
    held: Mapping[str, int]
    total_held: int
    running: bool
    beside: int = 0


class Structure(NamedTuple):
    """Where a node stands in its graph. Depths count nodes from an entry, by the shortest and by the longest way, and
    to an end, this one included; `similarity` is 1 / nodes of its type at its depth."""

    depth: int = 0
    depth_longest: int = 0
    remaining_depth: int = 0
    max_depth: int = 0
    in_degree: int = 0
    out_degree: int = 0
    similarity: float = 1.0
    is_critical: bool = False  # on the longest path by the figures of the graph


class Place(NamedTuple):
    """Of a request in the run of its program's graph: the longest path from it to the end, in seconds, and whether
    somebody waits for it (an objective "throughput" says that nobody does)."""

    path_s: float
    is_urgent: bool
    structure: Structure = Structure()
    run_began_at: float = 0.0
