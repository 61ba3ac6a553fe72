"""TokenCake's part of SGLang's /metrics page: counters, gauges and histograms named `tokencake:...`.

prometheus_client writes to the directory that SGLang has set in PROMETHEUS_MULTIPROC_DIR, from which the HTTP process
reads; so it is imported only when a server that was started with --enable-metrics builds its scheduler.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tokencake_sglang.core.controller import Controller
from tokencake_sglang.core.counters import COUNTERS
from tokencake_sglang.core.types import PoolView

INTERVAL_S = 1.0
PREFIX = "tokencake:"
GAUGES = (
    "device_total", "device_free", "device_evictable", "device_dead", "host_total", "host_free", "waiting_requests",
    "waiting_head_tokens", "running_requests", "growth_tokens", "loads_in_flight", "load_slots")
SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
HISTOGRAMS = {  # of core/records.py; name there -> name here, bounds of the buckets
    "forecast_ratio": ("stall_forecast_ratio", (0.1, 0.25, 0.5, 0.8, 1.0, 1.25, 2.0, 4.0, 10.0)),
    "late_s": ("stall_late_seconds", (0.0, *SECONDS)),
    "restore_s": ("stall_restore_seconds", (0.0, *SECONDS)),
}
DECLINED = "declined"
NAMES = (  # as the page shows them
    *(f"{PREFIX}{name}_total" for name in COUNTERS), f"{PREFIX}{DECLINED}_total",
    *(f"{PREFIX}{name}" for name in ("agents", *GAUGES)), *(f"{PREFIX}{name}" for name, _ in HISTOGRAMS.values()))


class Metrics:
    """Hands what has changed to prometheus_client, at most once a second."""

    def __init__(
            self, controller: Controller, measure: Callable[[], PoolView], labels: Mapping[str, Any],
            registry: Any = None) -> None:
        from prometheus_client import REGISTRY, Counter, Gauge, Histogram

        self.controller, self.measure = controller, measure
        self._next = 0.0
        self._seen: dict[str, int] = {}
        self._values = {name: str(value) for name, value in labels.items()}
        names = tuple(self._values)
        common: dict[str, Any] = {"registry": registry if registry is not None else REGISTRY}
        self._counters = {
            name: Counter(PREFIX + name, f"TokenCake's counter {name}.", names, **common).labels(**self._values)
            for name in COUNTERS}
        self._declined = Counter(
            PREFIX + DECLINED, "Moves that the mechanism declined, by reason.", (*names, "reason"), **common)
        self._gauges = {
            name: Gauge(PREFIX + name, f"TokenCake's {name}.", names, multiprocess_mode="mostrecent", **common)
            .labels(**self._values) for name in ("agents", *GAUGES)}
        self._histograms = {
            source: Histogram(PREFIX + name, f"Of each ended stall: {source}.", names, buckets=bounds, **common)
            .labels(**self._values) for source, (name, bounds) in HISTOGRAMS.items()}

    def update(self, now: float) -> None:
        """`now` is any clock in seconds that does not go back; calls within a second of the last do nothing."""
        if now < self._next:
            return
        self._next = now + INTERVAL_S
        for name, value in self.controller.counters.items():
            self._add(self._counters[name], name, value)
        for reason, value in self.controller.declined.items():
            self._add(self._declined.labels(**self._values, reason=reason), f"declined {reason}", value)
        pool = self.measure()
        self._gauges["agents"].set(len(self.controller.agents))
        for name in GAUGES:
            self._gauges[name].set(getattr(pool, name))
        observations = self.controller.records.observations
        while observations:
            source, value = observations.popleft()
            self._histograms[source].observe(value)

    def _add(self, counter: Any, name: str, value: int) -> None:
        grown = value - self._seen.get(name, 0)
        if grown > 0:
            counter.inc(grown)
            self._seen[name] = value
