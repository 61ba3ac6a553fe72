"""Documents of emulated runs as `emulator.run` writes them, with figures that follow from a few numbers."""

from __future__ import annotations

from typing import Any

from tokencake_sglang.emulator.result import SCHEMA, quantile
from tokencake_sglang.emulator.returns import summary
from tokencake_sglang.emulator.spec import RunSpec

STATES = ("running", "stalled", "shared", "idle", "free")
COUNTS = (
    "apps", "apps_completed", "calls", "calls_completed", "prompt_tokens", "cached_device_tokens",
    "cached_host_tokens", "recomputed_tokens", "output_tokens", "truncated", "retracted", "aborted", "offloads",
    "uploads", "uploads_on_time", "uploads_late", "tokens_offloaded", "tokens_uploaded", "critical_inversions",
    "evictions", "evicted_tokens", "demoted_tokens", "evicted_host_tokens", "h2d_tokens", "d2h_tokens",
    "kv_checked_tokens", "kv_bad_tokens")
SHARES = {"queue_s": 0.2, "prefill_s": 0.1, "recomputed_prefill_s": 0.1, "upload_wait_s": 0.05, "decode_s": 0.35,
          "tool_s": 0.15, "client_s": 0.05}


def latencies_of(latencies: list[float | None], end_s: float, arrivals: list[float]) -> dict[str, float | None]:
    done = [value for value in latencies if value is not None]
    every = [end_s - arrival if value is None else value for value, arrival in zip(latencies, arrivals, strict=True)]
    latency = {f"p{percent}_s": quantile(done, percent / 100) for percent in (50, 90, 95, 99)}
    return latency | {"mean_s": sum(done) / len(done) if done else None,
                      "mean_with_unfinished_s": sum(every) / len(every) if every else None}


def run_document(spec: RunSpec, latencies: list[float | None], virtual_s: float = 1000.0, output_tokens: int = 5000,
                 outputs: str = "0" * 64, **counts: int) -> dict[str, Any]:
    """One app per latency (None: unfinished), arriving ten seconds apart, with a planner's and a coder's call each."""
    arrivals = [10.0 * i for i in range(len(latencies))]
    apps = [{
        "app_id": f"app-{i}", "arrival_s": arrival, "end_s": None if latency is None else arrival + latency,
        "latency_s": latency, "critical_path_s": 40.0, "calls": 2, "calls_done": 2 if latency is not None else 1,
        "breakdown": {key: share * latency for key, share in SHARES.items()} if latency is not None else None,
    } for i, (arrival, latency) in enumerate(zip(arrivals, latencies, strict=True))]
    calls = [{
        "app_id": app["app_id"], "name": agent, "agent": agent, "agent_type": agent, "critical": agent == "planner",
        "submitted_s": app["arrival_s"], "scheduled_s": app["arrival_s"] + 1, "first_token_s": app["arrival_s"] + 2,
        "finished_s": None if app["latency_s"] is None else app["arrival_s"] + app["latency_s"] * share,
        "prompt_tokens": 900, "cached_tokens": 300, "cached_device_tokens": 200, "cached_host_tokens": 100,
        "recomputed_tokens": 50, "output_tokens": 100, "retractions": 0, "upload_wait_s": 0.1, "after_tool_s": None,
        "at_return": None, "tool": None} for app in apps for agent, share in (("planner", 0.3), ("coder", 0.6))]
    completed = sum(value is not None for value in latencies)
    every = dict.fromkeys(COUNTS, 0) | {
        "apps": len(apps), "apps_completed": completed, "calls": 2 * len(apps), "calls_completed": 2 * completed,
        "output_tokens": output_tokens} | counts
    pool = spec.pool_tokens or 231_000
    return {
        "schema": SCHEMA, "spec": spec.to_dict(), "profile": {"id": spec.profile}, "pool_tokens": pool,
        "host_tokens": int(pool * spec.host_ratio), "virtual_s": virtual_s, "steps": 4000,
        "event_log_sha256": "0" * 64, "output_sha256": outputs, "apps": apps, "calls": calls, "counts": every,
        "latency": latencies_of(latencies, virtual_s, arrivals) | {"request_mean_with_unfinished_s": 2.0},
        "returns": summary(calls),
        "residency": {"useful_token_s": 900.0, "wasted_token_s": 100.0, "wasted_share": 100 / 900},
        "stall_totals": None,
        "utilisation": {"effective": 0.62, "stalled": 0.18, "shared": 0.08, "idle": 0.07, "free": 0.05},
        "kv_samples": [sample(virtual_s * i / 50, pool, int(pool * spec.host_ratio), i) for i in range(51)],
        "real": {"wall_s": 12.0, "cpu_s": 11.5, "step_us_tokencake": 40.0, "step_us_temporal_p50": 25.0,
                 "step_decisions": 1.5, "peak_rss_bytes": 1_400_000_000},
    }


def sample(t_s: float, pool: int, host: int, step: int) -> dict[str, Any]:
    running, stalled, shared = pool * (40 + step % 17) // 100, pool * (10 + step % 7) // 100, pool // 20
    idle = pool * min(step, 20) // 100
    host_stalled, host_idle = host * min(step, 30) // 100, host * min(step, 40) // 100
    return {
        "t_s": t_s,
        "device": {"running": running, "stalled": stalled, "shared": shared, "idle": idle,
                   "free": pool - running - stalled - shared - idle},
        "host": {"stalled": host_stalled, "shared": host // 50, "idle": host_idle,
                 "free": host - host_stalled - host // 50 - host_idle},
    }
