"""Token ids of texts and outputs: functions of a key, equal in every process and configuration."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable
from functools import lru_cache

import numpy as np

VOCABULARY = 32_000
EOS = 2
FIRST = 3  # ids below are special

_STEP = np.uint64(0x9E3779B97F4A7C15)
_MIX = np.uint64(0xBF58476D1CE4E5B9)


def seed_of(key: str) -> int:
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")


@lru_cache(maxsize=4096)
def text_tokens(key: str, count: int) -> array:
    """`count` ids that follow from `key`; fewer of them are a prefix of more."""
    with np.errstate(over="ignore"):
        x = np.uint64(seed_of(key)) + np.arange(count, dtype=np.uint64) * _STEP
        x = (x ^ (x >> np.uint64(31))) * _MIX
    ids = (x >> np.uint64(33)) % np.uint64(VOCABULARY - FIRST) + np.uint64(FIRST)
    return array("q", ids.astype(np.int64).tobytes())


class OutputPlan:
    """What the emulated model answers to one request: `length` tokens, then EOS for ever."""

    def __init__(self, key: str, length: int, *, ends_by_eos: bool) -> None:
        self.length = length
        tokens = text_tokens("output:" + key, length)
        self.tokens = tokens[:-1] + array("q", [EOS]) if ends_by_eos else tokens

    @classmethod
    def of(cls, tokens: Iterable[int]) -> OutputPlan:
        """A plan of exactly these tokens, such as a real server's answer that is to be repeated."""
        plan = cls("", 0, ends_by_eos=False)
        plan.tokens = array("q", tokens)
        plan.length = len(plan.tokens)
        return plan

    def token(self, index: int) -> int:
        return self.tokens[index] if index < self.length else EOS
