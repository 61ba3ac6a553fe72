"""Plots of a comparison: latency, KV over time, calls by agent type, where the time went, and latency over QPS.

matplotlib is imported inside functions: the extra `plots`. Every function takes plain values and returns a figure.
The same results give the same SVG file byte for byte. Colours are those of Okabe and Ito, told apart by all readers:
cool and dashed for stock configurations, warm and thick for TokenCake's, black and dotted for bounds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokencake_sglang.emulator.cells import is_stock
from tokencake_sglang.emulator.report import MEAN
from tokencake_sglang.emulator.result import quantile
from tokencake_sglang.emulator.table import title_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STOCK = ("#0072B2", "#009E73", "#56B4E9", "#CC79A7", "#999999", "#8C6D31")
TOKENCAKE = ("#D55E00", "#E69F00", "#882255", "#F0E442")
BOUND = ("#000000", "#666666")
STATE_COLOURS = {"running": "#0072B2", "stalled": "#D55E00", "shared": "#009E73", "idle": "#F0E442", "free": "#ECECEC"}
TIME_COLOURS = {
    "queue_s": ("queue", "#999999"), "prefill_s": ("prefill", "#56B4E9"),
    "recomputed_prefill_s": ("recomputed prefill", "#D55E00"), "upload_wait_s": ("waiting for upload", "#CC79A7"),
    "decode_s": ("decode", "#0072B2"), "tool_s": ("tool", "#F0E442"), "client_s": ("client", "#009E73")}
SETTINGS = {
    "svg.hashsalt": "tokencake", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False,
    "axes.titlesize": 10, "axes.titlelocation": "left", "axes.axisbelow": True, "legend.frameon": False,
    "figure.dpi": 110, "savefig.bbox": "tight", "figure.constrained_layout.use": True}
MISSING = ("no plots were drawn, because matplotlib is not installed. Everything else is written. Install it with:"
           " pip install 'tokencake-sglang[plots]'")


@dataclass(frozen=True)
class Look:
    """How a configuration is drawn, the same in every plot. `hatch` tells bars of one colour apart; thin lines lie
    over thick ones, so that two equal curves are both seen."""

    colour: str
    line: Any
    width: float
    hatch: str

    def of_line(self) -> dict[str, Any]:
        return {"color": self.colour, "linestyle": self.line, "linewidth": self.width, "zorder": 4 - self.width}


@dataclass(frozen=True)
class Series:
    """The runs of one configuration in one group of cells, one document per seed."""

    name: str
    look: Look
    documents: tuple[dict[str, Any], ...]

    def latencies(self) -> list[float]:
        """Of finished apps, in seconds and ascending."""
        return sorted(app["latency_s"] for run in self.documents for app in run["apps"] if app["latency_s"] is not None)

    def apps(self) -> int:
        return sum(len(run["apps"]) for run in self.documents)


def looks(configurations: list[dict[str, Any]]) -> dict[str, Look]:
    """One look per configuration of the experiment, by its kind and its place among those of its kind."""
    seen, found = {STOCK: 0, TOKENCAKE: 0, BOUND: 0}, {}
    for configuration in configurations:
        kind = BOUND if configuration["bound"] else STOCK if is_stock(configuration) else TOKENCAKE
        again, place = divmod(seen[kind], len(kind))
        seen[kind] += 1
        line = {STOCK: (0, (6, 1.5)), TOKENCAKE: "-", BOUND: (0, (1, 1))}[kind]
        if again:
            line = (0, (6, 1.5, *(1, 1.5) * again))
        found[configuration["name"]] = Look(kind[place], line, 2.4 if kind is TOKENCAKE else 1.4, "/" * 3 * again)
    return found


def available() -> bool:
    """True when matplotlib can be imported."""
    from importlib.util import find_spec

    return find_spec("matplotlib") is not None


def series_of(report: dict[str, Any], documents: dict[str, dict[str, Any]], group: str) -> list[Series]:
    """One series per configuration that has a finished run, in the order of the command."""
    runs: dict[str, list[dict[str, Any]]] = {}
    for cell in report["cells"]:
        for run in cell["runs"] if cell["group"] == group else ():
            if run["file"] in documents:
                runs.setdefault(run["configuration"], []).append(documents[run["file"]])
    look = looks(report["experiment"]["configurations"])
    return [Series(name, look[name], tuple(mine)) for name, mine in runs.items()]


def write_plots(report: dict[str, Any], documents: dict[str, dict[str, Any]], folder: Path, ending: str) -> list[Path]:
    """Writes every plot that the report has data for; the paths written. `ending` is svg or png."""
    import matplotlib

    matplotlib.use("Agg")
    written = []
    with matplotlib.rc_context(SETTINGS):
        for name, figure in figures(report, documents):
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / f"{name}.{ending}"
            figure.savefig(path, metadata={"Date": None} if ending == "svg" else {}, dpi=150)
            figure.clear()
            written.append(path)
    return written


def figures(report: dict[str, Any], documents: dict[str, dict[str, Any]]) -> Iterator[tuple[str, Figure]]:
    """Name and figure of every plot, one at a time."""
    workload = report["experiment"]["workload"]
    for group in report["groups"]:
        series, where = series_of(report, documents, group["name"]), f"{workload}, {title_of(group)}"
        if series:
            yield f"{group['name']}_latency", latency_cdf(series, where)
            yield f"{group['name']}_kv", kv_over_time(series, where)
            yield f"{group['name']}_agents", calls_by_agent_type(series, where)
            yield f"{group['name']}_time", time_of_apps(series, where)
    for pool, ratio in dict.fromkeys((group["pool_tokens"], group["host_ratio"]) for group in report["groups"]):
        grid = [group for group in report["groups"]
                if (group["pool_tokens"], group["host_ratio"]) == (pool, ratio) and group["qps"] is not None]
        if len(grid) > 1:
            where = f"{workload}, {title_of(grid[0], ('pool_tokens', 'host_ratio', 'seeds'))}"
            look = looks(report["experiment"]["configurations"])
            yield grid[0]["name"].split("_", 1)[1] + "_over-qps", latency_over_qps(grid, look, where)


def new_figure(width: float, height: float, rows: int = 1, columns: int = 1, **options: Any) -> tuple[Figure, Any]:
    """A figure outside of pyplot's global state."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def legend_below(figure: Figure, axes: Axes, columns: int = 4) -> None:
    """The one legend of a figure, under it."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", handlelength=3.6, ncols=min(columns, len(labels)))


def latency_cdf(series: list[Series], where: str) -> Figure:
    """Share of all apps that ended within a latency. Apps that did not end keep a line below 100 %."""
    figure, ((axes,),) = new_figure(7, 4.6)
    for one in series:
        latencies = one.latencies()
        if latencies:
            shares = [100 * rank / one.apps() for rank in range(len(latencies) + 1)]
            axes.step([latencies[0], *latencies], shares, where="post", label=one.name, **one.look.of_line())
    axes.set(xlabel="app latency (virtual s)", ylabel="apps ended (%)", ylim=(0, 102),
             title=f"Latency of apps\n{where}")
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3)
    legend_below(figure, axes, 3)
    return figure


def kv_over_time(series: list[Series], where: str) -> Figure:
    """Device and host KV pool over time, one row per configuration (the first seed)."""
    figure, axes = new_figure(9, 1.3 + 1.35 * len(series), len(series), 2, sharex=True)
    end = max(one.documents[0]["virtual_s"] for one in series)
    for row, one in zip(axes, series, strict=True):
        run = one.documents[0]
        for panel, place, pool in zip(row, ("device", "host"), (run["pool_tokens"], run["host_tokens"]), strict=True):
            _stack(panel, run["kv_samples"], place)
            panel.set(ylim=(0, max(pool, 1) / 1000), xlim=(0, end))
            panel.set_title(f"{one.name}: {place}" + ("" if pool else " (no host tier)"), fontsize=8)
            if not pool:
                panel.set_yticks([])
    for panel in axes[-1]:
        panel.set_xlabel("virtual time (s)")
    figure.suptitle(f"KV pools over time (first seed)\n{where}", fontsize=10, x=0.01, ha="left")
    figure.supylabel("KV (thousand tokens)", fontsize=9)
    legend_below(figure, axes[0][0], 5)
    return figure


def _stack(axes: Axes, samples: list[dict[str, Any]], place: str) -> None:
    times = [sample["t_s"] for sample in samples]
    states = [state for state in STATE_COLOURS if samples and state in samples[0][place]]
    values = [[sample[place][state] / 1000 for sample in samples] for state in states]
    if states:
        axes.stackplot(times, values, labels=states, step="post", linewidth=0,
                       colors=[STATE_COLOURS[state] for state in states])


def calls_by_agent_type(series: list[Series], where: str) -> Figure:
    """Mean latency of finished calls by agent type, with a tick at the 95th percentile."""
    types = list(dict.fromkeys(call["agent_type"] for one in series for run in one.documents for call in run["calls"]))
    figure, ((axes,),) = new_figure(7, 1.8 + len(types) * (0.14 * len(series) + 0.2))
    height = 0.85 / len(series)
    for position, one in enumerate(series):
        for index, agent_type in enumerate(types):
            times = call_times(one, agent_type)
            if not times:
                continue
            place = index + (position - (len(series) - 1) / 2) * height
            axes.barh(place, sum(times) / len(times), height * 0.9, color=one.look.colour, hatch=one.look.hatch,
                      edgecolor="white", linewidth=0)
            axes.plot([quantile(times, 0.95)], [place], marker="|", color="black", markersize=5, linestyle="none")
        axes.barh(0, 0, color=one.look.colour, hatch=one.look.hatch, edgecolor="white", label=one.name)
    axes.set(yticks=range(len(types)), yticklabels=types, title=f"Latency of calls by agent type\n{where}",
             xlabel="call latency (virtual s): bar = mean, tick = P95", ylim=(-0.6, len(types) - 0.4))
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3, axis="x")
    legend_below(figure, axes, 3)
    return figure


def call_times(series: Series, agent_type: str) -> list[float]:
    """Seconds from submission to the last token of finished calls of one agent type, ascending."""
    return sorted(call["finished_s"] - call["submitted_s"] for run in series.documents for call in run["calls"]
                  if call["agent_type"] == agent_type and call["finished_s"] is not None)


def time_of_apps(series: list[Series], where: str) -> Figure:
    """Mean share of each kind of time in the latency of finished apps, along the apps' own critical paths."""
    figure, ((axes,),) = new_figure(7.5, 1.8 + 0.33 * len(series))
    names, left = [_with_unfinished(one) for one in series], [0.0] * len(series)
    for key, (label, colour) in TIME_COLOURS.items():
        widths = [mean_time(one, key) for one in series]
        axes.barh(names, widths, 0.7, left=left, label=label, color=colour, edgecolor="white", linewidth=0.4)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    axes.set(xlabel="mean per finished app (virtual s)", xlim=(0, 1.03 * max(left) or 1),
             title=f"Where the time of an app went\n{where}")
    axes.invert_yaxis()
    axes.grid(alpha=0.3, axis="x")
    legend_below(figure, axes, 4)
    return figure


def _with_unfinished(series: Series) -> str:
    unfinished = series.apps() - len(series.latencies())
    return series.name + (f"\n({unfinished} of {series.apps()} apps unfinished)" if unfinished else "")


def mean_time(series: Series, key: str) -> float:
    """Mean seconds of one kind of time over the finished apps; 0 when none has ended."""
    times = [app["breakdown"][key] for run in series.documents for app in run["apps"] if app["breakdown"] is not None]
    return sum(times) / len(times) if times else 0.0


def latency_over_qps(groups: list[dict[str, Any]], look: dict[str, Look], where: str) -> Figure:
    """Mean latency, unfinished apps included, by arrival rate; a bar spans the seeds."""
    figure, ((axes,),) = new_figure(7, 4.6)
    rows: dict[str, list[tuple[float, dict[str, Any]]]] = {name: [] for name in look}
    for group in sorted(groups, key=lambda group: group["qps"]):
        for row in group["rows"]:
            if row["latency"] and row["latency"][MEAN]:
                rows[row["configuration"]].append((group["qps"], row["latency"][MEAN]))
    for name, points in rows.items():
        if points:
            rates, spreads = zip(*points, strict=True)
            error = [[spread["median"] - spread["low"] for spread in spreads],
                     [spread["high"] - spread["median"] for spread in spreads]]
            axes.errorbar(rates, [spread["median"] for spread in spreads], yerr=error, label=name, marker="o",
                          markersize=3.5, capsize=2, elinewidth=0.8, **look[name].of_line())
    axes.set(xscale="log", xlabel="arrival rate (apps per virtual s)",
             ylabel="mean app latency,\nunfinished included (virtual s)",
             title=f"Mean latency of apps over the arrival rate\n{where}")
    axes.set_xticks([group["qps"] for group in groups], [f"{group['qps']:g}" for group in groups])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    legend_below(figure, axes, 3)
    return figure
