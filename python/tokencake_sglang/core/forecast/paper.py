"""The published forecast, a point without spread (paper equation 1; published code: weights one half, 4,096 keys)."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from tokencake_sglang.core.forecast.forecast import Forecast
from tokencake_sglang.core.forecast.forecaster import Row, Stages
from tokencake_sglang.core.forecast.rows import check_rows
from tokencake_sglang.core.forecast.samples import KEYS_KEPT

ESTIMATE_WEIGHT = 0.5
NEWEST_WEIGHT = 0.5
LONGEST_S = 1e9


class PaperForecaster:
    """Estimate and moving average of history, half and half. Once that has passed, 0 s are left until the call ends.
    Stages count only through the estimate."""

    def __init__(self, default_stall_s: float) -> None:
        self.default_stall_s = default_stall_s
        self.lessons = 0
        self._history: OrderedDict[tuple[str | None, str], float] = OrderedDict()

    def predict(
        self, agent_type: str | None, kind: str, estimate_s: float | None, stages: Stages | None, elapsed_s: float,
        p90_s: float | None = None,
    ) -> Forecast:
        history = self._history.get((agent_type, kind))
        if estimate_s is None and history is None:
            expected, source = self.default_stall_s, "default"
        elif history is None:
            expected, source = estimate_s, "estimate"
        elif estimate_s is None:
            expected, source = history, "history"
        else:
            expected = ESTIMATE_WEIGHT * estimate_s + (1.0 - ESTIMATE_WEIGHT) * history
            source = "estimate and history"
        return Forecast.at(expected - elapsed_s, expected, source)

    def observe(self, agent_type: str | None, kind: str, estimate_s: float | None, duration_s: float) -> None:
        self.lessons += 1
        known = self._history.get((agent_type, kind))
        self._put((agent_type, kind), duration_s if known is None
                  else NEWEST_WEIGHT * duration_s + (1.0 - NEWEST_WEIGHT) * known)

    def dump(self) -> list[Row]:
        return [("mean", key, (mean,)) for key, mean in self._history.items()]

    def load(self, rows: Any) -> None:
        for _, (agent_type, kind), (mean, *_) in check_rows(rows, ("mean",), (2,), (0.0, LONGEST_S)):
            self._put((agent_type, kind), mean)

    def _put(self, key: tuple[str | None, str], mean: float) -> None:
        self._history[key] = mean
        self._history.move_to_end(key)
        if len(self._history) > KEYS_KEPT:
            self._history.popitem(last=False)
