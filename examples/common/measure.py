"""Sums over one run: what the applications reported, what the server's counters say, and the table of several runs."""

from __future__ import annotations

import json
import os
import re
import urllib.error
import urllib.request
from typing import Any

from common.apps import AppResult

SERVER_COUNTERS = {
    "tokens evicted from device": "sglang:evicted_tokens_total",
    "tokens loaded back in all": "sglang:load_back_tokens_total",
}
MOVES = ("stalls_started", "offloads_completed", "offloads_declined", "tokens_offloaded", "uploads_completed",
         "uploads_on_time", "uploads_late", "uploads_declined", "tokens_uploaded")


def _get(url: str) -> str | None:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return answer.read().decode()
    except (urllib.error.URLError, OSError):
        return None


def server_counters(url: str) -> dict[str, float]:
    """The server's own counters by the names of SERVER_COUNTERS; empty if it shows no metrics. A counter appears in
    the metrics with its first event, so one that is missing is 0."""
    text = _get(url + "/metrics")
    if not text or "sglang:" not in text:
        return {}
    found: dict[str, float] = {}
    for label, metric in SERVER_COUNTERS.items():
        values = re.findall(rf"^{re.escape(metric)}(?:\{{[^\n]*\}})? ([0-9.eE+-]+)$", text, re.MULTILINE)
        found[label] = sum(float(v) for v in values)
    return found


def tokencake_counters(url: str) -> dict[str, float]:
    """TokenCake's counters; empty on a server without TokenCake."""
    try:
        state = json.loads(_get(url + "/v1/tokencake/state") or "{}")
    except ValueError:
        return {}
    return {name: state.get("counters", {}).get(name, 0) for name in MOVES} if state.get("enabled") else {}


def difference(after: dict[str, float], before: dict[str, float]) -> dict[str, float]:
    return {name: value - before.get(name, 0) for name, value in after.items()}


def summary(results: list[AppResult], wall_s: float, server: dict[str, float],
            moves: dict[str, float]) -> dict[str, Any]:
    """One column of the table. Latencies are seconds, the rest counts."""
    done = [r for r in results if not r.error]
    calls = [c for r in results for c in r.calls]
    seconds = [r.seconds for r in done]
    return {
        "applications": len(results),
        "applications failed": len(results) - len(done),
        "wall time (s)": wall_s,
        "machine load at the end": os.getloadavg()[0],
        "app latency, mean (s)": sum(seconds) / len(seconds) if seconds else None,
        "app latency, max (s)": max(seconds, default=None),
        "generations": len(calls),
        "generations aborted": sum(c.finish not in ("stop", "length") for c in calls),
        "retractions": sum(c.retractions for c in calls),
        "output tokens": sum(c.completion_tokens for c in calls),
        "prompt tokens": sum(c.prompt_tokens for c in calls),
        "prompt tokens recomputed": sum(c.prompt_tokens - c.cached_tokens for c in calls),
        "prompt tokens loaded on demand": sum(c.host_tokens for c in calls),
        **{name: server.get(name) for name in SERVER_COUNTERS},
        **{name.replace("_", " "): moves.get(name) for name in MOVES},
    }


def table(columns: dict[str, dict[str, Any]]) -> str:
    """Rows are the measures, columns the configurations; a dash is a measure that the configuration does not have."""
    names = list(next(iter(columns.values())))
    width = max(len(n) for n in names)
    head = " " * width + "".join(f"  {c:>16}" for c in columns)
    rows = [head, "-" * len(head)]
    for name in names:
        rows.append(f"{name:<{width}}" + "".join(f"  {_shown(column.get(name)):>16}" for column in columns.values()))
    return "\n".join(rows)


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" if isinstance(value, float) and value != int(value) else f"{int(value)}"


def equal_outputs(first: list[AppResult], second: list[AppResult]) -> tuple[int, int, list[str]]:
    """(equal, compared, names of the differing outputs); an output that only one side has counts as different."""
    left = {f"{r.name}/{key}": text for r in first for key, text in r.outputs.items()}
    right = {f"{r.name}/{key}": text for r in second for key, text in r.outputs.items()}
    names = sorted(set(left) | set(right))
    different = [n for n in names if left.get(n) != right.get(n)]
    return len(names) - len(different), len(names), different
