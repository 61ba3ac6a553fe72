"""Decisions as values. A policy returns them, the engine carries them out or declines with a reason."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass
from typing import Protocol

from tokencake_sglang.core.types import AgentView, Footprint, PoolView
from tokencake_sglang.core.values import value


@dataclass(frozen=True)
class Offload:
    """Back up the agent's unshared KV where it is not yet, then take it off the device; until `lease_until` its
    host copy is given up after all others (None: it is not). Replaces an earlier lease."""

    lease_until: float | None


@dataclass(frozen=True)
class Backup:
    """Copy to the host what of the agent's KV has no copy there; it stays on the device and can leave it at once."""


@dataclass(frozen=True)
class CancelOffload:
    """Keep on the device what has not left it yet."""


@dataclass(frozen=True)
class Upload:
    """Bring back at most `max_tokens` of the agent's latest path and protect it until `lease_until` (None: not at all).

    It takes free memory and dead KV; with `displaces` also that of KV which is worth less, its next use being later.
    With `min_tokens` a node of the tree is cut where it does not fit whole, and less than that is declined; with None
    whole nodes come, as many as fit.
    """

    max_tokens: int
    lease_until: float | None
    displaces: bool = False
    min_tokens: int | None = None


@dataclass(frozen=True)
class Release:
    """End the agent's lease; its KV stays where it is, without protection."""


@dataclass(frozen=True)
class Retain:
    """Give the agent's KV up after all others, on the device and on the host, until a Release."""


Action = Offload | Backup | CancelOffload | Upload | Release | Retain


@value
class UploadWish:
    """The agent's missing KV should come back; core/uploads.py says when each piece does.

    `start_by`: when the copy has to begin to be in time; may have passed. `copy_s`: how long it is taken to last; with
    it the copy waits until it has to begin (0: it begins as soon as there is room). `is_due`: it may take the place of
    KV that is worth less, else memory that lies free only. `importance`: 0 to 10.
    """

    tokens: int
    start_by: float
    is_due: bool = True
    importance: float = 0.0
    copy_s: float = 0.0

    @property
    def ready_by(self) -> float:
        """When it is to be back."""
        return self.start_by + self.copy_s


@value
class Decision:
    """What to do now for one agent, why, and when to look again (None: at its next event). `figures` are what it
    rests on, by name.

    `next_use`: when the agent's KV is expected to be used again, by which victims are chosen; None: not known.
    `wish`: it competes for room and for the link with those of other agents until the next decision; None ends it.
    """

    action: Action | None
    reason: str
    wake_at: float | None = None
    figures: tuple[tuple[str, float], ...] = ()
    next_use: float | None = None
    wish: UploadWish | None = None


@value
class Outcome:
    """The engine's answer. `tokens` are those that will move; `reason` says why it declined."""

    accepted: bool
    tokens: int = 0
    reason: str = ""


@value
class MoveDone:
    """A move has ended: `kind` is "offload", "backup" or "upload", `tokens` are those that really moved."""

    key: str
    kind: str
    tokens: int


class Policy(Protocol):
    """Decides for one agent at a time from values alone; equal input gives equal output on every rank.

    `reads_waiting`: it looks at `PoolView.waiting`; to any other the view shows none. `reads_demand`: it looks at what
    waiting and running requests will need (`waiting_head_tokens`, `admission_tokens`, `growth_tokens`); to one that
    says False these are None. One that says nothing is taken to look. `follows_kv` (may be left out: no): it is asked
    again soon about an agent with open calls the end of whose KV has left the device.
    """

    reads_waiting: bool
    reads_demand: bool

    def decide(self, now: float, agent: AgentView, pool: PoolView) -> Decision: ...


class Mechanism(Protocol):
    """What the engine offers to the controller. No method decides; `execute` may decline."""

    def footprint(self, key: str) -> Footprint: ...

    def pool(self, demand: bool = True) -> PoolView:
        """`demand`: with what waiting and running requests will need, which takes longer to measure."""
        ...

    def live_rids(self) -> Container[str]:
        """Ids of all requests that wait or run in this step."""
        ...

    def execute(self, key: str, action: Action) -> Outcome: ...

    def expect(self, key: str, at: float | None) -> None:
        """The agent's KV is expected to be used again at that time; None: nobody knows when."""
        ...

    def take_completions(self) -> list[MoveDone]: ...

    def forget(self, key: str) -> None:
        """Drop the agent's ownership and protection; its KV becomes ordinary cache."""
        ...
