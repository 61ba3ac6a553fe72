"""0005-scheduler-admission.patch, 0006-prefill-estimates.patch and 0008-beside-chunk.patch in SGLang's own loop: each
test fails without the hunk that it names."""

from __future__ import annotations

import pytest

from tests.emulator.conftest import JOBS
from tests.emulator.specs import STOCK, code_writer

MIXED = {"name": "mixed", "server_args": {"enable_mixed_chunk": True, "chunked_prefill_size": 256}}


def run(emulations, extension, configuration=STOCK, prompt_tokens=400, **fields):
    calls = [{"name": f"c{i}", "prompt_tokens": prompt_tokens, "output_tokens": 60, **fields} for i in range(4)]
    spec = code_writer(configuration, pool_tokens=8000)
    return emulations.run(JOBS + "run_extended", calls, spec, extension)


def started(result) -> list[str]:
    return sorted((call["name"] for call in result["calls"]), key=lambda name: next(
        i for i, names in enumerate(result["admitted"]) if name in names))


def first_tokens(result) -> dict[str, float]:
    return {call["name"]: call["first_token_s"] for call in result["calls"]}


def test_an_extension_is_told_which_requests_go_into_a_batch_and_one_in_chunks_is_in_several(emulations):
    result = run(emulations, "Telling", MIXED)
    assert started(result) == ["c0", "c1", "c2", "c3"]
    assert sum("c1" in names for names in result["admitted"]) > 1


def test_an_extension_orders_the_queue(emulations):
    assert started(run(emulations, "LastNameFirst", MIXED)) == ["c3", "c2", "c1", "c0"]


def test_a_request_that_is_held_back_is_passed_over_and_those_behind_it_go_on(emulations):
    result = run(emulations, "HoldsTheFirst", MIXED)
    assert started(result) == ["c1", "c2", "c3", "c0"]


def test_a_parked_prompt_waits_while_the_others_decode_and_is_computed_then(emulations):
    plain, parked = (run(emulations, name, MIXED) for name in ("Telling", "ParksTheLast"))
    others_end = max(call["finished_s"] for call in parked["calls"] if call["name"] != "c3")
    assert first_tokens(plain)["c3"] < others_end <= first_tokens(parked)["c3"]
    assert parked["output_sha256"] == plain["output_sha256"]


@pytest.mark.parametrize("configuration", [STOCK, MIXED])
def test_what_is_expected_of_requests_counts_in_admission_instead_of_what_they_ask_for(emulations, configuration):
    """Each asks for half of the pool. Without a forecast the second one does not fit beside the first."""
    asked = {"max_new_tokens": 4096}
    careful, told = (run(emulations, name, configuration, **asked) for name in ("Telling", "ExpectsSixty"))
    assert not any({"c0", "c1"} <= set(names) for names in careful["admitted"])
    first, last = first_tokens(told), max(call["finished_s"] for call in told["calls"])
    assert max(first.values()) < min(call["finished_s"] for call in told["calls"])
    assert last < max(call["finished_s"] for call in careful["calls"])
    assert told["output_sha256"] == careful["output_sha256"]


def test_an_extension_makes_the_chunks_of_a_batch_smaller(emulations):
    plain, small = (run(emulations, name, MIXED) for name in ("Telling", "SmallChunks"))

    def batches(result):
        return {name: sum(name in names for names in result["admitted"]) for name in ("c0", "c1", "c2", "c3")}

    assert max(batches(plain).values()) <= 3, "two chunks of 256, and what a batch before had left"
    assert min(batches(small)[name] for name in ("c0", "c1", "c2")) >= 7 > 3 >= batches(small)["c3"]
    assert small["output_sha256"] == plain["output_sha256"]


def test_short_prompts_go_beside_the_rest_of_a_long_one_in_what_an_extension_keeps_for_them(emulations):
    """Each of the short ones fits into what is kept, two of them do not."""
    calls = [{"name": f"c{i}", "prompt_tokens": 100 if i else 3000, "output_tokens": 60} for i in range(3)]
    plain, shared = (emulations.run(JOBS + "run_extended", [dict(call) for call in calls], code_writer(
        MIXED, pool_tokens=8000), name) for name in ("Telling", "KeepsHalf"))
    behind, beside = first_tokens(plain), first_tokens(shared)
    assert behind["c0"] <= behind["c1"] and beside["c1"] < beside["c2"] < beside["c0"]
    assert shared["output_sha256"] == plain["output_sha256"]


def test_no_extension_limits_chunks_by_itself():
    from sglang.srt.managers.scheduler_extension import SchedulerExtension

    assert SchedulerExtension().limit_chunk(512, None, [], None) == 512


def test_no_extension_counts_otherwise_by_itself():
    from sglang.srt.managers.scheduler_extension import SchedulerExtension

    extension = SchedulerExtension()
    assert extension.running_growth([], 7.5) == extension.new_request_growth(object(), [], 7.5) == 7.5


@pytest.mark.parametrize("name", ["order_waiting_queue", "holds_back", "parks_chunk", "on_requests_admitted"])
def test_the_base_extension_does_nothing(name):
    from sglang.srt.managers.scheduler_extension import SchedulerExtension

    arguments = {"order_waiting_queue": ([1],), "parks_chunk": (object(), object())}.get(name, (object(),))
    assert not getattr(SchedulerExtension(), name)(*arguments)


def beside_an_endless_program(emulations, seniority_s, tenants=("", ""), **settings):
    settings = {"order": "program", "seniority_s": seniority_s, **settings}
    configuration = {"name": "program", "server_args": {"max_running_requests": 2}, "tokencake": settings}
    spec = code_writer(configuration, pool_tokens=8000)
    return emulations.run(JOBS + "run_beside_an_endless_program", spec, 6, 30, tenants)


def test_a_request_behind_endless_older_ones_runs_once_it_has_waited_for_the_seniority(emulations):
    """The bound on waiting: two requests fit at a time, and an older program always has four more that wait."""
    bounded, unbounded = (beside_an_endless_program(emulations, seniority_s) for seniority_s in (8.0, 1800.0))
    assert unbounded["scheduled"] > 25.0, "the older program keeps it waiting as long as it lasts"
    assert 8.0 < bounded["scheduled"] < 12.0
    assert bounded["poor"] < bounded["endless"] / 2


@pytest.mark.parametrize(("tenants", "shares", "least", "most"), [
    (("rich", "rich"), "", 8.0, 12.0), (("rich", "rich"), "rich=0:0.1", 8.0, 12.0),
    (("rich", "poor"), "", 1.0, 3.0), (("rich", "poor"), "poor=0:0.01", 1.0, 3.0)])
def test_the_bound_on_waiting_holds_among_the_requests_of_a_tenant_and_another_tenant_comes_in_turn(
        emulations, tenants, shares, least, most):
    """A ceiling below what it needs does not keep it away. Requests end one by one, so that something always runs."""
    found = beside_an_endless_program(
        emulations, 8.0, tenants, tenant_header="x-tenant", tenant_shares=shares)
    assert least <= found["scheduled"] < most
    assert found["endless"] > found["poor"]
