"""A Mechanism in memory: agents with so many tokens, moves that end when the test lands them, a log of actions."""

from __future__ import annotations

from dataclasses import dataclass, field

from tokencake_sglang.core.plan import (
    Action,
    Backup,
    CancelOffload,
    MoveDone,
    Offload,
    Outcome,
    Release,
    Retain,
    Upload,
)
from tokencake_sglang.core.types import Footprint, PoolView


@dataclass
class Tokens:
    """One agent's KV, all of it unshared: on the device or on the host only. A copy on the host is there unless said
    otherwise."""

    count: int
    on_device: bool = True
    has_copy: bool = True


@dataclass
class MemoryMechanism:
    """Keeps the promises of core.plan.Mechanism: every accepted move ends in exactly one MoveDone."""

    free: int = 10_000
    load_slots: int = 13
    tokens: dict[str, Tokens] = field(default_factory=dict)
    protected: dict[str, None] = field(default_factory=dict)
    moves: dict[str, str] = field(default_factory=dict)
    live: set[str] = field(default_factory=set)
    declines: dict[str, str] = field(default_factory=dict)  # "offload" or "upload" -> reason
    log: list[tuple[str, Action]] = field(default_factory=list)
    done: list[MoveDone] = field(default_factory=list)
    forgotten: list[str] = field(default_factory=list)
    expected: dict[str, float | None] = field(default_factory=dict)

    def footprint(self, key: str) -> Footprint:
        mine = self.tokens.get(key)
        if mine is None:
            return Footprint()
        if mine.on_device:
            copied = mine.count if mine.has_copy else 0
            return Footprint(mine.count, copied, mine.count, 0, backed_up_tokens=copied)
        return Footprint(0, mine.count, 0, mine.count)

    def pool(self) -> PoolView:
        loads = sum(kind == "upload" for kind in self.moves.values())
        return PoolView(100_000, self.free, 0, 0, 100_000, 100_000, 0, 0, 0, loads, self.load_slots)

    def expect(self, key: str, at: float | None) -> None:
        self.expected[key] = at

    def live_rids(self) -> frozenset[str]:
        return frozenset(self.live)

    def execute(self, key: str, action: Action) -> Outcome:
        self.log.append((key, action))
        if isinstance(action, Retain):
            self.protected[key] = None
            return Outcome(True)
        if isinstance(action, Release):
            self.protected.pop(key, None)
            return Outcome(True)
        if isinstance(action, CancelOffload):
            if self.moves.get(key) != "offload":
                return Outcome(False, reason="no offload is under way")
            self._end(key, 0)
            return Outcome(True)
        kind = {Offload: "offload", Backup: "backup", Upload: "upload"}[type(action)]
        if kind in self.declines:
            return Outcome(False, reason=self.declines[kind])
        if key in self.moves:
            return Outcome(False, reason="a move is under way")
        mine = self.tokens[key]
        if isinstance(action, Upload) and mine.count > action.max_tokens:
            return Outcome(False, reason="no_room")
        self.moves[key] = kind
        if isinstance(action, (Offload, Upload)) and action.lease_until is not None:
            self.protected[key] = None
        return Outcome(True, mine.count)

    def take_completions(self) -> list[MoveDone]:
        done, self.done = self.done, []
        return done

    def forget(self, key: str) -> None:
        self.forgotten.append(key)
        self.protected.pop(key, None)
        self.tokens.pop(key, None)
        if self.moves.get(key) in ("offload", "backup"):
            self._end(key, 0)

    # -- what the test does -------------------------------------------------------------------------------------

    def land(self, key: str) -> None:
        """The copies of this agent's move are complete."""
        mine = self.tokens.get(key)
        if mine is not None:
            mine.on_device = self.moves[key] != "offload"
            mine.has_copy = True
        self._end(key, mine.count if mine else 0)

    def flush(self) -> None:
        """What a cache flush does here; the controller is told separately, after this."""
        for key in list(self.moves):
            self._end(key, 0)
        self.tokens.clear()
        self.protected.clear()

    def actions(self, key: str = "a") -> list[str]:
        return [type(action).__name__ for name, action in self.log if name == key]

    def _end(self, key: str, tokens: int) -> None:
        self.done.append(MoveDone(key, self.moves.pop(key), tokens))
