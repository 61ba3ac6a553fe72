"""`quantile`: the distribution of what is left of a call, from the estimate, from what such calls took, and from how
long it has lasted."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from tokencake_sglang.core.forecast.curve import SHORTEST_S, Curve
from tokencake_sglang.core.forecast.forecast import LEVELS, Forecast
from tokencake_sglang.core.forecast.forecaster import Row, Stages, stage_kind
from tokencake_sglang.core.forecast.presets import Prior, preset_of, prior_of_durations, prior_of_ratios
from tokencake_sglang.core.forecast.rows import check_rows
from tokencake_sglang.core.forecast.samples import Key, Samples, SampleStore

FEW = 4
MANY = 16
LEAST_SPREAD = 0.02  # of a hint that leaves none
LOG_LIMIT = 40.0  # of what a file may say: e^40 s are longer than any call
ALL: Key = ()


class QuantileForecaster:
    """Learns durations, and ratios of duration to estimate, under (agent type, kind), under the kind, and under all.

    Of the two it goes by the one with the narrower spread: an estimate that is wrong by the same factor each time is
    corrected, one that says nothing gives way to the durations.
    """

    def __init__(self, default_stall_s: float) -> None:
        self.default_stall_s = default_stall_s
        self.lessons = 0
        self._durations = SampleStore()
        self._ratios = SampleStore()
        self._unseen: dict[tuple[str, str], Curve] = {}  # of each preset, and one for all other kinds

    # -- forecasts ------------------------------------------------------------------------------------------

    def predict(
        self, agent_type: str | None, kind: str, estimate_s: float | None, stages: Stages | None, elapsed_s: float,
        p90_s: float | None = None,
    ) -> Forecast:
        if stages is not None and self._goes_by_stages(agent_type, kind, stages):
            return self._by_stages(agent_type, kind, stages, elapsed_s)
        curve, unit_s, source = self._curve(agent_type, kind, estimate_s, p90_s)
        return Forecast(curve.remaining(unit_s, elapsed_s), unit_s * math.exp(curve.centre), source)

    def _curve(
        self, agent_type: str | None, kind: str, estimate_s: float | None, p90_s: float | None = None,
    ) -> tuple[Curve, float, str]:
        """The curve to go by, its unit in seconds, and where it comes from."""
        history = _most_specific(self._durations, agent_type, kind)
        if estimate_s is None:
            if history is not None:
                return history.curve(), 1.0, "history"
            if preset_of(kind) is not None:
                return self._unseen_curve("durations", kind), 1.0, "kind"
            others = _of_all(self._durations)
            if others is not None:
                return others.curve(), 1.0, "history of all kinds"
            return self._unseen_curve("durations", kind), 1.0, "default"
        unit_s = max(estimate_s, SHORTEST_S)
        ratios = _most_specific(self._ratios, agent_type, kind) or _of_all(self._ratios)
        if ratios is not None:
            curve = ratios.curve()
        else:
            curve = self._unseen_curve("ratios", kind) if p90_s is None else _hinted_curve(kind, p90_s / unit_s)
        if history is not None and history.curve().spread < curve.spread:
            return history.curve(), 1.0, "history"
        return curve, unit_s, "estimate" if ratios is None else "corrected estimate"

    def _unseen_curve(self, what: str, kind: str) -> Curve:
        """Of a kind of which no sample is known."""
        key = (what, preset_of(kind) or "")
        if key not in self._unseen:
            self._unseen[key] = Curve((), self._prior(what, kind))
        return self._unseen[key]

    def _prior(self, what: str, kind: str | None) -> Prior:
        return prior_of_ratios(kind) if what == "ratios" else prior_of_durations(kind, self.default_stall_s)

    # -- stages ---------------------------------------------------------------------------------------------

    def _goes_by_stages(self, agent_type: str | None, kind: str, stages: Stages) -> bool:
        """Whether this call, or one like it, tells when its stages finish; else it is forecast as a whole."""
        if not stages.remaining:
            return False
        first = stage_kind(kind, stages.remaining[0][0])
        return stages.since_s is not None or _most_specific(self._durations, agent_type, first) is not None

    def _by_stages(self, agent_type: str | None, kind: str, stages: Stages, elapsed_s: float) -> Forecast:
        """Level by level the sum of what is left of the first stage and of the later ones: as if stages were slow
        together."""
        since_s = elapsed_s if stages.since_s is None else stages.since_s
        left, expected = [0.0] * len(LEVELS), elapsed_s - since_s
        for name, estimate_s in stages.remaining:
            curve, unit_s, _ = self._curve(agent_type, stage_kind(kind, name), estimate_s)
            left = [sum(pair) for pair in zip(left, curve.remaining(unit_s, since_s), strict=True)]
            expected += unit_s * math.exp(curve.centre)
            since_s = 0.0
        return Forecast(tuple(left), expected, "stages")

    # -- lessons --------------------------------------------------------------------------------------------

    def observe(self, agent_type: str | None, kind: str, estimate_s: float | None, duration_s: float) -> None:
        self.lessons += 1
        length = max(duration_s, SHORTEST_S)
        self._learn("durations", agent_type, kind, math.log(length))
        if estimate_s is not None:
            self._learn("ratios", agent_type, kind, math.log(length / max(estimate_s, SHORTEST_S)))

    def _learn(self, what: str, agent_type: str | None, kind: str, value: float) -> None:
        store = self._store(what)
        for key in _keys(agent_type, kind):
            store.add(key, value, self._prior(what, _kind_of(key)))
        store.add(ALL, value, self._prior(what, None))

    def _store(self, what: str) -> SampleStore:
        return self._ratios if what == "ratios" else self._durations

    def dump(self) -> list[Row]:
        return [(what, key, latest) for what in ("durations", "ratios") for key, latest in self._store(what).items()]

    def load(self, rows: Any) -> None:
        for what, key, latest in check_rows(rows, ("durations", "ratios"), (0, 1, 2), (-LOG_LIMIT, LOG_LIMIT)):
            self._store(what).put(key, latest, self._prior(what, _kind_of(key)))


def _hinted_curve(kind: str, p90_ratio: float) -> Curve:
    """Of ratios of which nine of ten stay below this one (at least 1): logarithms grow in proportion to the spread."""
    prior = prior_of_ratios(kind)
    of_one = Curve((), replace(prior, spread=1.0)).remaining(1.0, 0.0)[LEVELS.index(0.9)]
    return Curve((), replace(prior, spread=max(LEAST_SPREAD, math.log(max(1.0, p90_ratio)) / math.log(of_one))))


def _keys(agent_type: str | None, kind: str) -> tuple[Key, Key]:
    """The most specific first."""
    return (agent_type or "", kind), (kind,)


def _kind_of(key: Key) -> str | None:
    return key[-1] if key else None


def _of_all(store: SampleStore) -> Samples | None:
    """The samples of all kinds, once there are MANY: the first kinds to be seen say little of others."""
    samples = store.get(ALL)
    return samples if samples is not None and len(samples) >= MANY else None


def _most_specific(store: SampleStore, agent_type: str | None, kind: str) -> Samples | None:
    """The most specific samples of which there are at least FEW, else the most specific there are."""
    mine, all_types = map(store.get, _keys(agent_type, kind))
    if all_types is None or (mine is not None and (len(mine) >= FEW or len(all_types) < FEW)):
        return mine
    return all_types
