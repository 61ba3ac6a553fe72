"""The result document of a run: plain values, all times in virtual seconds since its start (docs/emulator.md)."""

from __future__ import annotations

import hashlib
import math
import resource
from typing import Any

from tokencake_sglang.emulator.clients import CallRun, ProgramRun
from tokencake_sglang.emulator.clock import SECOND, START_NS
from tokencake_sglang.emulator.observe import CallTimes
from tokencake_sglang.emulator.returns import summary, waited_s

SCHEMA = "tokencake-emulation/1"
KINDS = ("running", "stalled", "shared", "idle", "free")
BREAKDOWN = ("queue_s", "prefill_s", "recomputed_prefill_s", "upload_wait_s", "decode_s", "tool_s", "client_s")


def result_document(session: Any, real: dict[str, float], fingerprint: str) -> dict[str, Any]:
    from tokencake_sglang.emulator.workloads.critical_path import critical_path_s

    server, spec = session.server, session.spec
    times = session.watch.times
    end_s = server.clock.elapsed_s()
    apps = [_app(run, times, critical_path_s(run.program, server.profile)) for run in session.clients.runs
            if run.arrived_ns is not None]
    calls = [_call(call, times.get(call.rid)) for call in session.clients.by_rid.values()
             if call.submitted_ns is not None]
    host = getattr(server.scheduler.tree_cache, "token_to_kv_pool_host", None)
    pool = server.scheduler.max_total_num_tokens
    return {
        "schema": SCHEMA, "spec": spec.to_dict(), "profile": server.profile.to_dict(), "pool_tokens": pool,
        "host_tokens": host.size if host is not None else 0, "virtual_s": end_s, "steps": server.steps,
        "event_log_sha256": fingerprint,
        "output_sha256": _output_sha256(session.clients.by_rid), "apps": apps, "calls": calls,
        "counts": _counts(session, apps, calls),
        "latency": _latency(apps, end_s) | _request_latency(calls, end_s), "returns": summary(calls),
        "residency": _residency(session, calls), "stall_totals": _stall_totals(server.scheduler),
        "utilisation": _utilisation(session.samples.samples, pool), "kv_samples": session.samples.samples,
        "first_bad_read": server.oracle.first_bad if server.oracle else "",
        "real": {**real, "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024},
    }


def _output_sha256(calls: dict[str, CallRun]) -> str:
    """Of every request's id and output tokens: equal in all configurations that complete the same requests."""
    digest = hashlib.sha256()
    for rid in sorted(calls):
        digest.update(f"{rid} {calls[rid].output.tolist()}\n".encode())
    return digest.hexdigest()


def _s(time_ns: int | None) -> float | None:
    return None if time_ns is None else (time_ns - START_NS) / SECOND


def _call(call: CallRun, times: CallTimes | None) -> dict[str, Any]:
    times, answer, spec = times or CallTimes(), call.answer, call.call
    tool = spec.tool
    return {
        "app_id": call.program.program.app_id, "name": spec.name, "agent": spec.agent, "agent_type": spec.agent_type,
        "critical": spec.critical, "submitted_s": _s(call.submitted_ns), "scheduled_s": _s(times.scheduled_ns),
        "first_token_s": _s(times.first_token_ns), "finished_s": _s(call.finished_ns),
        "prompt_tokens": len(call.prompt), "cached_tokens": answer.cached_tokens if answer else 0,
        "cached_device_tokens": answer.cached_device_tokens if answer else 0,
        "cached_host_tokens": answer.cached_host_tokens if answer else 0,
        "recomputed_tokens": times.recomputed_tokens, "output_tokens": len(call.output),
        "retractions": times.retractions, "upload_wait_s": times.upload_wait_ns / SECOND,
        "uploaded_tokens": call.uploaded_tokens, "finish": answer.finish if answer else None,
        "after_tool_s": waited_s(call), "at_return": times.at_return.to_dict() if times.at_return else None,
        "tool": {"kind": tool.kind, "duration_s": tool.duration_s, "forecast_s": tool.forecast_s} if tool else None,
    }


def _app(run: ProgramRun, times: dict[str, CallTimes], critical_path: float) -> dict[str, Any]:
    latency = None if run.ended_ns is None else (run.ended_ns - run.arrived_ns) / SECOND
    return {
        "app_id": run.program.app_id, "arrival_s": _s(run.arrived_ns), "end_s": _s(run.ended_ns),
        "latency_s": latency, "critical_path_s": critical_path, "calls": len(run.calls),
        "calls_done": sum(call.finished_ns is not None for call in run.calls.values()),
        "breakdown": _breakdown(run, times) if run.ended_ns is not None and run.calls else None,
    }


def _breakdown(run: ProgramRun, times: dict[str, CallTimes]) -> dict[str, float]:
    """Where the time of a program went, along its own observed critical path; sums up to its latency."""
    parts = dict.fromkeys(BREAKDOWN, 0.0)
    call: CallRun | None = max(run.calls.values(), key=lambda c: c.ended_ns)
    while call is not None:
        for name, span_ns in _call_parts(call, times[call.rid]).items():
            parts[name] += span_ns / SECOND
        parents = [run.calls[name] for name in call.call.after]
        call = max(parents, key=lambda c: c.ended_ns) if parents else None
    return parts


def _call_parts(call: CallRun, times: CallTimes) -> dict[str, float]:
    """Nanoseconds of one call by cause. Decoding is what is left of the time between scheduling and the answer:
    it includes waiting for other requests' prefill passes."""
    wait = min(times.upload_wait_ns, call.finished_ns - call.submitted_ns)
    first = times.prefill_ns - times.repeated_prefill_ns
    computed_once = max(0, times.new_tokens)
    share = min(1.0, times.recomputed_tokens / computed_once) if computed_once else 0.0
    recomputed = times.repeated_prefill_ns + first * (0.0 if times.retractions else share)
    prefill = times.prefill_ns - recomputed
    answered = call.finished_ns - call.submitted_ns
    return {
        "client_s": call.submitted_ns - call.ready_ns, "queue_s": times.queue_ns, "prefill_s": prefill,
        "recomputed_prefill_s": recomputed, "upload_wait_s": wait,
        "decode_s": answered - times.queue_ns - times.prefill_ns - wait,
        "tool_s": call.ended_ns - call.finished_ns,
    }


def _counts(session: Any, apps: list[Any], calls: list[Any]) -> dict[str, int]:
    server, counts = session.server, session.watch.counts
    done = [call for call in calls if call["finished_s"] is not None]
    planned = {rid: call.call.output_tokens for rid, call in session.clients.by_rid.items()}
    totals = {name: sum(call[name] for call in calls) for name in (
        "prompt_tokens", "cached_device_tokens", "cached_host_tokens", "recomputed_tokens", "output_tokens")}
    oracle = server.oracle
    return {
        "apps": len(session.clients.runs), "apps_completed": sum(app["end_s"] is not None for app in apps),
        "calls": len(session.clients.by_rid), "calls_completed": len(done), **totals,
        "truncated": sum(call["output_tokens"] != planned[f"{call['app_id']}/{call['name']}"] for call in done),
        "retracted": counts.retracted, "aborted": sum(call["finish"] == "abort" for call in done),
        **_moves(server.scheduler), "critical_inversions": counts.critical_inversions,
        "evictions": counts.evictions, "evicted_tokens": counts.evicted_tokens,
        "demoted_tokens": counts.demoted_tokens, "evicted_host_tokens": counts.evicted_host_tokens,
        "h2d_tokens": server.copies.tokens["h2d"], "d2h_tokens": server.copies.tokens["d2h"],
        "kv_checked_tokens": oracle.checked if oracle else 0, "kv_bad_tokens": oracle.bad if oracle else 0,
    }


def _controller(scheduler: Any) -> Any:
    """TokenCake's; None on stock."""
    return next((one.controller for one in scheduler.extensions if hasattr(one, "controller")), None)


def _stall_totals(scheduler: Any) -> dict[str, float] | None:
    """Sums over TokenCake's own records of stalls (docs/counters.md); None on stock."""
    controller = _controller(scheduler)
    return None if controller is None else dict(controller.records.totals)


def _moves(scheduler: Any) -> dict[str, int]:
    """TokenCake's own counters; zero on stock."""
    controller = _controller(scheduler)
    counters = {} if controller is None else controller.counters
    return {
        "offloads": counters.get("offloads_completed", 0), "uploads": counters.get("uploads_completed", 0),
        **{name: counters.get(name, 0) for name in (
            "uploads_on_time", "uploads_late", "tokens_offloaded", "tokens_uploaded")},
    }


def quantile(values: list[float], share: float) -> float | None:
    """The smallest value that at least `share` of `values` do not exceed; None of none."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)] if values else None


def _latency(apps: list[Any], end_s: float) -> dict[str, float | None]:
    done = [app["latency_s"] for app in apps if app["latency_s"] is not None]
    every = [app["latency_s"] if app["latency_s"] is not None else end_s - app["arrival_s"] for app in apps]
    return {
        "mean_s": sum(done) / len(done) if done else None, "p50_s": quantile(done, 0.5), "p90_s": quantile(done, 0.9),
        "p95_s": quantile(done, 0.95), "p99_s": quantile(done, 0.99),
        "mean_with_unfinished_s": sum(every) / len(every) if every else None,
    }


def _request_latency(calls: list[Any], end_s: float) -> dict[str, float | None]:
    """Of calls, from the client's request to the whole answer; an unanswered one counts until the end."""
    spans = [(end_s if call["finished_s"] is None else call["finished_s"]) - call["submitted_s"] for call in calls]
    return {"request_mean_with_unfinished_s": sum(spans) / len(spans) if spans else None}


def _residency(session: Any, calls: list[Any]) -> dict[str, float]:
    useful = sum(call["uploaded_tokens"] * (call["finished_s"] - call["scheduled_s"]) for call in calls
                 if call["finished_s"] is not None and call["scheduled_s"] is not None)
    wasted = session.watch.counts.wasted_token_ns / SECOND
    return {"useful_token_s": useful, "wasted_token_s": wasted, "wasted_share": wasted / useful if useful else None}


def _utilisation(samples: list[Any], pool: int) -> dict[str, float]:
    """Mean shares of the device pool. `effective`: used by running requests, prefixes that they share included."""
    if not samples:
        return {}
    mean = {kind: sum(s["device"][kind] for s in samples) / len(samples) / pool for kind in KINDS}
    return {"effective": sum(s["in_use"] for s in samples) / len(samples) / pool, **mean}
