"""Whose tokens: accounts, the tokens of each by what they are there for, and whole numbers that add up."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple, TypeVar

from tokencake_sglang.core.spatial.ledger import MOST_PARTS, SHARED, parts
from tokencake_sglang.core.spatial.views import Waiting

K = TypeVar("K", bound=Hashable)
Pool = tuple[str, str]  # class of applications, agent type
UNTYPED: Pool = ("", "")  # plain requests, and agents without a type: never critical


class Account(NamedTuple):
    tenant: str
    application: str
    kind: str

    @property
    def pool(self) -> Pool:
        return (self.application, self.kind) if self.kind else UNTYPED


NOBODY = Account("", "", "")


def account_of(waiting: Waiting) -> Account:
    return Account(waiting.tenant, waiting.application, waiting.kind) if waiting.program else Account(
        waiting.tenant, "", "")


class Tokens(NamedTuple):
    """On the device. Each token is one of these: in use by running requests, read or written by a copy, or neither."""

    used: int = 0
    in_transfer: int = 0
    cached: int = 0

    @property
    def held(self) -> int:
        return self.used + self.in_transfer + self.cached

    def plus(self, other: Tokens) -> Tokens:
        return Tokens(*(mine + its for mine, its in zip(self, other, strict=True)))


NONE = Tokens()


class DeviceBooks:
    """Every token of the device in one account: by agent, what none owns in SHARED. Adds up to `total`."""

    def __init__(self) -> None:
        self.accounts: dict[str, Tokens] = {}

    def charge(self, tokens: Tokens, owners: Sequence[str]) -> None:
        """A piece that `owners` share in equal parts."""
        payers = owners if 0 < len(owners) <= MOST_PARTS else (SHARED,)
        split = [parts(count, len(payers)) for count in tokens]
        for number, owner in enumerate(payers):
            part = Tokens(*(counts[number] for counts in split))
            self.accounts[owner] = self.accounts.get(owner, NONE).plus(part)

    @property
    def total(self) -> int:
        return sum(tokens.held for tokens in self.accounts.values())

    def by(self, account: Mapping[str, K], nobody: K) -> dict[K, Tokens]:
        """The same by `account` of the agents; those without one, and what none owns, are of `nobody`."""
        found: dict[K, Tokens] = {}
        for agent, tokens in self.accounts.items():
            key = account.get(agent, nobody)
            found[key] = found.get(key, NONE).plus(tokens)
        return found


def by_pool(accounts: Mapping[Account, Tokens]) -> dict[Pool, Tokens]:
    found: dict[Pool, Tokens] = {}
    for account, tokens in accounts.items():
        found[account.pool] = found.get(account.pool, NONE).plus(tokens)
    return found


def largest_remainder(total: int, weights: Mapping[K, float]) -> dict[K, int]:
    """`total` in whole parts that go by the weights and add up to it: the largest remainders are rounded up. Equal
    ones go by the order of the keys. Empty where no weight is above 0."""
    weighed = {key: float(weight) for key, weight in weights.items() if weight > 0}
    whole = sum(weighed.values())
    if not weighed or total <= 0:
        return {}
    exact = {key: total * weight / whole for key, weight in weighed.items()}
    found = {key: int(value) for key, value in exact.items()}
    missing = total - sum(found.values())
    for key in sorted(weighed, key=lambda key: (found[key] - exact[key], key))[:missing]:
        found[key] += 1
    return {key: count for key, count in found.items() if count}


def borrowed(used: Mapping[Pool, int], reserved: Mapping[Pool, int], total: int) -> dict[Pool, int]:
    """What each pool uses of the reserves of others: what it has beyond its own reserve, as far as the part that is
    nobody's reserve does not hold all of that; split in proportion."""
    over = {pool: max(0, tokens - reserved.get(pool, 0)) for pool, tokens in used.items()}
    lent = sum(over.values()) - (total - sum(reserved.values()))
    return largest_remainder(max(0, lent), over)
