"""Which waiting request may take memory beyond its pool. Only new ones are asked: what runs, or ran, is never denied.

    shared = device - reserves - what all pools use beyond their reserves

As published: a request of a critical pool may take `shared`, what is left of its own reserve, and the reserves of pools
of which nobody waits; the first of them in the queue may take any. All others may take `shared` while a critical one
waits, and everything while none does: idle reserve is lent.

With `claims`: a request leaves free what critical work of older programs, expected back soon, will need, as far as the
reserve of its pool has that. Who waits needs no claim, since the queue goes by the age of programs.

A tenant below its floor has a claim to the rest of the floor while it waits: others leave that alone. One above its
ceiling waits while another tenant is at it, unless it has nothing at all in use: what runs beside another's requests
makes each of their steps longer, whether they wait or not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import inf
from typing import NamedTuple

from tokencake_sglang.core.spatial.pools.account import Account, Pool
from tokencake_sglang.core.tenant_shares import Share, share_of

POOL, FLOOR, CEILING = "pool", "floor", "ceiling"  # why a request is passed over
REASONS = (POOL, FLOOR, CEILING)


class Claim(NamedTuple):
    """Of an agent that is expected back; `order` is that of its program's arrival."""

    order: int
    pool: Pool
    need: int


class Gate:
    """As of the last look at the device, and what was let in since."""

    def __init__(self, total: int = 0, reserved: Mapping[Pool, int] | None = None,
                 shares: dict[str, Share] | None = None) -> None:
        self.total = total
        self.reserved: Mapping[Pool, int] = reserved or {}
        self.shares = shares or {}
        self.claims: dict[str, Claim] | None = None  # by agent; None: as published
        self.used: dict[Pool, int] = {}
        self.used_by_tenant: dict[str, int] = {}
        self.waiting: dict[Account, int] = {}
        self.at_it: frozenset[str] = frozenset()  # tenants
        self._critical_was_tried = False
        self._rooms: dict[Account, tuple[float, str]] = {}

    def see(self, used: Mapping[Account, int], waiting: Mapping[Account, int], at_it: Iterable[str] = ()) -> None:
        """Tokens in use and requests that wait, by account; tenants that have requests, or agents away for a call."""
        self.used, self.used_by_tenant = {}, {}
        for account, tokens in used.items():
            self._use(account, tokens)
        self.waiting = dict(waiting)
        self.at_it = frozenset(at_it)
        self.begin_step()

    def begin_step(self) -> None:
        """The queue is gone through from its head."""
        self._critical_was_tried = False
        self._rooms.clear()

    def denial(self, account: Account, need: int, order: int = 0) -> str | None:
        """Why a request that needs `need` tokens is passed over; None: it may go. `order`: of its program's arrival."""
        reason = self.would_deny(account, need, order)
        if self._is_first_critical(account):
            self._critical_was_tried = True
            self._rooms.clear()
        return reason

    def would_deny(self, account: Account, need: int, order: int = 0) -> str | None:
        """The same as a question: the request is not tried."""
        if self.claims is not None:
            room, reason = min((self._room_beside_claims(order), POOL), self._tenant_room(account))
        elif self._is_first_critical(account):
            room, reason = self._tenant_room(account)
        else:
            if account not in self._rooms:
                self._rooms[account] = min((self._pool_room(account), POOL), self._tenant_room(account))
            room, reason = self._rooms[account]
        return reason if need > room else None

    def _is_first_critical(self, account: Account) -> bool:
        return self.claims is None and account.pool in self.reserved and not self._critical_was_tried

    def take(self, account: Account, need: int) -> None:
        """A request that waited is let in."""
        self._use(account, need)
        self.joined(account, -1)

    def give_back(self, account: Account, need: int) -> None:
        """One that was let in did not go in after all: it waits."""
        self._use(account, -need)
        self.joined(account)

    def joined(self, account: Account, count: int = 1) -> None:
        """So many requests more wait."""
        left = self.waiting.get(account, 0) + count
        if left > 0:
            self.waiting[account] = left
        else:
            self.waiting.pop(account, None)
        self._rooms.clear()

    def _use(self, account: Account, tokens: int) -> None:
        self.used[account.pool] = self.used.get(account.pool, 0) + tokens
        self.used_by_tenant[account.tenant] = self.used_by_tenant.get(account.tenant, 0) + tokens

    @property
    def shared_free(self) -> int:
        """Below 0 where reserve is lent."""
        over = sum(max(0, tokens - self.reserved.get(pool, 0)) for pool, tokens in self.used.items())
        return self.total - sum(self.reserved.values()) - over

    def idle(self, pool: Pool) -> int:
        """What is left of its reserve."""
        return max(0, self.reserved.get(pool, 0) - self.used.get(pool, 0))

    def _pool_room(self, account: Account) -> float:
        waiting = {one.pool for one in self.waiting if one.pool in self.reserved}
        if waiting <= {account.pool}:
            return inf
        if account.pool not in self.reserved:
            return max(0, self.shared_free)
        lent = sum(self.idle(pool) for pool in self.reserved if pool not in waiting and pool != account.pool)
        return max(0, self.shared_free) + self.idle(account.pool) + lent

    def _room_beside_claims(self, order: int) -> float:
        older: dict[Pool, int] = {}
        for claim in self.claims.values():
            if claim.order < order:
                older[claim.pool] = older.get(claim.pool, 0) + claim.need
        withheld = sum(min(need, self.reserved.get(pool, 0)) for pool, need in older.items())
        return self.total - sum(self.used.values()) - withheld if withheld else inf

    def _tenant_room(self, account: Account) -> tuple[float, str]:
        if not self.shares:
            return inf, FLOOR
        others = {one.tenant for one in self.waiting if one.tenant != account.tenant}
        used, share = self.used_by_tenant.get(account.tenant, 0), share_of(self.shares, account.tenant)
        claims = sum(self.missing_floor(tenant) for tenant in others)
        free = self.total - sum(self.used_by_tenant.values())
        room: float = max(free - claims, self.missing_floor(account.tenant)) if claims else inf
        if used and share.ceiling < 1.0 and (others or self.at_it - {account.tenant}):
            return min((room, FLOOR), (share.ceiling * self.total - used, CEILING))
        return room, FLOOR

    def floor(self, tenant: str) -> int:
        return int(share_of(self.shares, tenant).floor * self.total)

    def missing_floor(self, tenant: str) -> int:
        """What a tenant uses less than its floor."""
        return max(0, self.floor(tenant) - self.used_by_tenant.get(tenant, 0))
