"""Which points a calibration measures, and what a server under calibration has to be able to do."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from tokencake_sglang.core.errors import ConfigError
from tokencake_sglang.emulator.fit import CopyPoint, DecodePoint, PrefillPoint

POOL_SHARE = 0.75  # of the KV pool that one point may fill
WARM_UP_TOKENS = 64


@dataclass(frozen=True)
class Facts:
    """What a server says of itself. `max_chunk`: new tokens of one prefill step at most."""

    model: str
    device: str
    kv_bytes_per_token: int
    layers: int
    pool_tokens: int
    max_chunk: int
    context_tokens: int
    vocab: int


@dataclass(frozen=True)
class Grid:
    """New and cached tokens of prefills, batch size and context of decodes, all measured `repeats` times."""

    new: Sequence[int] = (16, 64, 128, 256, 512, 1024, 2048)
    prefix: Sequence[int] = (0, 256, 1024, 2048, 4096)
    batch: Sequence[int] = (1, 2, 4, 8, 16)
    context: Sequence[int] = (64, 256, 1024, 4096)
    repeats: int = 3
    decode_steps: int = 16

    def prefills(self, facts: Facts) -> Iterator[tuple[int, int]]:
        """(new, prefix) of the points that fit into one step and into the server's limits."""
        for prefix in self.prefix:
            for new in self.new:
                if new <= facts.max_chunk and self._fits(facts, 1, prefix + new):
                    yield new, prefix

    def decodes(self, facts: Facts) -> Iterator[tuple[int, int]]:
        """(batch, context of each request) of the points that fit."""
        for context in self.context:
            for batch in self.batch:
                if self._fits(facts, batch, context + self.decode_steps):
                    yield batch, context

    def _fits(self, facts: Facts, requests: int, tokens: int) -> bool:
        return tokens + 1 < facts.context_tokens and requests * tokens <= POOL_SHARE * facts.pool_tokens


@dataclass
class Measured:
    """All points of a calibration. `assumed`: what could not be measured, in words."""

    facts: Facts
    source: str
    prefill: list[PrefillPoint]
    decode: list[DecodePoint]
    copies: list[CopyPoint] = field(default_factory=list)
    step_overhead_s: float = 0.0
    request_overhead_s: float = 0.0
    assumed: list[str] = field(default_factory=list)


class Server(Protocol):
    """A server that is asked nothing else meanwhile. Prompts are token ids; ends of sequence are ignored."""

    facts: Facts

    def warm(self, prompt: list[int]) -> None:
        """Compute a prompt whose time does not count."""

    def prefill(self, prompt: list[int]) -> None:
        """Compute a prompt and one token, and note how long the prefill took."""

    def decode(self, prompts: list[list[int]], steps: int) -> None:
        """Compute all prompts and `steps` tokens each, and note how long a step took while all were running."""

    def flush(self) -> None:
        """Empty the radix cache."""


def drive(server: Server, grid: Grid, seed: int = 1) -> None:
    """Ask `server` for every point of the grid. Texts are random, so only intended prefixes are hits.

    Raises:
        ConfigError: no point of the grid fits into the server's limits.
    """
    chance, facts = random.Random(seed), server.facts
    prefills, decodes = list(grid.prefills(facts)), list(grid.decodes(facts))
    if not prefills or not decodes:
        raise ConfigError(f"No point of the grid fits: a request may have {facts.context_tokens} tokens, a step "
                          f"{facts.max_chunk} and all together {POOL_SHARE:.0%} of {facts.pool_tokens}. Choose smaller "
                          "--new, --prefix, --batch or --context.")

    def text(tokens: int) -> list[int]:
        return [chance.randrange(5, facts.vocab) for _ in range(tokens)]

    server.warm(text(min(WARM_UP_TOKENS, facts.max_chunk)))
    for new, prefix in prefills:
        shared = text(prefix)
        if shared:
            server.warm(shared)
        for _ in range(grid.repeats):
            server.prefill(shared + text(new))
        server.flush()
    for batch, context in decodes:
        for _ in range(grid.repeats):
            server.decode([text(context) for _ in range(batch)], grid.decode_steps)
            server.flush()
