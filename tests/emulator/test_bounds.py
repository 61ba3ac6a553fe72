"""Bounds and configurations on the real scheduler: what knows the future uses it, and nothing gets lost."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.emulations import Emulations
from tokencake_sglang.emulator.configurations import names


class Jobs:
    """Runs functions of bound_jobs under one hash seed; each job once."""

    def __init__(self, emulations: Emulations, parent: int) -> None:
        self._emulations, self._parent, self._started = emulations, parent, {}

    def __call__(self, job: str, argument: Any = None) -> Any:
        key = job, argument
        if key not in self._started:
            self._started[key] = self._emulations.submit(
                f"tests.emulator.bound_jobs:{job}", argument, parent=self._parent)
        return self._started[key].result()


@pytest.fixture(scope="module")
def jobs(emulations):
    return Jobs(emulations, parent=0)


def cached(result: dict[str, Any], call: str) -> int:
    return next(c["cached_tokens"] for c in result["calls"] if f"{c['app_id']}{c['name']}" == call)


def test_lru_evicts_the_session_that_was_used_longest_ago_although_it_returns_first(jobs):
    result = jobs("two_sessions", "stock-fcfs")
    assert cached(result, "A2") < 100


def test_a_clairvoyant_choice_evicts_the_session_that_returns_last(jobs):
    result = jobs("two_sessions", "stock-fcfs+clairvoyant-evict")
    assert cached(result, "A2") >= 800
    assert cached(result, "B2") < 100


def test_eviction_by_program_keeps_the_program_that_came_first(jobs):
    result = jobs("two_sessions", "stock-fcfs+program-evict")
    assert cached(result, "A2") >= 800
    assert cached(result, "B2") < 100


def test_known_uses_replace_the_forecasts_of_tokencake(jobs):
    blind = jobs("two_sessions", "tokencake-none-fcfs-host0.1")
    result = jobs("two_sessions", "tokencake-none-fcfs-host0.1+clairvoyant-evict")
    assert cached(blind, "A2") < 100
    assert cached(result, "A2") >= 800
    assert cached(result, "B2") < 100


@pytest.mark.parametrize(("known", "helps"), [
    ("tools", True), ("tools+known-device", True), ("device", True),
    ("people", False), ("queue", False), ("reads", False), ("host", False), ("tools+known-host", False)])
def test_the_truth_about_one_thing_helps_where_the_choice_hangs_on_it(jobs, known, helps):
    result = jobs("two_sessions", f"tokencake-none-fcfs-host0.1+known-{known}")
    assert (cached(result, "A2") >= 800) == helps


@pytest.mark.parametrize("name", ["stock-fcfs+clairvoyant-order", "stock-lpm+program-order"])
def test_an_order_moves_waiting_requests_and_loses_none(jobs, name):
    counts = jobs("queue_orders", name)
    assert counts["moved"] > 0
    assert counts["damaged"] == 0
    assert counts["apps_completed"] == 2


RUN = ["stock-fcfs+program", "stock-lpm+gate1+clairvoyant", "clairvoyant", "session-radix", "hicache-lpm-writeback",
       "hicache-routing-key-mixed", "hicache-priority-mixed-chunk512-selective", "stock-lof-slru",
       "stock-dfs-weight-priority", "tokencake-lpm-mixed", "tokencake-none", "tokencake-cost-lpm+clairvoyant-evict",
       "tokencake-cost-lpm+known-people+known-reads+known-host"]


@pytest.mark.parametrize("name", RUN)
def test_a_configuration_runs_to_the_end_with_the_output_of_stock(jobs, name):
    counts, stock = (jobs("small_run", each)["counts"] for each in (name, "stock-fcfs"))
    assert counts["apps_completed"] == counts["apps"] == 2
    for same in ("calls_completed", "output_tokens", "prompt_tokens"):
        assert counts[same] == stock[same]
    assert (counts["truncated"], counts["aborted"], counts["kv_bad_tokens"]) == (0, 0, 0)
    assert counts["kv_checked_tokens"] > 0
    assert counts["evictions"] > 0


def test_a_gate_of_one_runs_programs_one_after_the_other(jobs):
    apps = sorted(jobs("small_run", "stock-lpm+gate1+clairvoyant")["apps"], key=lambda app: app["arrival_s"])
    calls = jobs("small_run", "stock-lpm+gate1+clairvoyant")["calls"]
    for before, app in zip(apps, apps[1:], strict=False):
        first = min(call["scheduled_s"] for call in calls if call["app_id"] == app["app_id"])
        assert first >= before["end_s"]


def test_bounds_are_the_same_in_another_process_with_other_hashes(jobs, emulations):
    other = Jobs(emulations, parent=1)
    for name in ("clairvoyant", "stock-fcfs+program"):
        assert other("small_run", name)["event_log_sha256"] == jobs("small_run", name)["event_log_sha256"]


def test_sglang_accepts_the_settings_of_every_well_known_configuration(jobs):
    answers = jobs("accepted_server_args")
    assert set(answers) == set(names())
    assert {name: said for name, said in answers.items() if said} == {}
