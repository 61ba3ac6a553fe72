"""Whole runs: what the result document says of small workloads, and of requests that do not fit."""

from __future__ import annotations

from dataclasses import asdict

import pytest

from tests.emulator.conftest import JOBS
from tests.emulator.specs import STOCK, TOKENCAKE, code_writer
from tokencake_sglang.emulator.configurations import configuration

CONFIGURATIONS = {"stock": STOCK, "tokencake": TOKENCAKE}
AS_LAUNCHED = {"stock": STOCK, "tokencake": asdict(configuration("tokencake"))}
FITS = {"name": "fits", "prompt_tokens": 500, "output_tokens": 10}
AFTER = {"name": "after", "prompt_tokens": 100, "output_tokens": 5, "after": ["long"]}


@pytest.fixture(scope="module", autouse=True)
def started(runs) -> None:
    """Start all of them, so that they run side by side."""
    for one in (*CONFIGURATIONS.values(), AS_LAUNCHED["tokencake"]):
        for overlap in (True, False):
            runs.start(code_writer(one, overlap=overlap), parent=0)


@pytest.fixture(scope="module", params=CONFIGURATIONS)
def result(request, runs):
    return runs.result(code_writer(CONFIGURATIONS[request.param]), parent=0)


def one_program(emulations, *calls, configuration=STOCK, **changes):
    """Results of a run of one program on a server with 2,000 KV slots."""
    spec = code_writer(configuration, pool_tokens=2000, **changes)
    result = emulations.run(JOBS + "run_program", list(calls), spec)
    return result, {call["name"]: call for call in result["calls"]}


def test_every_application_completes_with_every_token_of_its_plan(result):
    counts = result["counts"]
    assert counts["apps"] == counts["apps_completed"] == 3
    assert counts["calls"] == counts["calls_completed"] == len(result["calls"]) == 81
    assert counts["truncated"] == counts["aborted"] == 0
    assert counts["output_tokens"] == sum(call["output_tokens"] for call in result["calls"]) == 19_392
    assert {call["finish"] for call in result["calls"]} == {"length"}


def test_outputs_are_equal_in_all_configurations_loops_and_after_retractions(runs):
    results = [runs.result(code_writer(configuration, overlap=overlap), parent=0)
               for configuration in CONFIGURATIONS.values() for overlap in (True, False)]
    assert len({result["counts"]["retracted"] for result in results}) > 1
    assert len({result["output_sha256"] for result in results}) == 1


def test_tokencake_retracts_less_than_half_of_what_stock_does(runs):
    """On a pool so small that stock retracts; in both loops together, as one of them alone has few."""
    counts = {name: sum(runs.result(code_writer(configuration, overlap=overlap), parent=0)["counts"]["retracted"]
                        for overlap in (True, False)) for name, configuration in AS_LAUNCHED.items()}
    assert 2 * counts["tokencake"] < counts["stock"], counts


def test_the_times_of_a_call_are_in_order(result):
    for call in result["calls"]:
        assert 0 < call["submitted_s"] < call["scheduled_s"] < call["first_token_s"] < call["finished_s"]
        assert call["finished_s"] <= result["virtual_s"]


def test_the_parts_of_a_latency_are_not_negative_and_sum_up_to_it(result):
    for app in result["apps"]:
        assert all(seconds >= 0 for seconds in app["breakdown"].values()), app["breakdown"]
        assert sum(app["breakdown"].values()) == pytest.approx(app["latency_s"], abs=1e-6)
        assert app["latency_s"] == pytest.approx(app["end_s"] - app["arrival_s"], abs=1e-9)


def test_cached_tokens_are_those_of_both_tiers(result):
    for call in result["calls"]:
        assert call["cached_tokens"] == call["cached_device_tokens"] + call["cached_host_tokens"]
        assert call["cached_tokens"] < call["prompt_tokens"]
    counts = result["counts"]
    assert counts["cached_host_tokens"] <= counts["h2d_tokens"]
    assert counts["cached_device_tokens"] > 0 < counts["cached_host_tokens"]


def test_every_sample_of_the_pools_adds_up(result):
    assert len(result["kv_samples"]) >= 10
    for sample in result["kv_samples"]:
        assert sum(sample["device"].values()) == result["pool_tokens"]
        assert sum(sample["host"].values()) == result["host_tokens"]
        assert min(*sample["device"].values(), *sample["host"].values()) >= 0
        assert sample["device"]["running"] <= sample["in_use"] <= result["pool_tokens"]
    shares = result["utilisation"]
    assert sum(shares[kind] for kind in ("running", "stalled", "shared", "idle", "free")) == pytest.approx(1)


def test_tokencake_moves_kv_and_stock_does_not(runs):
    stock, tokencake = (runs.result(code_writer(c), parent=0)["counts"] for c in CONFIGURATIONS.values())
    assert stock["offloads"] == stock["uploads"] == 0
    assert tokencake["offloads"] > 0 and tokencake["tokens_offloaded"] > 0
    assert tokencake["uploads"] == tokencake["uploads_on_time"] + tokencake["uploads_late"] > 0


@pytest.mark.parametrize("overlap", [True, False])
def test_a_pool_for_two_requests_of_twelve_retracts_and_truncates_none(emulations, overlap):
    calls = [{"name": f"c{i}", "prompt_tokens": 300, "output_tokens": 400} for i in range(12)]
    result, by_name = one_program(emulations, *calls, configuration=TOKENCAKE, overlap=overlap)
    assert result["counts"]["retracted"] == sum(call["retractions"] for call in by_name.values()) > 0
    assert {call["output_tokens"] for call in by_name.values()} == {400}
    assert result["counts"]["truncated"] == 0


def test_a_prompt_longer_than_the_pool_is_refused_and_its_program_goes_on(emulations):
    result, calls = one_program(emulations, FITS, {"name": "long", "prompt_tokens": 5000, "output_tokens": 10}, AFTER)
    assert {name: call["finish"] for name, call in calls.items()} == {
        "fits": "length", "long": "abort", "after": "length"}
    assert result["counts"]["aborted"] == result["counts"]["truncated"] == 1
    assert calls["long"]["cached_tokens"] == 0 and calls["long"]["output_tokens"] <= 1


def test_an_output_that_does_not_fit_is_cut_and_counted_as_truncated(emulations):
    """SGLang limits max_new_tokens to what the pool holds."""
    result, calls = one_program(emulations, FITS, {"name": "long", "prompt_tokens": 1500, "output_tokens": 1000}, AFTER)
    assert 0 < calls["long"]["output_tokens"] < 500
    assert result["counts"]["truncated"] == 1 and result["counts"]["aborted"] == 0


def test_a_host_tier_needs_no_more_memory_than_it_takes(emulations):
    """SGLang wants 10 GiB free beside a host pool; the emulated one takes some megabytes."""
    result = emulations.run(JOBS + "run_on_a_small_machine", code_writer(STOCK), 2 << 30)
    assert result["host_tokens"] > 0 and result["counts"]["apps_completed"] == 3


def test_no_module_of_the_server_sees_the_real_clock_at_the_end_of_a_run(emulations):
    modules = emulations.run(JOBS + "modules_with_real_time", code_writer(TOKENCAKE))
    assert "sglang.srt.managers.scheduler" in modules["before"]
    assert modules["after"] == []
