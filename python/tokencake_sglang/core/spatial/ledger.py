"""Who holds how much KV: each piece is charged to the programs that own it, in equal parts, to the token.

A piece is a node of the radix tree, on whichever tier. What many programs share, or nobody who is known owns, is
charged to the account `SHARED`. The accounts always add up to all tokens of all pieces.
"""

from __future__ import annotations

SHARED = ""
MOST_PARTS = 16  # a piece of more programs than this is shared by all


def parts(tokens: int, payers: int) -> list[int]:
    """`tokens` in equal parts, to the token."""
    return [tokens * (number + 1) // payers - tokens * number // payers for number in range(payers)]


class Ledger:
    """Accounts in tokens. A piece's owners are counted, because a program may own it through several agents."""

    def __init__(self) -> None:
        self.accounts: dict[str, int] = {}
        self.total = 0
        self._pieces: dict[int, tuple[int, dict[str, int]]] = {}  # id -> tokens, program -> how many of its agents

    def clear(self) -> None:
        self.accounts.clear()
        self._pieces.clear()
        self.total = 0

    def add(self, piece: int, tokens: int, program: str) -> None:
        """One more owner of `piece`, which has `tokens`."""
        known = self._pieces.get(piece)
        owners = known[1] if known is not None else {}
        if known is not None and known[0] == tokens and program in owners:
            owners[program] += 1
            return
        self._charge(piece, -1)
        owners[program] = owners.get(program, 0) + 1
        self._pieces[piece] = tokens, owners
        self._charge(piece, 1)

    def remove(self, piece: int, program: str) -> None:
        """One owner less; what nobody owns any more is charged to SHARED until it is dropped."""
        known = self._pieces.get(piece)
        if known is None or program not in known[1]:
            return
        owners = known[1]
        if owners[program] > 1:
            owners[program] -= 1
            return
        self._charge(piece, -1)
        del owners[program]
        self._charge(piece, 1)

    def split(self, upper: int, upper_tokens: int, lower: int, lower_tokens: int) -> None:
        """`lower` has given its first tokens to the new piece `upper`, which has the same owners."""
        known = self._pieces.get(lower)
        if known is None:
            return
        self._charge(lower, -1)
        self._pieces[lower] = lower_tokens, known[1]
        self._pieces[upper] = upper_tokens, dict(known[1])
        self._charge(lower, 1)
        self._charge(upper, 1)

    def drop(self, piece: int) -> None:
        """The piece is gone from every tier."""
        self._charge(piece, -1)
        self._pieces.pop(piece, None)

    def held(self, program: str) -> int:
        return self.accounts.get(program, 0)

    def _charge(self, piece: int, sign: int) -> None:
        known = self._pieces.get(piece)
        if known is None:
            return
        tokens, owners = known
        self.total += sign * tokens
        payers = list(owners) if 0 < len(owners) <= MOST_PARTS else [SHARED]
        for program, part in zip(payers, parts(tokens, len(payers)), strict=True):
            left = self.accounts.get(program, 0) + sign * part
            if left:
                self.accounts[program] = left
            else:
                self.accounts.pop(program, None)
