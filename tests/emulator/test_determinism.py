"""The same spec and seed give the same events, byte for byte, in every process and with every observer on or off."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from tests.emulator.specs import STOCK, TOKENCAKE, code_writer

CONFIGURATIONS = {"stock": STOCK, "tokencake": TOKENCAKE}


def events(result) -> bytes:
    content = Path(result["spec"]["event_log"]).read_bytes()
    assert hashlib.sha256(content).hexdigest() == result["event_log_sha256"]
    return content


@pytest.fixture(scope="module", autouse=True)
def started(runs) -> None:
    """Start all of them, so that they run side by side."""
    for configuration in CONFIGURATIONS.values():
        for overlap in (False, True):
            runs.start(code_writer(configuration, overlap=overlap), parent=0)
            runs.start(unobserved(configuration, overlap), parent=1)


def unobserved(configuration, overlap):
    return code_writer(configuration, overlap=overlap, oracle=False, samples=0)


@pytest.fixture(scope="module", params=[False, True], ids=["normal", "overlap"])
def overlap(request) -> bool:
    return request.param


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_two_processes_write_the_same_events_with_and_without_oracle_and_samples(runs, name, overlap):
    """The processes differ in Python's hash seed and in every object's address."""
    one = runs.result(unobserved(CONFIGURATIONS[name], overlap), parent=1)
    other = runs.result(code_writer(CONFIGURATIONS[name], overlap=overlap), parent=0)
    assert one["counts"]["kv_checked_tokens"] == 0 < other["counts"]["kv_checked_tokens"]
    assert one["kv_samples"] == [] != other["kv_samples"]
    assert events(one) == events(other)
    assert {**one["counts"], "kv_checked_tokens": 0, "kv_bad_tokens": 0} == {
        **other["counts"], "kv_checked_tokens": 0, "kv_bad_tokens": 0}
    for key in ("virtual_s", "steps", "apps", "calls", "latency", "residency", "output_sha256"):
        assert one[key] == other[key], key


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_what_is_repeated_has_evictions_copies_both_ways_and_retractions(runs, name, overlap):
    counts = runs.result(code_writer(CONFIGURATIONS[name], overlap=overlap), parent=0)["counts"]
    kinds = ["evictions", "demoted_tokens", "evicted_host_tokens", "d2h_tokens", "h2d_tokens", "cached_host_tokens"]
    kinds += ["offloads", "uploads"] if name == "tokencake" else []
    for kind in kinds + ([] if overlap else ["retracted"]):
        assert counts[kind] > 0, kind


def test_another_seed_gives_other_events_and_times(runs):
    runs.start(code_writer(STOCK), parent=0)
    other = runs.result(code_writer(STOCK, seed=2), parent=1)
    one = runs.result(code_writer(STOCK), parent=0)
    assert events(one) != events(other)
    assert one["latency"] != other["latency"]


def test_the_two_loops_and_the_two_configurations_give_different_events(runs):
    results = [runs.result(code_writer(configuration, overlap=overlap), parent=0)
               for configuration in (STOCK, TOKENCAKE) for overlap in (False, True)]
    assert len({result["event_log_sha256"] for result in results}) == 4
    assert len({result["output_sha256"] for result in results}) == 1
