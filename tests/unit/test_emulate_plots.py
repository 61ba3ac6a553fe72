"""Plots of a comparison: what each shows, that the files repeat byte for byte, and that none is needed."""

from __future__ import annotations

import sys

import pytest

from tests.support.emulation import run_document
from tokencake_sglang.emulator import cli, plots
from tokencake_sglang.emulator.cells import Experiment, Grid
from tokencake_sglang.emulator.report import build_report
from tokencake_sglang.emulator.spec import Configuration

pytest.importorskip("matplotlib", reason="the extra `plots` is not installed")
STOCK = [Configuration(f"stock-{number}") for number in range(8)]
LPM, OURS, BOUND = Configuration("hicache-lpm"), Configuration("tokencake", tokencake={}), Configuration("c", bound="c")


def comparison(*configurations: Configuration, latencies=(100.0, 200.0, None), **grid):
    plan = Experiment("code_writer", {}, Grid(**grid).cells(), configurations, "a-profile")
    results = {job.file: run_document(job.spec, list(latencies)) for job in plan.jobs()}
    return build_report(plan, results, []), results


def first(report, results):
    return plots.series_of(report, results, report["groups"][0]["name"])


def legend(figure) -> list[str]:
    assert len(figure.legends) == 1 and all(axes.get_legend() is None for axes in figure.axes)
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_every_group_has_its_plots_and_a_grid_of_rates_has_one_more(tmp_path):
    written = plots.write_plots(*comparison(LPM, OURS, qps=(0.1, 1.0)), tmp_path, "svg")
    kinds = ("agents", "kv", "latency", "time")
    wanted = {f"qps-{qps}_pool-profile_host-2_{kind}.svg" for qps in ("0.1", "1") for kind in kinds}
    assert {path.name for path in written} == wanted | {"pool-profile_host-2_over-qps.svg"}
    assert all(path.stat().st_size > 1000 for path in written)


def test_the_same_results_give_the_same_svg_files(tmp_path):
    written = [plots.write_plots(*comparison(LPM, OURS), tmp_path / name, "svg") for name in ("a", "b")]
    for one, other in zip(*written, strict=True):
        assert one.read_bytes() == other.read_bytes()
        assert b"<dc:date>" not in one.read_bytes()


def test_an_app_that_did_not_end_keeps_the_curve_below_one_hundred_percent():
    figure = plots.latency_cdf(first(*comparison(LPM, OURS, seeds=(1, 2))), "")
    (line, _) = figure.axes[0].get_lines()
    assert list(line.get_xdata()) == [100, 100, 100, 200, 200]
    assert list(line.get_ydata())[-1] == pytest.approx(100 * 4 / 6)
    assert legend(figure) == ["hicache-lpm", "tokencake"]


def test_the_kv_stacks_fill_the_pool_of_each_place():
    report, results = comparison(LPM, OURS, pools=(50_000,))
    figure = plots.kv_over_time(first(report, results), "")
    assert [axes.get_title() for axes in figure.axes] == [
        "hicache-lpm: device", "hicache-lpm: host", "tokencake: device", "tokencake: host"]
    for axes, pool in zip(figure.axes[:2], (50, 100), strict=True):
        assert axes.get_ylim() == (0, pool)
        assert max(path.vertices[:, 1].max() for c in axes.collections for path in c.get_paths()) == pytest.approx(pool)
    assert legend(figure) == ["running", "stalled", "shared", "idle", "free"]


def test_calls_are_shown_by_agent_type_with_mean_and_tail():
    series = first(*comparison(LPM, latencies=(100.0, 300.0)))
    assert plots.call_times(series[0], "planner") == [30.0, 90.0]
    figure = plots.calls_by_agent_type(series, "")
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["planner", "coder"]
    assert sorted(bar.get_width() for bar in axes.patches if bar.get_width()) == [60.0, 120.0]
    assert [line.get_xdata()[0] for line in axes.get_lines()] == [pytest.approx(90.0), pytest.approx(180.0)]


def test_the_kinds_of_time_add_up_to_the_mean_latency():
    figure = plots.time_of_apps(first(*comparison(LPM)), "")
    axes = figure.axes[0]
    assert sum(bar.get_width() for bar in axes.patches) == pytest.approx(150.0)
    assert legend(figure) == [label for label, _ in plots.TIME_COLOURS.values()]
    assert axes.get_yticklabels()[0].get_text() == "hicache-lpm\n(1 of 3 apps unfinished)"


def test_the_curve_over_the_rates_is_the_median_mean_with_unfinished_apps():
    report, results = comparison(LPM, OURS, qps=(1.0, 0.1))
    figures = dict(plots.figures(report, results))
    figure = figures["pool-profile_host-2_over-qps"]
    points = figure.axes[0].get_lines()[0]
    assert list(points.get_xdata()) == [0.1, 1.0]
    wanted = report["groups"][0]["rows"][0]["latency"]["mean_with_unfinished_s"]["median"]
    assert list(points.get_ydata()) == [wanted, wanted] and wanted > 150
    assert legend(figure) == ["hicache-lpm", "tokencake"]


def test_no_two_configurations_look_the_same_and_each_kind_has_its_line():
    names = [Configuration(f"ours-{number}", tokencake={}) for number in range(6)]
    report, _ = comparison(*STOCK, *names, BOUND)
    looks = plots.looks(report["experiment"]["configurations"])
    assert len({(look.colour, look.line) for look in looks.values()}) == 15
    assert len({(look.colour, look.hatch) for look in looks.values()}) == 15
    assert looks["ours-0"].width > looks["stock-0"].width and looks["ours-0"].line == "-"


def test_a_configuration_without_a_finished_app_or_host_tier_can_be_drawn(tmp_path):
    assert plots.write_plots(*comparison(LPM, latencies=(None,), host_ratios=(0.0,)), tmp_path, "png")


def test_without_matplotlib_everything_else_is_written_and_one_line_says_what_to_install(tmp_path, monkeypatch, capsys):
    report, results = comparison(LPM, OURS)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    cli.show(report, results, tmp_path, "svg")
    said = capsys.readouterr()
    assert "pip install 'tokencake-sglang[plots]'" in said.err and said.err.count("\n") == 1
    assert (tmp_path / "report.md").read_text() in said.out and not (tmp_path / "plots").exists()
