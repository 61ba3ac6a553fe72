"""Tells TokenCake's own victim choice the truth in the place of forecasts: all of it, or of one thing (docs/bounds.md).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tokencake_sglang.core.forecast.presets import HUMAN_KINDS
from tokencake_sglang.emulator.clients import CallRun
from tokencake_sglang.emulator.clock import SECOND
from tokencake_sglang.engine.owners import RANK_DEAD

NEVER_S = 1e9
TIERS = ("device", "host")


class KnownUses:
    """The true next use of nodes for `cache.worth` and `cache.owners`, which choose the victims of both tiers.

    `known`: of what the truth is told, without "known-" (bounds.KNOWN); the rest stays forecast. Nothing: of all.
    Known uses come nearer and move away from step to step, so the places of all leaves are renewed in each step that
    gives any up; `VictimQueue` alone is told only of those that fall.
    """

    def __init__(self, cache: Any, strategy: Any, known: tuple[str, ...] = ()) -> None:
        self.cache, self.futures, self.strategy = cache, strategy.futures, strategy
        self.told = frozenset(known) - frozenset(TIERS)
        tiers = [tier for tier in TIERS if tier in known] or TIERS
        self._tells = tiers is TIERS
        self._rank, self._forecast = cache.owners.rank, cache.worth.expected
        cache.owners.rank, cache.worth.expected = self.rank, self.expected
        for tier, victims in zip(TIERS, (cache.device_victims, cache.host_victims), strict=True):
            victims.next = _renewing(victims, self.futures.server)
            victims.next, victims.push = (self._telling(tier in tiers, f) for f in (victims.next, victims.push))
        for tier, name in (("device", "_evict_from_device"), ("device", "displace"), ("host", "evict_host")):
            setattr(cache, name, self._telling(tier in tiers, getattr(cache, name)))

    def rank(self, node: Any) -> int:
        if self._tells and (not self.told or "reads" in self.told) and not self._readers_of(node):
            return RANK_DEAD
        return self._rank(node)

    def expected(self, node: Any) -> float | None:
        """When, on the controller's clock in seconds, the first reader of the node is scheduled."""
        if not self._tells:
            return self._forecast(node)
        uses = [(self.futures.use_ns(call), number, call) for number, call in enumerate(self._readers_of(node))]
        now = self.cache.worth.now()
        if not uses:
            return self._forecast(node) if self.told and "reads" not in self.told else now + NEVER_S
        use_ns, _, call = min(uses)
        if self.told and self._awaited(call) not in self.told:
            return self._forecast(node)
        return now + (use_ns - self.futures.now_ns) / SECOND

    def _readers_of(self, node: Any) -> list[CallRun]:
        self.futures.refresh()
        return self.strategy.readers_of(node)[1]

    def _awaited(self, call: CallRun) -> str:
        """What a future call waits for: "queue", "tools", "people", or something else ("")."""
        if call.rid in self.futures.waiting:
            return "queue"
        for parent in (call.program.calls[name] for name in call.call.after):
            if parent.finished_ns is not None and parent.ended_ns is None:
                return "people" if parent.call.tool.kind in HUMAN_KINDS else "tools"
        return ""

    def _telling(self, tells: bool, method: Callable[..., Any]) -> Callable[..., Any]:
        """`method`, with the truth told or not while it runs."""
        def told(*args: Any, **kwargs: Any) -> Any:
            before, self._tells = self._tells, tells
            try:
                return method(*args, **kwargs)
            finally:
                self._tells = before

        return told


def _renewing(victims: Any, server: Any) -> Callable[[], Any]:
    """`victims.next`, with the places of all leaves renewed once a step."""
    original, renewed_in = victims.next, -1

    def next_victim() -> Any:
        nonlocal renewed_in
        if renewed_in != server.steps:
            renewed_in = server.steps
            for node in sorted(victims.leaves, key=lambda leaf: leaf.id):
                victims.push(node)
        return original()

    return next_victim
