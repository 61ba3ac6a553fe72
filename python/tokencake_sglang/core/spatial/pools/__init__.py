"""Pools: device memory by agent type and by tenant. Accounting only: no page is ever withheld. Pure."""

from tokencake_sglang.core.spatial.pools.account import Account, Tokens
from tokencake_sglang.core.spatial.pools.pools import Device, Pools

__all__ = ["Account", "Device", "Pools", "Tokens"]
