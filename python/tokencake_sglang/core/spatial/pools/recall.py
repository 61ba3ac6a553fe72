"""Whose resting KV leaves the device first, and how much of it: what those who wait have lent to others."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tokencake_sglang.core.spatial.pools.account import Account, K, Tokens, largest_remainder
from tokencake_sglang.core.spatial.pools.gate import Gate


def recalled(gate: Gate, needs: Mapping[Account, int], held: Mapping[Account, Tokens]) -> dict[Account, int]:
    """Tokens that each account gives back. `needs`: of waiting requests; `held`: on the device.

    A critical pool gets what it needs as far as its reserve has that, from pools that hold more than their reserves; a
    tenant the same of its floor, from tenants above theirs."""
    found = _taken(
        needs, held, lambda account: account.pool, gate.idle, lambda pool: gate.reserved.get(pool, 0))
    if gate.shares:
        of_tenants = _taken(needs, held, lambda account: account.tenant, gate.missing_floor, gate.floor)
        for account, tokens in of_tenants.items():
            found[account] = max(tokens, found.get(account, 0))
    return found


def _taken(needs: Mapping[Account, int], held: Mapping[Account, Tokens], group: Callable[[Account], K],
           owed: Callable[[K], int], own: Callable[[K], int]) -> dict[Account, int]:
    """`owed`: what a group may still take of its `own`."""
    wanted = _sum_by(group, needs)
    missing = sum(min(need, owed(one)) for one, need in wanted.items())
    if not missing:
        return {}
    resting = {account: tokens.cached for account, tokens in held.items()}
    all_held = _sum_by(group, {account: tokens.held for account, tokens in held.items()})
    weights: dict[Account, int] = {}
    for one, cached in _sum_by(group, resting).items():
        over = min(cached, all_held[one] - own(one))
        if not (one in wanted and owed(one)):
            weights.update(largest_remainder(over, {a: count for a, count in resting.items() if group(a) == one}))
    return largest_remainder(min(missing, sum(weights.values())), weights)


def _sum_by(group: Callable[[Account], K], values: Mapping[Account, int]) -> dict[K, int]:
    found: dict[K, int] = {}
    for account, value in values.items():
        found[group(account)] = found.get(group(account), 0) + value
    return found
