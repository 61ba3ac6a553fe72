"""The KV oracle: what every KV slot holds at every virtual moment, and whether a reader finds what it needs.

A slot's content is a fingerprint of its token, its position and all tokens before it. Steps and copies change
contents at their virtual end; a read is checked at the virtual moment when attention would read. So a missing wait,
a slot that was reused too early and a load that was not finished are seen, which real CPU streams would hide.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

UNWRITTEN = 0
GROW = 4096


class TokenChain:
    """Fingerprints of a growing token sequence: entry i covers tokens 0..i (sums modulo 2**64 of token * q**i)."""

    Q = np.uint64(0x9E3779B97F4A7C15)
    _powers = np.ones(1, dtype=np.uint64)

    def __init__(self, tokens: array) -> None:
        self.prints = self._extend(np.uint64(0), 0, tokens)

    @classmethod
    def powers(cls, count: int) -> np.ndarray:
        if len(cls._powers) < count:
            steps = np.full(count + GROW - 1, cls.Q, dtype=np.uint64)
            cls._powers = np.concatenate([np.ones(1, dtype=np.uint64), np.cumprod(steps)])
        return cls._powers[:count]

    def _extend(self, last: np.uint64, start: int, tokens: array) -> np.ndarray:
        values = np.frombuffer(tokens, dtype=np.int64).astype(np.uint64) + np.uint64(1)
        sums = np.cumsum(values * self.powers(start + len(values))[start:], dtype=np.uint64)
        return sums + last

    def grow(self, tokens: array) -> None:
        last = self.prints[-1] if len(self.prints) else np.uint64(0)
        self.prints = np.concatenate([self.prints, self._extend(last, len(self.prints), tokens)])


class KvOracle:
    """Contents of the device and host KV pools, per emulated layer. `bad`: reads that found something else."""

    def __init__(self, layers: int, device_slots: int, host_slots: int) -> None:
        self.device = np.full((layers, device_slots), UNWRITTEN, dtype=np.uint64)
        self.host = np.full((layers, host_slots), UNWRITTEN, dtype=np.uint64)
        self.checked = 0
        self.bad = 0
        self.first_bad = ""

    def write(self, slots: np.ndarray, prints: np.ndarray) -> None:
        """A forward pass ended: all layers of `slots` hold `prints`."""
        self.device[:, slots] = prints

    def check(self, layer: int, slots: np.ndarray, prints: np.ndarray, reader: str) -> None:
        wrong = int(np.count_nonzero(self.device[layer, slots] != prints))
        self.checked += len(slots)
        if wrong:
            self.bad += wrong
            self.first_bad = self.first_bad or f"{reader}: {wrong} of {len(slots)} slots, layer {layer}"

    def start_copy(self, direction: str, layers: range, source: torch.Tensor, target: torch.Tensor) -> Copy:
        return Copy(self, direction, layers, source.numpy().copy(), target.numpy().copy())


class Copy:
    """KV on its way between the tiers. A source that changes while it is read arrives as nothing useful."""

    def __init__(self, oracle: KvOracle, direction: str, layers: range, source: np.ndarray, target: np.ndarray) -> None:
        self._from, self._to = (oracle.device, oracle.host) if direction == "d2h" else (oracle.host, oracle.device)
        self._layers, self._source, self._target = layers, source, target
        self._seen: np.ndarray | None = None

    def _read(self) -> np.ndarray:
        return self._from[self._layers.start:self._layers.stop, self._source]

    def begin(self) -> None:
        self._seen = self._read()

    def end(self) -> None:
        arrived = self._read()
        if self._seen is not None:
            arrived[arrived != self._seen] = UNWRITTEN
        self._to[self._layers.start:self._layers.stop, self._target] = arrived
