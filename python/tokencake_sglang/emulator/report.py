"""The report of an experiment: results of single runs, put side by side cell by cell.

`build_report` takes the documents of `emulator.run` and returns one JSON document (docs/emulator.md, Report).
The best stock configuration of a cell is, of those that completed the most programs, the one with the lowest mean
latency, unfinished programs included.
"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median
from typing import Any

from tokencake_sglang.emulator.cells import Cell, Experiment, Job, is_stock
from tokencake_sglang.emulator.load_turns import compared, turns_of
from tokencake_sglang.emulator.result import quantile
from tokencake_sglang.version import SGLANG_VERSION, __version__

SCHEMA = "tokencake-emulation-report/1"
MEAN = "mean_with_unfinished_s"
COPIED = ("counts", "latency", "returns", "residency", "stall_totals", "utilisation", "real", "virtual_s", "steps",
          "pool_tokens", "host_tokens", "event_log_sha256", "output_sha256")
EQUAL_COUNTS = {"apps_completed": "completed apps", "output_tokens": "output tokens"}

Results = Mapping[str, "dict[str, Any] | str"]  # by Job.file: the run's document, or as text why there is none


def build_report(experiment: Experiment, results: Results, command: list[str],
                 before: dict[str, Any] | None = None) -> dict[str, Any]:
    """Runs that are missing in `results` are left out; `complete` then says so. `before`: the report repeated."""
    all_jobs, cells = list(experiment.jobs()), []
    for cell in experiment.cells:
        jobs = [job for job in all_jobs if job.cell == cell and job.file in results]
        if jobs:
            cells.append(_cell(cell, jobs, results))
    groups: dict[str, list[dict[str, Any]]] = {}
    for cell in cells:
        groups.setdefault(cell["group"], []).append(cell)
    return {
        "schema": SCHEMA, "tokencake": __version__, "sglang": SGLANG_VERSION, "command": command,
        "experiment": experiment.to_dict(), "complete": all(job.file in results for job in all_jobs),
        "cells": cells, "groups": [_group(name, members) for name, members in groups.items()],
        "repeat": before and _repeat(before["cells"], cells),
        "warnings": [f"{cell['name']}: {text}" for cell in cells for text in cell["warnings"]],
    }


def _repeat(before: list[dict[str, Any]], cells: list[dict[str, Any]]) -> dict[str, Any]:
    """How many runs of an earlier report had the same spec, and which of them had another event log."""
    logs = {run["file"]: run for cell in before for run in cell["runs"] if run["error"] is None}
    same = [run for cell in cells for run in cell["runs"] if run["error"] is None
            and run["file"] in logs and logs[run["file"]]["spec"] == run["spec"]]
    differing = [run["file"] for run in same if logs[run["file"]]["event_log_sha256"] != run["event_log_sha256"]]
    return {"runs": len(same), "differing": differing}


def _cell(cell: Cell, jobs: list[Job], results: Results) -> dict[str, Any]:
    runs = [_run(job, results[job.file]) for job in jobs]
    done = [run for run in runs if run["error"] is None]
    best = _best([run for run in done if run["stock"] and run["latency"][MEAN] is not None])
    for run in done:
        run["ratio_to_best_stock"] = _ratio(run["latency"][MEAN], best and best["latency"][MEAN])
    _set_load_turns(done, best, results)
    reference = best or (done[0] if done else None)
    warnings = _set_equal(done, reference) + [text for run in runs for text in _doubts(run)]
    bound = next((_uncontended(result) for job in jobs if isinstance(result := results[job.file], dict)), None)
    return {
        "name": cell.name, "group": cell.group, "qps": cell.qps, "pool_tokens": cell.pool_tokens,
        "host_ratio": cell.host_ratio, "link_gb_s": cell.link_gb_s, "seed": cell.seed,
        "best_stock": best and best["configuration"],
        "equal": bool(done) and all(run["equal"] for run in runs), "uncontended": bound, "warnings": warnings,
        "runs": runs,
    }


def _set_load_turns(done: list[dict[str, Any]], best: dict[str, Any] | None, results: Results) -> None:
    """Each run's turns against those of the best stock configuration, None without one or without turns."""
    stock = turns_of(results[best["file"]]) if best else {}
    for run in done:
        run["load_turns"] = compared(turns_of(results[run["file"]]), stock) if stock else None


def _best(stock: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The shortest mean latency among those that completed the most apps."""
    most = max((run["counts"]["apps_completed"] for run in stock), default=0)
    able = [run for run in stock if run["counts"]["apps_completed"] == most]
    return min(able, key=lambda run: run["latency"][MEAN], default=None)


def _run(job: Job, result: dict[str, Any] | str) -> dict[str, Any]:
    run = {
        "configuration": job.configuration.name, "stock": is_stock(job.configuration),
        "bound": job.configuration.bound, "file": job.file, "spec": job.spec.to_dict(),
        "error": result if isinstance(result, str) else None, "equal": False, "ratio_to_best_stock": None,
    }
    return run if isinstance(result, str) else run | {key: result[key] for key in COPIED}


def _ratio(value: float | None, base: float | None) -> float | None:
    return value / base if value is not None and base else None


def _set_equal(done: list[dict[str, Any]], reference: dict[str, Any] | None) -> list[str]:
    """Marks each run whose outcome equals the reference's; one warning for each that does not."""
    warnings = []
    for run in done:
        pairs = [(words, run["counts"][key], reference["counts"][key]) for key, words in EQUAL_COUNTS.items()]
        differing = [f"{found} {words} against {wanted}" for words, found, wanted in pairs if found != wanted]
        if not differing and run["output_sha256"] != reference["output_sha256"]:
            differing = ["other output tokens"]
        run["equal"] = not differing
        if differing:
            warnings.append(f"{run['configuration']} is not an equal comparison with {reference['configuration']}:"
                            f" {', '.join(differing)}. Its latencies say nothing on their own.")
    return warnings


def is_void(run: dict[str, Any]) -> bool:
    """A run that failed or read wrong KV. Stock code is excused in the overlap loop, where SGLang 0.5.17 races."""
    if run["error"] is not None:
        return True
    excused = run["spec"]["configuration"]["tokencake"] is None and run["spec"]["overlap"]
    return bool(run["counts"]["kv_bad_tokens"]) and not excused


def _doubts(run: dict[str, Any]) -> list[str]:
    """What a reader must know about one run before he quotes it."""
    name = run["configuration"]
    if run["error"] is not None:
        return [f"{name} failed: {run['error'].strip().splitlines()[-1]}; its .log file says more."]
    counts, warnings = run["counts"], []
    if is_void(run):
        warnings.append(f"{name} read {counts['kv_bad_tokens']} KV tokens with wrong content: its result is void.")
    elif counts["kv_bad_tokens"]:
        warnings.append(f"{name} read {counts['kv_bad_tokens']} KV tokens with wrong content: SGLang 0.5.17's own race"
                        " in its overlap loop (docs/emulator.md); it changes no time.")
    for key in ("truncated", "aborted"):
        if counts[key]:
            warnings.append(f"{name} has calls that were {key}: {counts[key]}.")
    unfinished = counts["apps"] - counts["apps_completed"]
    if unfinished:
        warnings.append(f"{name} left {unfinished} of {counts['apps']} apps unfinished;"
                        " they count in no latency but the mean with unfinished ones.")
    ratio = run["ratio_to_best_stock"]
    if not run["stock"] and not run["bound"] and ratio is not None and ratio < 1 and not counts["offloads"]:
        warnings.append(f"{name} made no offload: what it gains is not an offload gain.")
    return warnings


def _uncontended(result: dict[str, Any]) -> dict[str, float] | None:
    """Mean and P95 of the apps' critical paths with the device to themselves."""
    times = [app["critical_path_s"] for app in result["apps"] if app["critical_path_s"]]
    if not times:
        return None
    return {"mean_s": sum(times) / len(times), "p95_s": quantile(times, 0.95)}


def _group(name: str, cells: list[dict[str, Any]]) -> dict[str, Any]:
    """Cells that differ in the seed only: per configuration the median and the range over the seeds."""
    first, by_name = cells[0], {}
    for cell in cells:
        for run in cell["runs"]:
            by_name.setdefault(run["configuration"], []).append(run)
    rows = [_row(name, runs) for name, runs in by_name.items()]
    rows.sort(key=lambda row: (row["latency"] is None or row["latency"][MEAN] is None,
                               row["latency"] and row["latency"][MEAN] and row["latency"][MEAN]["median"]))
    best: dict[str, int] = {}
    for cell in cells:
        if cell["best_stock"]:
            best[cell["best_stock"]] = best.get(cell["best_stock"], 0) + 1
    return {
        "name": name, **{part: first[part] for part in ("qps", "pool_tokens", "host_ratio", "link_gb_s")},
        "seeds": [cell["seed"] for cell in cells], "best_stock": best, "equal": all(cell["equal"] for cell in cells),
        "uncontended": _spread([cell["uncontended"] for cell in cells if cell["uncontended"]]), "rows": rows,
    }


def _row(name: str, runs: list[dict[str, Any]]) -> dict[str, Any]:
    done = [run for run in runs if run["error"] is None]
    row = {"configuration": name, "stock": runs[0]["stock"], "bound": runs[0]["bound"], "runs": len(runs),
           "failed": len(runs) - len(done), "equal": all(run["equal"] for run in runs)}
    for key in ("latency", "counts", "returns", "load_turns", "residency", "utilisation", "real"):
        row[key] = _spread([run[key] for run in done if run[key]])
    row["ratio_to_best_stock"] = _summary([run["ratio_to_best_stock"] for run in done])
    return row


def _spread(documents: list[dict[str, Any]]) -> dict[str, Any] | None:
    if not documents:
        return None
    return {key: _summary([document.get(key) for document in documents]) for key in documents[0]}


def _summary(values: list[Any]) -> dict[str, float] | None:
    """Median, lowest and highest; None where a run has no value."""
    if not values or any(not isinstance(value, (int, float)) for value in values):
        return None
    return {"median": median(values), "low": min(values), "high": max(values)}
