"""The report of a comparison and its tables: ratios, equality, spreads over seeds, and what must not be hidden."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.support.emulation import run_document
from tokencake_sglang.emulator.cells import Cell, Experiment, Grid
from tokencake_sglang.emulator.report import build_report, is_void
from tokencake_sglang.emulator.spec import Configuration
from tokencake_sglang.emulator.table import cell_text, markdown

STOCK = Configuration("stock-lru")
LPM = Configuration("hicache-lpm", {"schedule_policy": "lpm"})
OURS = Configuration("tokencake", tokencake={})
BOUND = Configuration("clairvoyant", bound="clairvoyant")


def experiment(*configurations: Configuration, **grid) -> Experiment:
    return Experiment("code_writer", {"applications": 2}, Grid(**grid).cells(), configurations, "a-profile")


def report_of(plan: Experiment, latencies, before=None, **counts):
    """`latencies(job)`: the latencies of its apps, or a text when it failed; `counts`: by configuration."""
    results = {}
    for job in plan.jobs():
        found = latencies(job)
        more = counts.get(job.configuration.name.replace("-", "_"), {})
        results[job.file] = found if isinstance(found, str) else run_document(job.spec, found, **more)
    return build_report(plan, results, ["code_writer"], before)


def by_name(means: dict[str, float]):
    return lambda job: [means[job.configuration.name] - 1, means[job.configuration.name] + 1]


def runs_of(report, cell: int = 0):
    return {run["configuration"]: run for run in report["cells"][cell]["runs"]}


def rows(text: str, name: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith(f"| {name} ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_ratio_is_to_the_best_stock_configuration_and_never_to_a_bound():
    report = report_of(experiment(STOCK, LPM, OURS, BOUND),
                       by_name({"stock-lru": 400, "hicache-lpm": 200, "tokencake": 250, "clairvoyant": 100}))
    assert report["cells"][0]["best_stock"] == "hicache-lpm"
    ratios = {name: run["ratio_to_best_stock"] for name, run in runs_of(report).items()}
    assert ratios == {"stock-lru": 2.0, "hicache-lpm": 1.0, "tokencake": 1.25, "clairvoyant": 0.5}


def test_a_stock_configuration_that_completes_fewer_apps_is_not_the_best():
    times = {"stock-lru": [5.0, None], "hicache-lpm": [900.0, 900.0]}
    report = report_of(experiment(STOCK, LPM), lambda job: times[job.configuration.name])
    assert report["cells"][0]["best_stock"] == "hicache-lpm"


def test_without_a_stock_configuration_there_is_no_ratio():
    report = report_of(experiment(OURS), by_name({"tokencake": 10}))
    assert runs_of(report)["tokencake"]["ratio_to_best_stock"] is None
    assert "none in this comparison" in markdown(report)


def test_a_loss_is_said_in_words_and_in_figures():
    text = markdown(report_of(experiment(LPM, OURS), by_name({"hicache-lpm": 100, "tokencake": 112})))
    assert "tokencake against the best stock of its cell: 12.0 % longer: a loss." in text
    assert rows(text, "tokencake")[0][5] == "1.120"


@pytest.mark.parametrize("different", [{"output_tokens": 4999}, {"apps_completed": 1}, {"outputs": "1" * 64}])
def test_unequal_work_is_never_called_equal(different):
    report = report_of(experiment(LPM, OURS), by_name({"hicache-lpm": 100, "tokencake": 50}), tokencake=different)
    assert not report["cells"][0]["equal"] and not runs_of(report)["tokencake"]["equal"]
    assert runs_of(report)["hicache-lpm"]["equal"]
    text = markdown(report)
    assert rows(text, "tokencake")[0][-1] == "**no**" and rows(text, "hicache-lpm")[0][-1] == "yes"
    assert "tokencake is not an equal comparison with hicache-lpm" in text


def test_equal_work_is_called_equal_and_raises_no_warning():
    report = report_of(experiment(LPM, OURS), by_name({"hicache-lpm": 100, "tokencake": 50}), tokencake={"offloads": 3})
    assert report["cells"][0]["equal"] and report["warnings"] == []


@pytest.mark.parametrize(("counts", "words"), [
    ({"kv_bad_tokens": 7}, "read 7 KV tokens with wrong content: its result is void"),
    ({"truncated": 2}, "tokencake has calls that were truncated: 2"),
    ({"aborted": 1}, "tokencake has calls that were aborted: 1"),
    ({"offloads": 0}, "made no offload: what it gains is not an offload gain"),
])
def test_what_a_reader_must_know_is_a_warning(counts, words):
    report = report_of(experiment(LPM, OURS), by_name({"hicache-lpm": 100, "tokencake": 50}),
                       tokencake={"offloads": 3} | counts)
    assert [text for text in report["warnings"] if words in text]
    assert words in markdown(report)


def test_bad_reads_of_stock_in_the_overlap_loop_are_told_as_its_own_race_and_void_nothing():
    for overlap, excused in ((True, True), (False, False)):
        plan = replace(experiment(LPM), overlap=overlap)
        report = report_of(plan, by_name({"hicache-lpm": 100}), hicache_lpm={"kv_bad_tokens": 7})
        assert is_void(runs_of(report)["hicache-lpm"]) is not excused
        assert ("SGLang 0.5.17's own race" in markdown(report)) is excused


def test_unfinished_apps_are_counted_and_told():
    report = report_of(experiment(LPM), lambda job: [100.0, None])
    text = markdown(report)
    assert "left 1 of 2 apps unfinished" in text
    assert rows(text, "hicache-lpm")[0][1:5] == ["100.0", "100.0", "100.0", "545.0"]


def test_a_run_in_which_no_app_ended_has_dashes_for_its_latencies():
    report = report_of(experiment(LPM, OURS), lambda job: [None] if job.configuration is OURS else [4.0])
    assert rows(markdown(report), "tokencake")[0][1:4] == ["-", "-", "-"]


def test_a_failed_run_stays_in_the_table():
    report = report_of(experiment(LPM, OURS), lambda job: [5.0] if job.configuration is LPM else "boom\nno memory")
    assert not report["cells"][0]["equal"]
    text = markdown(report)
    assert rows(text, "tokencake (1 of 1 runs failed)")[0][1:5] == ["-"] * 4
    assert "tokencake failed: no memory" in text


def test_with_several_seeds_the_table_has_the_median_and_the_range():
    means = {1: 100, 2: 300, 3: 120}
    plan = experiment(LPM, OURS, seeds=(1, 2, 3))
    report = report_of(plan, lambda job: [means[job.cell.seed]] if job.configuration is LPM else [100.0])
    text = markdown(report)
    assert rows(text, "hicache-lpm")[0][1] == "120.0 (100.0 to 300.0)"
    assert rows(text, "tokencake")[0][5] == "0.833 (0.333 to 1.000)"
    assert "16.7 % shorter (over the seeds 66.7 % shorter to equally long)" in text
    assert len(report["groups"]) == 1 and len(report["cells"]) == 3


def test_each_rate_pool_and_ratio_has_its_own_tables_and_the_overview_shows_what_differs():
    plan = experiment(LPM, OURS, qps=(0.1, 1.0), pools=(48_800,))
    report = report_of(plan, lambda job: [100 * job.cell.qps * (2 if job.configuration is LPM else 1)])
    text = markdown(report)
    assert "| configuration | QPS 0.1 | QPS 1 |" in text
    assert rows(text, "tokencake")[0] == ["tokencake", "10.0 (0.500)", "100.0 (0.500)"]
    assert "## QPS 0.1, device pool 48,800 tokens, host pool 2 x, seed 1" in text


def test_the_counts_of_every_configuration_stand_below_its_latency():
    counts = {"retracted": 1, "offloads": 12, "uploads": 11, "uploads_on_time": 10, "recomputed_tokens": 123_456,
              "critical_inversions": 9}
    text = markdown(report_of(experiment(LPM, OURS), by_name({"hicache-lpm": 4, "tokencake": 5}), tokencake=counts))
    assert rows(text, "tokencake")[1] == [
        "tokencake", "0", "1", "0", "12", "11", "10", "123,456", "9", "100", "62.0 %", "0"]


def test_the_bound_without_contention_is_the_mean_critical_path():
    report = report_of(experiment(LPM), by_name({"hicache-lpm": 100}))
    assert report["cells"][0]["uncontended"] == {"mean_s": 40.0, "p95_s": 40.0}
    assert "mean 40.0 s, P95 40.0 s" in markdown(report)


def test_a_report_with_missing_runs_says_so():
    plan = experiment(LPM, OURS)
    job = next(plan.jobs())
    report = build_report(plan, {job.file: run_document(job.spec, [1.0])}, [])
    assert not report["complete"] and "Not all runs were made" in markdown(report)


def test_a_repeated_comparison_names_the_runs_whose_events_differ():
    plan = experiment(LPM, OURS)
    before = report_of(plan, by_name({"hicache-lpm": 4, "tokencake": 5}))
    same = report_of(plan, by_name({"hicache-lpm": 4, "tokencake": 5}), before)
    assert same["repeat"] == {"runs": 2, "differing": []}
    before["cells"][0]["runs"][1]["event_log_sha256"] = "f" * 64
    again = report_of(plan, by_name({"hicache-lpm": 4, "tokencake": 5}), before)
    assert again["repeat"]["differing"] == [list(plan.jobs())[1].file]
    assert "before: 1 of 2. **Not the same**" in markdown(again)


def test_an_experiment_survives_its_report():
    plan = experiment(LPM, OURS, qps=(0.1,), pools=(1000, None), seeds=(1, 2))
    assert Experiment.from_dict(report_of(plan, by_name({"hicache-lpm": 4, "tokencake": 5}))["experiment"]) == plan


def test_cells_have_different_names_and_the_seed_is_no_part_of_the_group():
    cells = Grid((None, 0.1), (None, 5), (1.0, 2.5), (1, 2)).cells()
    assert len({cell.name for cell in cells}) == 16 and len({cell.group for cell in cells}) == 8
    assert Cell(0.1, 5, 2.5, 2).name == "qps-0.1_pool-5_host-2.5_seed-2"


def test_a_range_is_shown_only_where_the_seeds_differ():
    assert cell_text({"median": 2.0, "low": 2.0, "high": 2.0}, "count") == "2"
    assert cell_text(None, "count") == "-"


def test_the_cost_of_a_step_is_shown_where_it_was_asked_for():
    plan = experiment(LPM, OURS)
    assert "temporal half" not in markdown(report_of(plan, by_name({"hicache-lpm": 100, "tokencake": 50})))
    text = markdown(report_of(replace(plan, measure_from_s=5.0), by_name({"hicache-lpm": 100, "tokencake": 50})))
    (heads,) = rows(text.replace("| configuration | steps", "| heads | steps"), "heads")
    costs = dict(zip(heads, rows(text, "tokencake")[-1], strict=True))
    assert (costs["temporal half P50 us"], costs["both halves mean us"]) == ("25.0", "40.0")
    assert costs["decisions a step"] == "1.50"
