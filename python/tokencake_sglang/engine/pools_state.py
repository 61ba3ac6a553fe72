"""For the live state: the device's memory by pool and tenant, and why each waiting request waits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokencake_sglang.core.spatial import SpatialScheduler
from tokencake_sglang.core.spatial.pools import Account, Pools, Tokens
from tokencake_sglang.core.spatial.pools.account import NOBODY, NONE, Pool, borrowed, by_pool
from tokencake_sglang.core.tenant_shares import share_of
from tokencake_sglang.engine.pools import DevicePools

DOOR, MEMORY, ORDER = "door", "memory", "order"  # the others are those of core/spatial/pools/gate.py


def waiting_reasons(queue: Sequence[Any], spatial: SpatialScheduler, pools: Pools) -> dict[str, str]:
    """By request: at the door, denied by its pool, its tenant's ceiling or another's floor; the first of the others
    waits for room beside what runs, those behind it for their turn."""
    found, is_first = {}, True
    for req in queue:
        reason = DOOR if spatial.holds_back(req.rid) else pools.denial(req.rid)
        if reason is None:
            reason, is_first = MEMORY if is_first else ORDER, False
        found[req.rid] = reason
    return found


def memory_report(device: DevicePools, most: int) -> dict[str, Any]:
    """Walks the whole tree. Up to `most` agents of each pool, those that hold most first."""
    books, pools, total = device.meter.books(), device.pools, device.scheduler.max_total_num_tokens
    accounts = books.by(pools.account_of, NOBODY)
    agents: dict[Pool, dict[str, Tokens]] = {}
    for key, tokens in books.accounts.items():
        agents.setdefault(pools.account_of.get(key, NOBODY).pool, {})[key] = tokens
    of_pools = by_pool(accounts)
    lent = borrowed({pool: tokens.used for pool, tokens in of_pools.items()}, pools.gate.reserved, total)
    return {
        "total": total, "free": total - books.total, "reserved": sum(pools.gate.reserved.values()),
        "pools": [
            {"application": pool[0], "agent_type": pool[1], "size": pools.gate.reserved.get(pool, 0),
             "borrowed": lent.get(pool, 0), **_counts(of_pools.get(pool, NONE)),
             "agents": [{"agent": key, **_counts(tokens)} for key, tokens in _largest(agents.get(pool, {}), most)]}
            for pool in sorted({*of_pools, *pools.gate.reserved})],
        "tenants": [
            {"tenant": tenant, **share_of(pools.shares, tenant)._asdict(), **_counts(tokens)}
            for tenant, tokens in sorted(_by_tenant(accounts).items())],
    }


def _counts(tokens: Tokens) -> dict[str, int]:
    return tokens._asdict()


def _largest(agents: dict[str, Tokens], most: int) -> list[tuple[str, Tokens]]:
    return sorted(agents.items(), key=lambda pair: (-pair[1].held, pair[0]))[:most]


def _by_tenant(accounts: dict[Account, Tokens]) -> dict[str, Tokens]:
    found: dict[str, Tokens] = {}
    for account, tokens in accounts.items():
        found[account.tenant] = found.get(account.tenant, NONE).plus(tokens)
    return found
