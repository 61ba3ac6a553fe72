"""What each tenant may have of the device: `acme=0.2:0.6,beta=0.1:1,*=0:0.5`. Pure.

Floor: the share that it can always get back. Ceiling: the share that it does not exceed while another has work.
`*` gives a ceiling to every tenant that is not named.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from tokencake_sglang.core.errors import ConfigError

OTHERS = "*"
FORM = "name=floor:ceiling, several joined by commas, as acme=0.2:0.6,beta=0.1:1"


class Share(NamedTuple):
    floor: float = 0.0
    ceiling: float = 1.0


def parse_shares(text: str) -> dict[str, Share]:
    """The shares by tenant. ConfigError says what is wrong and what is allowed."""
    found: dict[str, Share] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, equals, numbers = part.rpartition("=")
        floor, colon, ceiling = numbers.partition(":")
        if not (equals and colon):
            raise _wrong(f"the part {part!r}", FORM)
        if name in found:
            raise _wrong(f"two shares of the tenant {name!r}", "one for each tenant")
        found[name] = Share(_number(part, floor), _number(part, ceiling))
        if found[name].floor > found[name].ceiling or found[name].ceiling == 0:
            raise _wrong(f"the part {part!r}", "a floor that is at most its ceiling, and a ceiling above 0")
    if found.get(OTHERS, Share()).floor:
        raise _wrong("a floor for all other tenants", "a floor of 0 for '*': its tenants are not counted beforehand")
    total = math.fsum(share.floor for share in found.values())
    if total > 1.0 + 1e-9:
        raise _wrong(f"floors that add up to {total:g}", "1 at the most")
    return found


def share_of(shares: dict[str, Share], tenant: str) -> Share:
    found = shares.get(tenant)
    return shares.get(OTHERS, Share()) if found is None else found


def _number(part: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0.0 <= value <= 1.0:
        raise _wrong(f"the part {part!r}", "shares from 0 to 1")
    return value


def _wrong(found: str, allowed: str) -> ConfigError:
    return ConfigError(f"TokenCake setting tenant_shares has {found}; allowed: {allowed}. Correct it.")
