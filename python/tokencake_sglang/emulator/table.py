"""The report as Markdown: per group of cells a table of latencies, a table of counts, and what they amount to.

Every figure is the median over the seeds, with the range behind it where the seeds differ.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tokencake_sglang.emulator.cost_meter import COUNTED
from tokencake_sglang.emulator.report import MEAN

Spread = dict[str, float] | None
# heading, part of a row, key, how to write one value
OUTCOME = (
    ("mean s", "latency", "mean_s", "seconds"), ("P50 s", "latency", "p50_s", "seconds"),
    ("P95 s", "latency", "p95_s", "seconds"), ("mean incl. unfinished s", "latency", MEAN, "seconds"),
    ("x best stock", "ratio_to_best_stock", None, "ratio"), ("apps done", "counts", "apps_completed", "count"),
    ("calls done", "counts", "calls_completed", "count"), ("output tokens", "counts", "output_tokens", "count"),
)
COUNTS = (
    ("truncated", "counts", "truncated", "count"), ("retracted", "counts", "retracted", "count"),
    ("aborted", "counts", "aborted", "count"), ("offloads", "counts", "offloads", "count"),
    ("uploads", "counts", "uploads", "count"), ("uploads on time", "counts", "uploads_on_time", "count"),
    ("recomputed tokens", "counts", "recomputed_tokens", "count"),
    ("critical inversions", "counts", "critical_inversions", "count"),
    ("wasted residency token s", "residency", "wasted_token_s", "count"),
    ("effective KV use", "utilisation", "effective", "percent"),
    ("bad KV reads", "counts", "kv_bad_tokens", "count"),
)
RETURNS = (
    ("turns", "returns", "turns", "count"), ("first token P50 s", "returns", "first_token_p50_s", "seconds"),
    ("first token P95 s", "returns", "first_token_p95_s", "seconds"),
    ("where stock loads: P50 s", "load_turns", "stock_p50_s", "seconds"),
    ("where stock loads: x best stock", "load_turns", "stock_ratio", "ratio"),
    ("where either loads: x best stock", "load_turns", "either_ratio", "ratio"),
    ("where neither loads: x best stock", "load_turns", "other_ratio", "ratio"),
    ("stalls over 2 s", "returns", "stalls", "count"), ("KV away", "returns", "away", "count"),
    ("KV ready", "returns", "ready", "count"), ("ready share", "returns", "ready_share", "percent"),
    ("wasted over useful residency", "residency", "wasted_share", "percent"),
)
STEP_COST = (
    ("steps measured", "real", "steps_measured", "count"),
    *((f"{words} P50 us", "real", f"step_us_{share}_p50", "seconds") for words, share in (
        ("SGLang", "sglang"), ("eviction", "eviction"), ("temporal half", "temporal"), ("spatial half", "spatial"),
        ("both halves", "tokencake"))),
    ("both halves mean us", "real", "step_us_tokencake", "seconds"),
    ("both halves P99 us", "real", "step_us_tokencake_p99", "seconds"),
    *((f"{what} a step", "real", f"step_{what}", "seconds") for what in COUNTED),
)
NO_CHANGE = "equally long"
GROUP_PARTS = ("qps", "pool_tokens", "host_ratio", "link_gb_s", "seeds")
Columns = tuple[tuple[str, str, str | None, str], ...]


def markdown(report: dict[str, Any]) -> str:
    """The whole report; ends with a newline."""
    experiment, groups = report["experiment"], report["groups"]
    parts = [f"# {experiment['workload']} on {experiment['profile']}", _head(report)]
    if len(groups) > 1:
        parts += ["## Overview", "Mean latency in seconds, unfinished apps included (times the best stock"
                  " configuration of the same cell).", _overview(groups)]
    for group in groups:
        parts += [f"## {title_of(group)[0].upper()}{title_of(group)[1:]}", *_group(group, report["cells"])]
        if experiment["measure_from_s"]:
            parts.append(_table(group["rows"], STEP_COST))
    return "\n\n".join(parts) + "\n"


def _head(report: dict[str, Any]) -> str:
    experiment = report["experiment"]
    params = ", ".join(f"{key}={value}" for key, value in experiment["params"].items()) or "defaults"
    lines = [
        f"tokencake-sglang {report['tokencake']}, SGLang {report['sglang']}, virtual time."
        f" Workload parameters: {params}. Overlap loop {'on' if experiment['overlap'] else 'off'},"
        f" KV oracle {'on' if experiment['oracle'] else 'off'}.",
        f"Made by `tokencake emulate {' '.join(report['command'])}`.",
    ]
    if not report["complete"]:
        lines.append("**Not all runs were made.**")
    if report["repeat"]:
        runs, differing = report["repeat"]["runs"], report["repeat"]["differing"]
        lines.append(f"Repeated runs with the same event log as before: {runs - len(differing)} of {runs}."
                     + (f" **Not the same**: {', '.join(differing)}." if differing else ""))
    return "\n".join(lines)


def title_of(group: dict[str, Any], parts: Sequence[str] = GROUP_PARTS) -> str:
    """The named parts of a group of cells in words, for headings."""
    tokens = group["pool_tokens"]
    words = {
        "qps": "own arrivals" if group["qps"] is None else f"QPS {group['qps']:g}",
        "pool_tokens": "the profile's device pool" if tokens is None else f"device pool {tokens:,} tokens",
        "host_ratio": f"host pool {group['host_ratio']:g} x",
        "link_gb_s": "" if group["link_gb_s"] is None else f"link {group['link_gb_s']:g} GB/s",
        "seeds": f"{'seeds' if len(group['seeds']) > 1 else 'seed'} {', '.join(map(str, group['seeds']))}"}
    return ", ".join(words[part] for part in parts if words[part])


def _group(group: dict[str, Any], cells: list[dict[str, Any]]) -> list[str]:
    parts = [
        _table(group["rows"], OUTCOME, ("equal", lambda row: "yes" if row["equal"] else "**no**")),
        _table(group["rows"], COUNTS), *_returns(group["rows"]), "\n".join(f"- {line}" for line in _verdicts(group)),
    ]
    warnings = [f"- **Warning**, seed {cell['seed']}: {text}"
                for cell in cells if cell["group"] == group["name"] for text in cell["warnings"]]
    return parts + (["\n".join(warnings)] if warnings else [])


def _returns(rows: list[dict[str, Any]]) -> list[str]:
    """The table of the turns after a tool, where there were any."""
    has_turns = any((row["returns"] or {}).get("turns", {"high": 0})["high"] for row in rows)
    return [_table(rows, RETURNS)] if has_turns else []


def _verdicts(group: dict[str, Any]) -> list[str]:
    """What the tables say, in words: the stock to beat, each other configuration against it, and the bound."""
    seeds = len(group["seeds"])
    best = ", ".join(name + (f" ({count} of {seeds} seeds)" if seeds > 1 else "")
                     for name, count in group["best_stock"].items())
    lines = [f"Best stock: {best or 'none in this comparison, so there is no ratio'}."]
    for row in group["rows"]:
        ratio = row["ratio_to_best_stock"]
        if not row["stock"] and ratio is not None:
            kind = " (a bound)" if row["bound"] else ""
            lines.append(f"{row['configuration']}{kind} against the best stock of its cell: {_against(ratio)}.")
    bound = group["uncontended"]
    if bound:
        mean, p95 = (cell_text(bound[key], "seconds") for key in ("mean_s", "p95_s"))
        lines.append(f"No contention (each app alone, on its critical path): mean {mean} s, P95 {p95} s.")
    return lines


def _against(ratio: dict[str, float]) -> str:
    """`5.1 % longer: a loss`, with the range over the seeds where they differ."""
    middle, low, high = (_change(ratio[key]) for key in ("median", "low", "high"))
    text = middle if low == high else f"{middle} (over the seeds {low} to {high})"
    return text + (": a loss" if ratio["median"] > 1 and middle != NO_CHANGE else "")


def _change(ratio: float) -> str:
    percent = f"{abs(ratio - 1) * 100:.1f} %"
    if percent == "0.0 %":
        return NO_CHANGE
    return f"{percent} longer" if ratio > 1 else f"{percent} shorter"


def _table(rows: list[dict[str, Any]], columns: Columns,
           more: tuple[str, Callable[[dict[str, Any]], str]] | None = None) -> str:
    heads = ["configuration", *(column[0] for column in columns), *([more[0]] if more else [])]
    lines = [_line(heads), _line(["---", *("---:" for _ in heads[1:])])]
    for row in rows:
        name = row["configuration"] + (f" ({row['failed']} of {row['runs']} runs failed)" if row["failed"] else "")
        cells = [cell_text(_value(row, part, key), form) for _, part, key, form in columns]
        lines.append(_line([name, *cells, *([more[1](row)] if more else [])]))
    return "\n".join(lines)


def _value(row: dict[str, Any], part: str, key: str | None) -> Spread:
    values = row[part]
    return values if key is None or values is None else values.get(key)


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def cell_text(spread: Spread, form: str) -> str:
    """A median and, where the seeds differ, the range: `212 (210 to 215)`. No value: a dash."""
    if spread is None:
        return "-"
    middle, low, high = (_number(spread[key], form) for key in ("median", "low", "high"))
    return middle if low == high else f"{middle} ({low} to {high})"


def _number(value: float, form: str) -> str:
    if form == "count":
        return f"{value:,.0f}"
    if form == "percent":
        return f"{value * 100:.1f} %"
    if form == "ratio":
        return f"{value:.3f}"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _overview(groups: list[dict[str, Any]]) -> str:
    names = list(dict.fromkeys(row["configuration"] for group in groups for row in group["rows"]))
    differing = [part for part in GROUP_PARTS if len({str(group[part]) for group in groups}) > 1]
    heads = ["configuration", *(title_of(group, differing) for group in groups)]
    lines = [_line(heads), _line(["---", *("---:" for _ in groups)])]
    for name in names:
        cells = []
        for group in groups:
            row = next((row for row in group["rows"] if row["configuration"] == name), None)
            cells.append(_overview_cell(row))
        lines.append(_line([name, *cells]))
    return "\n".join(lines)


def _overview_cell(row: dict[str, Any] | None) -> str:
    if row is None or row["latency"] is None or row["latency"][MEAN] is None:
        return "-"
    ratio = row["ratio_to_best_stock"]
    text = _number(row["latency"][MEAN]["median"], "seconds")
    return f"{text} ({_number(ratio['median'], 'ratio')})" if ratio else text
