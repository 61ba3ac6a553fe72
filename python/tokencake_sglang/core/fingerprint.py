"""What is kept of a prompt in order to know it again: chained hashes of short runs of tokens, and its last few tokens.

A mark stands for all tokens before it, so equal marks mean equal prefixes (but for a collision of 64-bit hashes).
Marks mean nothing outside the process that made them: Python's hash of bytes is keyed anew in each.
"""

from __future__ import annotations

from array import array
from collections.abc import Hashable

GRAIN = 16  # tokens a mark
BLOCK = 512  # tokens a published block id, as in Mooncake's traces
TEMPLATE_TAIL = 4  # last tokens of a prompt that a chat template may leave out of the next one ("<think>" and its kind)
BLOCKS_KEPT = 2**19  # 268 million tokens of different prefixes; about 80 MB
_WIDTH = array("q").itemsize


class Trail:
    """A prompt, and after `extend` the prompt and its output. `space` names the KV it may share (LoRA, extra key)."""

    __slots__ = ("start", "marks", "length", "prompt_length", "prompt_tail_start", "prompt_tail", "rest")

    def __init__(self, prompt: array[int], space: Hashable = None) -> None:
        self.start = hash(("start", space))
        self.marks = array("q")
        self.rest = b""
        self.length = 0
        self.extend(prompt)
        self.prompt_length = len(prompt)
        self.prompt_tail_start = max(0, len(prompt) - TEMPLATE_TAIL) // GRAIN * GRAIN
        self.prompt_tail = prompt[self.prompt_tail_start:]

    def extend(self, tokens: array[int]) -> None:
        """Add tokens (array of typecode q) at the end."""
        data = self.rest + tokens.tobytes()
        step = GRAIN * _WIDTH
        whole = len(data) // step * step
        mark = self.marks[-1] if self.marks else self.start
        for at in range(0, whole, step):
            mark = hash((mark, data[at:at + step]))
            self.marks.append(mark)
        self.rest = data[whole:]
        self.length += len(tokens)

    def mark(self, grains: int) -> int:
        """The mark after that many whole grains."""
        return self.marks[grains - 1] if grains else self.start

    @property
    def entry(self) -> int:
        """The last mark that every next prompt must have, whatever its template leaves out."""
        return self.mark(self.prompt_tail_start // GRAIN)

    def shared(self, other: Trail, tokens: array[int]) -> int:
        """How many leading tokens `other`, whose prompt is `tokens`, has in common with this trail.

        Exact when all of this trail's prompt is shared and all or none of its output; otherwise rounded down to a
        grain.
        """
        if self.start != other.start:
            return 0
        low, high = 0, min(len(self.marks), len(tokens) // GRAIN)
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.mark(middle) == other.mark(middle) else (low, middle - 1)
        at = low * GRAIN
        known = self._known_from(at)
        same = 0
        for ours, theirs in zip(known, tokens[at:at + len(known)], strict=False):
            if ours != theirs:
                break
            same += 1
        return at + same

    def _known_from(self, at: int) -> array[int]:
        """The tokens from `at` (a multiple of the grain) on that are still known."""
        if at == len(self.marks) * GRAIN:
            return array("q", self.rest)
        if self.prompt_tail_start <= at:
            return self.prompt_tail[at - self.prompt_tail_start:]
        return array("q")

    def continued_by(self, other: Trail, tokens: array[int]) -> bool:
        """Whether `other`, whose prompt is `tokens`, is the next turn: longer, and with all of this prompt in it but
        for what a chat template may leave out. The output may have been changed or stripped."""
        return len(tokens) > self.prompt_length and self.shared(other, tokens) >= self.prompt_length - TEMPLATE_TAIL


class BlockIds:
    """Small numbers for prefix blocks in order of first sight; equal numbers mean equal prefixes.

    Only the `limit` blocks used last are remembered: one that comes back after that gets a new number.
    """

    def __init__(self, limit: int = BLOCKS_KEPT) -> None:
        self.limit = limit
        self._numbers: dict[int, int] = {}
        self._next = 0

    def of(self, prompt: Trail) -> list[int]:
        """One id for each 512 tokens of a prompt that was not extended, and one for what is left over."""
        step = BLOCK // GRAIN
        keys = [prompt.marks[at] for at in range(step - 1, len(prompt.marks), step)]
        if prompt.length % BLOCK:
            keys.append(hash((prompt.mark(len(prompt.marks)), prompt.rest, "end")))
        return [self._number(key) for key in keys]

    def _number(self, key: int) -> int:
        number = self._numbers.pop(key, None)
        if number is None:
            number, self._next = self._next, self._next + 1
            if len(self._numbers) >= self.limit:
                del self._numbers[next(iter(self._numbers))]
        self._numbers[key] = number
        return number
