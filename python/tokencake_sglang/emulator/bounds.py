"""Orders and victim choices that know more than a server can: their names, and `install` (docs/bounds.md).

They replace the order of the waiting queue, the eviction strategy, or both, on a built server; all else stays SGLang's.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

EVICTIONS = ("clairvoyant-evict", "program-evict")
ORDERS = ("clairvoyant-order", "program-order")
KNOWN = ("tools", "people", "queue", "reads", "device", "host")
BOTH = {"clairvoyant": ("clairvoyant-evict", "clairvoyant-order"), "program": ("program-evict", "program-order")}
_GATE = re.compile(r"gate([1-9]\d*)")

MEANINGS = {
    "clairvoyant": "victims and order both know all future calls, their times and lengths",
    "clairvoyant-evict": "victims know the future: evicts what is used farthest from now, weighed by restore cost",
    "clairvoyant-order": "waiting calls by their program's true remaining critical path, the shortest first",
    "known-tools": "victims by forecasts, but when tools end is known",
    "known-people": "victims by forecasts, but when people come back is known",
    "known-queue": "victims by forecasts, but how long calls wait in the queue is known",
    "known-reads": "victims by forecasts, but what no call will read is known",
    "known-device": "true next uses on the device only, forecasts on the host",
    "known-host": "true next uses on the host only, forecasts on the device",
    "program": "order and victims both by program",
    "program-order": "waiting calls by program arrival, inside a program by the longest remaining path",
    "program-evict": "evicts KV that no call will read, then that of the program that arrived last",
}


@dataclass(frozen=True)
class Bound:
    """`eviction` is one of EVICTIONS or "", `order` one of ORDERS or "", `gate` a number of programs or None,
    `known` some of KNOWN: of what TokenCake's own victim choice knows the truth."""

    eviction: str = ""
    order: str = ""
    gate: int | None = None
    known: tuple[str, ...] = ()


def parse(name: str) -> Bound:
    """The bound that `name` stands for: names joined by "+", such as "clairvoyant" or "gate4+program". "" is none.

    Raises:
        ValueError: an unknown part, or two parts that replace the same thing.
    """
    chosen: dict[str, Any] = {}
    for word in name.split("+") if name else ():
        if word.removeprefix("known-") in KNOWN and word.startswith("known-"):
            chosen["known"] = (*chosen.get("known", ()), word.removeprefix("known-"))
            continue
        gate = _GATE.fullmatch(word)
        for part in (word,) if gate else BOTH.get(word, (word,)):
            kind = "gate" if gate else "eviction" if part in EVICTIONS else "order" if part in ORDERS else None
            if kind is None:
                raise ValueError(f"There is no bound {word!r} (in {name!r}). Allowed, joined by '+': "
                                 f"{', '.join(MEANINGS)}, and gateN with N programs.")
            if kind in chosen:
                raise ValueError(f"The bound {name!r} replaces the {kind} twice. Name one of them.")
            chosen[kind] = int(gate[1]) if gate else part
    if "known" in chosen and "eviction" in chosen:
        raise ValueError(f"The bound {name!r} knows all and a part. Name clairvoyant-evict or known-....")
    return Bound(**chosen)


def describe(name: str) -> str:
    """One line for a bound's name."""
    parse(name)
    return "; ".join(
        MEANINGS.get(word, f"at most {word.removeprefix('gate')} programs run at a time") for word in name.split("+"))


def install(server: Any, clients: Any, name: str) -> None:
    """Put the bound `name` on a built EmulatedServer with its Clients; nothing for "". Before the run."""
    bound = parse(name)
    if bound == Bound():
        return
    from tokencake_sglang.emulator import clairvoyant

    clairvoyant.install(server, clients.runs, bound)
