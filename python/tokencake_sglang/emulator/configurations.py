"""Names of configurations: what can be compared with what.

    TIER[-SCHEDULE][-EVICTION][-PART...][+BOUND...]

    hicache-lpm-mixed-chunk512      HiCache write-through, longest prefix first, mixed chunks of 512 tokens
    stock-fcfs-slru                 no host tier, first come first served, segmented LRU
    tokencake                       TokenCake as its launcher starts it: its own order, balanced mixed chunks
    tokencake-cost-program          TokenCake with the offload policy `cost` and its own order, SGLang's own chunks
    tokencake-pools.demand          TokenCake as its launcher starts it, with pools sized by demand
    tokencake-cost-lpm              TokenCake with the offload policy `cost`, longest prefix first
    tokencake-maxtokens             TokenCake as its launcher starts it, but admission by what requests ask for
    stock-lpm+clairvoyant-evict     a victim choice that knows the future under SGLang's own order
    tokencake-cost-lpm+clairvoyant-evict   TokenCake's own victim choice with true next uses instead of forecasts

The schedule stands right after the tier, or after the offload policy of tokencake. Without one it is fcfs, SGLang's
default; `tokencake` and `tokencake-POLICY` are what the launcher starts, alone or with settings. PART is one of PARTS,
of SETTINGS after tokencake, chunkN (--chunked-prefill-size N), hostR (host pool of R times the device pool) or, in
TokenCake's own order, pools.NAME (--tokencake-pools NAME). Everything else is what SGLang 0.5.17 does by default.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from tokencake_sglang.core.config import OFFLOAD_POLICIES, TokenCakeConfig
from tokencake_sglang.core.config import POOLS as POOL_SIZES
from tokencake_sglang.emulator import bounds
from tokencake_sglang.emulator.spec import Configuration
from tokencake_sglang.server import deployment

TIERS = {
    "stock": "no host tier",
    "hicache": "HiCache write-through",
    "session": "SGLang's session radix cache (unified tree, no host tier)",
    "tokencake": "TokenCake on HiCache write-through",
}
ALIASES = {"session-radix": "session", "clairvoyant": "hicache+clairvoyant"}
SCHEDULES = {
    "lpm": "longest prefix match first",
    "random": "random order",
    "fcfs": "first come first served",
    "dfs-weight": "depth-first by the tree's weights",
    "lof": "longest output first",
    "routing-key": "routing key (the program) of most running requests first",
    "priority": "fcfs with client priorities by program age, with preemption",
}
PROGRAM = "program"  # TokenCake's own order
ALONE, OWN = deployment.settle_chunks(deployment.CUDA_CHUNKS, TokenCakeConfig())  # what the launcher chooses beside it
EVICTIONS = ("lru", "lfu", "slru", "priority")
PARTS = {
    "mixed": "mixed chunks",
    "writeback": "write-back",
    "selective": "selective write-through",
    "nopreempt": "no preemption by priority",
}
SETTINGS = {  # of TokenCake: words, and the values of TokenCakeConfig
    "maxtokens": ("admission by what requests ask for", {"admission": "max-tokens"}),
    "tenants": ("tenants told apart", {"tenant_header": "x-tenant"}),
    "balanced": ("balanced mixed chunks", {"chunks": "balanced"}),
}
WRITE_POLICIES = {"writeback": "write_back", "selective": "write_through_selective"}
POOLS = "pools."  # a part of tokencake that leaves everything else as the launcher starts it
CHUNKS = (128, 256, 512, 1024, 2048, 4096, 8192)
TO_BEAT = ("lpm", "routing-key", "priority")
_NUMBERED = re.compile(r"(chunk[1-9]\d*|host\d+(?:\.\d+)?)")
_WORDS = re.compile(r"dfs-weight|routing-key|[^-]+")


def configuration(name: str) -> Configuration:
    """The configuration of that name.

    Raises:
        ValueError: a part is unknown, given twice, or does not go with the rest; says what is allowed.
    """
    base, plus, bound = name.partition("+")
    alias, _, inherited = ALIASES.get(base, base).partition("+")
    parts = _Parts(name, alias)
    if plus and not bound:
        parts.refuse("no bound after the '+'", f"Allowed: {', '.join(bounds.MEANINGS)}, gateN.")
    bound = "+".join(word for word in (inherited, bound) if word)
    _check_bound(parts, bounds.parse(bound))
    return Configuration(
        name=name, server_args=parts.server_args(), tokencake=parts.tokencake(),
        routing_key=parts.schedule == "routing-key",
        priority="program_age" if "priority" in (parts.schedule, parts.eviction) else "none",
        bound=bound, host_ratio=parts.host_ratio)


def _check_bound(parts: _Parts, bound: bounds.Bound) -> None:
    if bound.eviction and parts.tier == "session":
        parts.refuse("a bound cannot choose victims in the tier session", "Use the tier stock, hicache or tokencake.")
    if parts.tier == "tokencake" and (bound.order or bound.eviction not in ("", "clairvoyant-evict")):
        parts.refuse("the tier tokencake takes only the bounds clairvoyant-evict, known-... and gateN", (
            "Use one of them, or the tier stock or hicache."))
    if bound.known and parts.tier != "tokencake":
        parts.refuse(f"the tier {parts.tier} has no forecasts to replace", "Use known-... with the tier tokencake.")


class _Parts:
    """The parts of one name without its bound."""

    def __init__(self, name: str, base: str) -> None:
        self.name = name
        words = _WORDS.findall(base)
        self.tier = words.pop(0) if words else ""
        if self.tier not in TIERS:
            self.refuse(f"{self.tier!r} is no tier", (
                f"Begin with one of {', '.join(TIERS)}; whole names are {', '.join(ALIASES)}."))
        self.policy = words.pop(0) if self.tier == "tokencake" and words and words[0] in OFFLOAD_POLICIES else ""
        self.pools = self._take_pools(words)
        self.is_alone = self.tier == "tokencake" and not set(words) - set(SETTINGS)
        self.schedule = words.pop(0) if words and words[0] in self._schedules() else "fcfs"
        self.eviction = words.pop(0) if words and words[0] in EVICTIONS else ""
        self.numbers: dict[str, str] = {}
        self.flags: list[str] = []
        for word in words:
            self._part(word)
        if "-".join(_WORDS.findall(base)) != base:
            self.refuse("it has an empty part", "Join the parts by single dashes.")
        self._check()

    def _take_pools(self, words: list[str]) -> str:
        given = [word for word in words if word.startswith(POOLS)]
        if not given:
            return ""
        words[:] = [word for word in words if word not in given]
        name = given[0].removeprefix(POOLS)
        if len(given) > 1:
            self.refuse("'pools' is given twice", "Give it once.")
        if name not in POOL_SIZES or self.tier != "tokencake":
            self.refuse(f"{given[0]!r} is unknown or out of place", (
                f"After tokencake, pools.NAME is one of {', '.join(POOLS + size for size in POOL_SIZES)}."))
        return name

    def refuse(self, found: str, advice: str) -> None:
        raise ValueError(f"There is no configuration {self.name!r}: {found}. {advice}")

    def _part(self, word: str) -> None:
        numbered = _NUMBERED.fullmatch(word)
        kind = re.match("[a-z]+", word)[0] if numbered else word
        if kind in self.numbers or kind in self.flags:
            self.refuse(f"{kind!r} is given twice", "Give it once.")
        if numbered:
            self.numbers[kind] = word.removeprefix(kind)
        elif word in PARTS or (word in SETTINGS and self.tier == "tokencake"):
            self.flags.append(word)
        else:
            self.refuse(f"part {word!r} is unknown or out of place", (
                f"The form is TIER[-SCHEDULE][-EVICTION][-PART...][+BOUND]. Tiers: {', '.join(TIERS)}. After "
                f"tokencake: {', '.join(OFFLOAD_POLICIES)}. Schedules: {', '.join(SCHEDULES)}. "
                f"Evictions: {', '.join(EVICTIONS)}. Parts: {', '.join(PARTS)}, chunkN, hostR, after tokencake "
                f"also {', '.join(SETTINGS)}, pools.NAME. "
                f"Bounds: {', '.join(bounds.MEANINGS)}, gateN."))

    def _schedules(self) -> dict[str, str]:
        return SCHEDULES | ({PROGRAM: "programs in order of age"} if self.tier == "tokencake" else {})

    def _check(self) -> None:
        written = [word for word in self.flags if word in WRITE_POLICIES]
        if len(written) > 1:
            self.refuse("two write policies", "Name one of writeback and selective; write-through is the default.")
        if written and self.tier not in ("hicache", "tokencake"):
            self.refuse(f"{written[0]!r} needs a host tier", "Use the tier hicache.")
        if "writeback" in written and self.tier == "tokencake":
            self.refuse("TokenCake refuses write-back", "Use selective, or the tier hicache.")
        if self.tier in ("stock", "session") and "host" in self.numbers:
            self.refuse("'host' needs a host tier", "Use the tier hicache or tokencake.")
        if "nopreempt" in self.flags and self.schedule != "priority":
            self.refuse("'nopreempt' needs the schedule priority", "Leave it out, or use the schedule priority.")
        if self.pools and not self._is_by_program:
            self.refuse("pools need TokenCake's own order", "Leave the schedule out, or use program.")
        if "host" in self.numbers and self.host_ratio <= 0:
            self.refuse("the host pool would be empty", "Give a ratio above 0.")

    @property
    def host_ratio(self) -> float | None:
        return float(self.numbers["host"]) if "host" in self.numbers else None

    def server_args(self) -> dict[str, Any]:
        by_priority = self.schedule == "priority"
        is_stock = self.schedule in SCHEDULES and not by_priority
        values: dict[str, Any] = {"schedule_policy": self.schedule if is_stock else "fcfs"}
        values.update(ALONE if self.is_alone or "balanced" in self.flags else {})
        if by_priority:
            values["enable_priority_scheduling"] = True
        if self.tier in ("hicache", "tokencake"):
            written = [WRITE_POLICIES[word] for word in self.flags if word in WRITE_POLICIES]
            values.update(enable_hierarchical_cache=True,
                          hicache_write_policy=written[0] if written else "write_through")
        if self.tier == "session":
            values["enable_session_radix_cache"] = True
        if self.eviction:
            values["radix_eviction_policy"] = self.eviction
        if "mixed" in self.flags:
            values["enable_mixed_chunk"] = True
        if "nopreempt" in self.flags:
            values["disable_priority_preemption"] = True
        if "chunk" in self.numbers:
            values["chunked_prefill_size"] = int(self.numbers["chunk"])
        return values

    def tokencake(self) -> dict[str, Any] | None:
        if self.tier != "tokencake":
            return None
        settings = {"offload_policy": self.policy} if self.policy else {}
        for word in self.flags:
            settings.update(SETTINGS[word][1] if word in SETTINGS else {})
        if self.is_alone:
            settings["chunks"] = OWN.chunks
        settings |= {"pools": self.pools} if self.pools else {}
        return {**settings, "order": "program" if self._is_by_program else "sglang"}

    @property
    def _is_by_program(self) -> bool:
        return self.is_alone or self.schedule == PROGRAM

    def words(self) -> list[str]:
        """What the name says, in words."""
        told = [TIERS[self.tier] + (f", offload policy {self.policy}" if self.policy else "")]
        told.append("as the launcher starts it" if self.is_alone else self._schedules()[self.schedule])
        told += [f"pools {self.pools}"] if self.pools else []
        told += [f"eviction {self.eviction}"] if self.eviction else []
        told += [PARTS[word] if word in PARTS else SETTINGS[word][0] for word in self.flags]
        told += [f"chunks of {self.numbers['chunk']} tokens"] if "chunk" in self.numbers else []
        told += [f"host pool {self.numbers['host']} times the device's"] if "host" in self.numbers else []
        return told


def describe(name: str) -> str:
    """One line for a configuration's name. ValueError as `configuration`."""
    found = configuration(name)
    base = ALIASES.get(name.partition("+")[0], name.partition("+")[0]).partition("+")[0]
    told = ", ".join(_Parts(name, base).words())
    return f"{told}; {bounds.describe(found.bound)}" if found.bound else told


def _best_stock() -> list[str]:
    """The stock to beat: three orders on HiCache write-through, with and without mixed chunks, at SGLang's chunk
    size for the device and at each of CHUNKS. 48 names; "best stock" of a cell is the best of them there."""
    sizes = ["", *(f"-chunk{size}" for size in CHUNKS)]
    return [f"hicache-{order}{mixed}{size}" for order in TO_BEAT for mixed in ("", "-mixed") for size in sizes]


GROUPS: dict[str, Callable[[], list[str]]] = {
    "best-stock": _best_stock,
    "best-stock-short": lambda: [
        f"hicache-{order}{parts}" for order in TO_BEAT
        for parts in ("", "-mixed-chunk128", "-mixed-chunk256", "-mixed-chunk512")],
    "schedule": lambda: [f"{tier}-{order}" for tier in ("stock", "hicache") for order in SCHEDULES],
    "eviction": lambda: [
        f"{tier}-{order}-{policy}"
        for tier in ("stock", "hicache") for order in ("fcfs", "lpm") for policy in EVICTIONS],
    "write": lambda: [
        f"hicache-{order}{parts}" for order in ("fcfs", "lpm") for parts in ("", "-writeback", "-selective")],
    "bounds": lambda: ["hicache-lpm+clairvoyant-evict", "clairvoyant", "hicache-fcfs+program"],
    "ablation": lambda: [
        "stock-fcfs", "hicache-lpm-mixed-chunk128", "tokencake-none", "tokencake-cost-lpm-balanced", "tokencake"],
    "study": lambda: [
        "stock-fcfs", "stock-lpm", "stock-fcfs+program", "stock-fcfs+gate4+program", "hicache-fcfs", "hicache-lpm",
        "hicache-fcfs+program", "clairvoyant"],
}
_ALSO = ("session-radix", "session-lpm", "tokencake", "tokencake-lpm", "tokencake-routing-key", "tokencake-lpm-mixed",
         "tokencake-none", "tokencake-none-lpm", "tokencake-cost", "tokencake-cost-lpm")


def group(name: str) -> list[str]:
    """The names of a group of configurations; ValueError says which groups there are."""
    if name not in GROUPS:
        raise ValueError(f"There is no group of configurations {name!r}. Allowed: {', '.join(GROUPS)}.")
    return GROUPS[name]()


def names() -> list[str]:
    """The well-known names: those of every group, and TokenCake's. Other combinations of parts work as well."""
    known: dict[str, None] = {}
    for make in GROUPS.values():
        known.update(dict.fromkeys(make()))
    return list(dict.fromkeys([*known, *_ALSO]))
