"""A Mechanism in memory: agents with so many tokens, moves that end when the test lands them, a log of actions."""

from __future__ import annotations

from dataclasses import dataclass, field

from tokencake_sglang.core.costs import Costs
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
    otherwise. `back`: so many of those on the host are on the device again."""

    count: int
    on_device: bool = True
    has_copy: bool = True
    back: int = 0


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
    costs: Costs = Costs()
    pieces: dict[str, int] = field(default_factory=dict)  # tokens of the uploads under way

    def footprint(self, key: str) -> Footprint:
        mine = self.tokens.get(key)
        if mine is None:
            return Footprint()
        if mine.on_device:
            copied = mine.count if mine.has_copy else 0
            return Footprint(mine.count, copied, mine.count, 0, backed_up_tokens=copied)
        return Footprint(mine.back, mine.count, mine.back, mine.count - mine.back, backed_up_tokens=mine.back)

    def pool(self, demand: bool = True) -> PoolView:
        loads = sum(kind == "upload" for kind in self.moves.values())
        return PoolView(100_000, self.free, 0, 0, 100_000, 100_000, 0, 0, 0, loads, self.load_slots,
                        costs=self.costs)

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
        tokens = mine.count
        if isinstance(action, Upload):
            tokens = min(mine.count - mine.back, action.max_tokens)
            if tokens < (mine.count - mine.back if action.min_tokens is None else action.min_tokens):
                return Outcome(False, reason="no_room")
            self.pieces[key] = tokens
        self.moves[key] = kind
        if isinstance(action, (Offload, Upload)) and action.lease_until is not None:
            self.protected[key] = None
        return Outcome(True, tokens)

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
        tokens = mine.count if mine else 0
        if mine is not None and self.moves[key] == "upload" and not mine.on_device:
            tokens = self.pieces[key]
            mine.back += tokens
            mine.on_device = mine.back == mine.count
        elif mine is not None:
            mine.on_device = self.moves[key] != "offload"
        if mine is not None:
            mine.has_copy, mine.back = True, 0 if mine.on_device or self.moves[key] == "offload" else mine.back
        self._end(key, tokens)

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
