"""Where the KV of an agent is said to be at its return, against what its call then finds and loads."""

from __future__ import annotations

from typing import Any

import pytest

from tests.emulator.specs import HICACHE

AGENTS = {"agents": 4, "turns": 5, "context_tokens": {"kind": "uniform", "low": 2_000, "high": 6_000},
          "tool_wait": {"kind": "uniform", "low": 3, "high": 9}, "output_tokens": 20, "ramp_s": 8.0}
CONFIGURATIONS = {
    "stock": {"name": "hicache", "server_args": {**HICACHE, "schedule_policy": "lpm"}},
    "cost": {"name": "cost", "server_args": {"schedule_policy": "lpm"},
             "tokencake": {"offload_policy": "cost", "order": "sglang"}}}


def spec(name: str, **changes: Any) -> dict[str, Any]:
    """Four agents with about 18,000 tokens on 9,000 slots; a load takes tens of ms."""
    return {"workload": {"name": "tool_turns", "seed": 1, "params": AGENTS}, "configuration": CONFIGURATIONS[name],
            "pool_tokens": 9_000, "host_ratio": 4.0, "samples": 5, **changes}


@pytest.fixture(scope="module", params=CONFIGURATIONS)
def result(request, runs):
    return runs.result(spec(request.param), parent=0)


def turns(result: dict[str, Any]) -> list[dict[str, Any]]:
    return [call for call in result["calls"] if call["after_tool_s"] is not None]


def test_every_turn_after_a_tool_is_looked_up_and_no_other(result):
    assert len(turns(result)) == 4 * 4 == result["returns"]["turns"]
    assert all((call["at_return"] is None) == (call["after_tool_s"] is None) for call in result["calls"])


def test_a_call_that_is_scheduled_at_once_finds_what_was_there_at_its_return(result):
    at_once = [call for call in turns(result) if call["scheduled_s"] - call["submitted_s"] < 0.02]
    assert len(at_once) >= 5
    for call in at_once:
        found = call["at_return"]
        assert found["device_tokens"] + found["loading_tokens"] == call["cached_device_tokens"], call
        assert found["host_tokens"] == call["cached_host_tokens"] and found["lost_tokens"] == 0, call


def test_nothing_is_lost_while_the_host_has_room_for_all_and_what_is_known_is_found(result):
    for call in turns(result):
        found = call["at_return"]
        known = found["device_tokens"] + found["loading_tokens"] + found["host_tokens"]
        assert call["prompt_tokens"] - known in (200, 201), "a result, and perhaps the last token of the answer"


def test_stock_is_never_ready_where_kv_was_away_and_tokencake_is_where_an_upload_came_first(runs):
    stock, cost = (runs.result(spec(name), parent=0) for name in CONFIGURATIONS)
    assert stock["returns"]["away"] > 3 and stock["returns"]["ready"] == 0
    assert cost["returns"]["ready"] > 3
    for call in turns(cost):
        found = call["at_return"]
        if found["uploaded_tokens"] and not found["loading_tokens"] + found["host_tokens"]:
            assert call["cached_host_tokens"] == 0 and call["upload_wait_s"] == 0


def test_on_a_slow_link_some_kv_is_still_on_its_way_at_the_return_and_the_call_waits_for_it(runs):
    slow = "qwen2.5-14b@a100-80gb?h2d_bytes_per_s=1e9&d2h_bytes_per_s=4e9"
    result = runs.result(spec("cost", profile=slow), parent=0)
    loading = [call for call in turns(result) if call["at_return"]["loading_tokens"] >= 64]
    assert loading and result["returns"]["loading"] == len(loading)
    assert any(call["upload_wait_s"] > 0 for call in loading)
    assert all(call["at_return"]["host_tokens"] == 0 or call["cached_host_tokens"] > 0 for call in loading)
    assert result["returns"]["ready_share"] < 1


def test_what_the_server_records_of_stalls_is_summed_and_stock_has_none(runs):
    stock, cost = (runs.result(spec(name), parent=0) for name in CONFIGURATIONS)
    assert stock["stall_totals"] is None
    assert cost["stall_totals"]["returned"] == cost["returns"]["stalls"] == 16
    on_host = any(call["at_return"]["host_tokens"] for call in turns(cost))
    assert (cost["stall_totals"]["missing_tokens"] > 0) == (cost["stall_totals"]["regret_s"] > 0) == on_host
