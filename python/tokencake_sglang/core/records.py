"""What became of each stall: what was expected, what was decided, and what it cost when the tool came back.

A record is opened with an agent's first open call and closed when the stall ends. Costs nothing per scheduler step.
docs/counters.md says what each figure means, and what regret is not.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, overload

from tokencake_sglang.core.costs import Costs
from tokencake_sglang.core.plan import Backup, Decision, Offload, Outcome, Upload
from tokencake_sglang.core.types import AgentView, Footprint, PoolView, StallView
from tokencake_sglang.core.values import value

OBSERVATIONS_KEPT = 8192  # of the histograms, until somebody takes them
HISTOGRAMS = ("forecast_ratio", "late_s", "restore_s")
TOTALS = ("returned", "missing_tokens", "restore_s", "idle_token_s", "regret_s", "regret_token_s")


@value
class Decided:
    """A decision, when it was made and what came of it."""

    at: float
    decision: Decision
    outcome: Outcome | None

    def report(self) -> dict[str, Any]:
        action = self.decision.action
        return {
            "at": self.at, "action": None if action is None else type(action).__name__, "reason": self.decision.reason,
            "accepted": None if self.outcome is None else self.outcome.accepted,
            "figures": dict(self.decision.figures)}


@dataclass
class StallRecord:
    """One stall of one agent. Times are seconds of the scheduler's clock, lengths are seconds, the rest tokens."""

    agent: str
    agent_type: str | None
    kind: str  # of the first call
    started_at: float
    forecast_median_s: float  # of the whole stall, as seen at its start
    forecast_low_s: float | None = None  # 10 % quantile; None without a forecaster
    forecast_high_s: float | None = None  # 90 % quantile
    forecast_source: str = "point"
    first: Decided | None = None
    last: Decided | None = None
    unshared_tokens: int = 0  # on the device at the first decision
    path_tokens: int = 0  # on either tier, likewise
    offloaded_tokens: int = 0
    uploaded_tokens: int = 0
    declined: int = 0
    others_waited: bool = False  # at a decision about it
    ended_at: float | None = None
    returned_at: float | None = None  # None: the agent ended or was forgotten
    ready_at: float | None = None  # None: something was missing at the return
    missing_tokens: int = 0  # at the return
    restore_s: float = 0.0  # modelled, for what was missing
    late_s: float | None = None  # from the return until an upload had brought it back; None: no upload did
    idle_token_s: float = 0.0
    outcome: str | None = None
    regret_s: float = 0.0
    regret_token_s: float = 0.0
    _costs: Costs = field(default=Costs(), repr=False)
    _changed_at: float = field(default=0.0, repr=False)
    _away: int = field(default=0, repr=False)  # offloaded and not back
    _early: int = field(default=0, repr=False)  # uploaded, and the tool is still out
    _away_token_s: float = field(default=0.0, repr=False)
    _landed_at: float | None = field(default=None, repr=False)
    _to_restore: int = field(default=0, repr=False)  # on the host at the return, and no upload has brought it back

    def report(self) -> dict[str, Any]:
        """As JSON shows it."""
        values = {name: value for name, value in vars(self).items() if not name.startswith("_")}
        for name in ("first", "last"):
            values[name] = None if values[name] is None else values[name].report()
        return values

    def decided(self, decided: Decided, agent: AgentView, pool: PoolView) -> None:
        if self.first is None:
            self.first = decided
            self.unshared_tokens = agent.footprint.unshared_device_tokens
            self.path_tokens = agent.footprint.path_tokens
            self._read_forecast(decided.at, agent.stall)
        self.last = decided
        self.others_waited |= pool.waiting_requests > 0
        self._costs = pool.costs
        if isinstance(decided.decision.action, (Offload, Backup, Upload)) and not decided.outcome.accepted:
            self.declined += 1

    def moved(self, now: float, kind: str, tokens: int) -> None:
        self._pass_time(now)
        if kind == "offload":
            self.offloaded_tokens += tokens
            self._away += tokens
            self._early = max(0, self._early - tokens)
        elif kind == "upload":
            self.uploaded_tokens += tokens
            self._away = max(0, self._away - tokens)
            self._early += tokens
            self._landed_at = now

    def close(self, now: float, outcome: str, there: Footprint | None) -> None:
        """`there`: the agent's tokens at the return; None when it did not return."""
        self._pass_time(now)
        self.ended_at, self.outcome = now, outcome
        if there is None:
            return
        self.returned_at = now
        lost = max(0, self.path_tokens - there.path_tokens)
        away = there.restore_tokens + there.landing_tokens
        self.missing_tokens, self._to_restore = away + lost, away
        self.restore_s = self._costs.upload_s(away) + self._costs.prefill_s(lost, there.path_tokens)
        if self.missing_tokens == 0:
            self.ready_at = now if self._landed_at is None else self._landed_at
            self.late_s = 0.0
        self.regret_s = self.restore_s
        if self.others_waited:
            n, costs = self.unshared_tokens, self._costs
            could = n * max(0.0, now - self.started_at - costs.offload_s(n) - costs.upload_s(n))
            self.regret_token_s = max(0.0, could - self._away_token_s)

    def restored(self, now: float, tokens: int) -> bool:
        """An upload after the return has brought back so many tokens; whether that was the last of what was there."""
        self._to_restore -= tokens
        if self._to_restore > 0:
            return False
        self.late_s = now - self.returned_at
        return True

    def _read_forecast(self, now: float, stall: StallView | None) -> None:
        if stall is None or stall.forecast is None:
            return
        passed = now - self.started_at
        low, median, high = (passed + stall.forecast.quantile(level) for level in (0.1, 0.5, 0.9))
        self.forecast_low_s, self.forecast_median_s, self.forecast_high_s = low, median, high
        self.forecast_source = stall.forecast.source

    def _pass_time(self, now: float) -> None:
        since = max(0.0, now - max(self._changed_at, self.started_at))
        self._away_token_s += self._away * since
        self.idle_token_s += self._early * since
        self._changed_at = now


class StallRecords(Sequence[StallRecord]):
    """The last closed records, oldest first, and sums over all of them."""

    def __init__(self, kept: int) -> None:
        self.totals: dict[str, float] = dict.fromkeys(TOTALS, 0)
        self.observations: deque[tuple[str, float]] = deque(maxlen=OBSERVATIONS_KEPT)
        self._closed: deque[StallRecord] = deque(maxlen=kept)
        self._open: dict[str, StallRecord] = {}
        self._restoring: dict[str, StallRecord] = {}  # closed with something missing that an upload may bring back

    def __len__(self) -> int:
        return len(self._closed)

    @overload
    def __getitem__(self, index: int) -> StallRecord: ...
    @overload
    def __getitem__(self, index: slice) -> list[StallRecord]: ...
    def __getitem__(self, index: int | slice) -> StallRecord | list[StallRecord]:
        return list(self._closed)[index] if isinstance(index, slice) else self._closed[index]

    def newest(self, count: int) -> list[StallRecord]:
        """At most `count`, newest first."""
        return [self._closed[-1 - i] for i in range(min(count, len(self._closed)))]

    def opened(self, now: float, agent: str, agent_type: str | None, kind: str, predicted_end: float) -> None:
        """A call of the agent has opened; only the first of a stall begins a record."""
        if agent not in self._open:
            self._restoring.pop(agent, None)
            self._open[agent] = StallRecord(agent, agent_type, kind, now, predicted_end - now)

    def is_open(self, agent: str) -> bool:
        return agent in self._open

    def open_agents(self) -> list[str]:
        """Agents whose stalls are not over, the one that has waited for longest first."""
        return list(self._open)

    def decided(
            self, now: float, agent: AgentView, pool: PoolView, decision: Decision, outcome: Outcome | None) -> None:
        record = self._open.get(agent.key)
        if record is not None:
            record.decided(Decided(now, decision, outcome), agent, pool)

    def moved(self, now: float, agent: str, kind: str, tokens: int) -> None:
        """A move has ended."""
        record = self._open.get(agent)
        if record is not None:
            record.moved(now, kind, tokens)
        elif kind == "upload" and tokens > 0:
            late = self._restoring.get(agent)
            if late is not None and late.restored(now, tokens):
                del self._restoring[agent]
                self.observations.append(("late_s", late.late_s))

    def returned(self, now: float, agent: str, outcome: str, there: Footprint) -> None:
        """The tool is back: the last open call has ended, or the agent's next request has come."""
        record = self._open.pop(agent, None)
        if record is None:
            return
        record.close(now, outcome, there)
        self._closed.append(record)
        if record.missing_tokens > 0:
            self._restoring[agent] = record
        else:
            self.observations.append(("late_s", 0.0))
        self.observations.append(("restore_s", record.restore_s))
        if record.forecast_median_s > 0:
            self.observations.append(("forecast_ratio", (now - record.started_at) / record.forecast_median_s))
        self.totals["returned"] += 1
        for name in TOTALS[1:]:
            self.totals[name] += getattr(record, name)

    def gone(self, now: float, agent: str, outcome: str) -> None:
        """The agent has ended or is forgotten."""
        self._restoring.pop(agent, None)
        record = self._open.pop(agent, None)
        if record is not None:
            record.close(now, outcome, None)
            self._closed.append(record)
