"""Greedy outputs do not depend on TokenCake: stock, patched and off, patched and on with forced moves."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support.scenario import MANNERS, TURNS, Player, tokens
from tests.support.server import ServerProcess, hicache_flags

pytestmark = pytest.mark.e2e

# 2,000 slots for eight agents of up to 650 tokens: they cannot all stay, so KV also moves by ordinary eviction.
POOL = ("--max-total-tokens", "2048", "--max-running-requests", "8", "--hicache-ratio", "4")
TOKENCAKE = ("--enable-tokencake", "--tokencake-offload-policy", "eager", "--tokencake-stall-floor-s", "0.2",
             "--tokencake-min-offload-tokens", "16", "--tokencake-lease-s", "0.3")
LAUNCHER = "tokencake_sglang.launch_server"


@pytest.fixture(scope="module")
def stock_outputs(stock_tree):
    with ServerProcess(*POOL, *hicache_flags(), stock_tree=stock_tree) as server:
        return Player(server, "stock").play(concurrency=1)


def test_the_patched_server_without_tokencake_answers_as_stock(stock_outputs):
    with ServerProcess(*POOL, *hicache_flags(), module=LAUNCHER) as server:
        player = Player(server, "off")
        assert player.play(concurrency=4) == stock_outputs
        assert {status for _, status, _ in player.statuses} == {503}


@pytest.mark.parametrize("page_size", [1, 16])
@pytest.mark.parametrize("overlap", [True, False])
def test_forced_moves_change_no_output(stock_outputs, page_size, overlap):
    flags = ["--page-size", str(page_size)] + ([] if overlap else ["--disable-overlap-schedule"])
    with ServerProcess(*POOL, *TOKENCAKE, *flags, module=LAUNCHER) as server:
        for concurrency in (1, len(MANNERS)):
            player = Player(server, f"app{concurrency}")
            assert player.play(concurrency) == stock_outputs
            check_answers(player)
        state = settled_state(server)
    counters = state["counters"]
    assert counters["offloads_started"] == counters["offloads_completed"] > 0
    assert counters["uploads_started"] == counters["uploads_completed"] > 0
    assert counters["tokens_offloaded"] > 0 and counters["tokens_uploaded"] > 0
    assert counters["uploads_on_time"] > 0
    assert counters["stalls_started"] == counters["stalls_finished"] == 2 * len(MANNERS) * (TURNS - 1)
    assert counters["agents_ended"] == 2 * len(MANNERS)
    assert state["agents"] == [] and state["moves"] == [] and state["num_agents"] == 0
    pool = state["pool"]
    assert pool["device_free"] + pool["device_evictable"] == pool["device_total"]


def test_uploads_of_the_default_policy_change_no_output(stock_outputs):
    """1,280 slots, for about two of the eight agents: KV leaves for want of room and comes back where there is some."""
    flags = ("--max-total-tokens", "1280", "--max-running-requests", "8", "--hicache-ratio", "8")
    with ServerProcess(*flags, "--enable-tokencake", module=LAUNCHER) as server:
        player = Player(server, "app")
        assert player.play(len(MANNERS)) == stock_outputs
        check_answers(player)
        state = settled_state(server)
    counters, pool = state["counters"], state["pool"]
    assert counters["uploads_started"] == counters["uploads_completed"] > 0 and counters["tokens_uploaded"] > 0
    assert state["num_agents"] == 0 and pool["device_free"] + pool["device_evictable"] == pool["device_total"]


def test_a_turn_beside_a_long_prompt_in_chunks_changes_no_output():
    """A prompt of 7,000 tokens in chunks, and meanwhile the next turn of an agent whose KV is there."""
    flags = ("--max-total-tokens", "16384", "--hicache-ratio", "2", "--enable-mixed-chunk", "--chunked-prefill-size",
             "256", "--tokencake-chunks", "balanced")
    with ServerProcess(*flags, "--enable-tokencake", module=LAUNCHER) as server, ThreadPoolExecutor(1) as pool:
        turn = tokens("turn", 200)
        for number in range(3):
            long = tokens(number, 7000)
            under_way = pool.submit(server.generate, long, agent_metadata={"agent_id": f"l{number}"})
            time.sleep(0.2)
            short = server.generate(turn, agent_metadata={"agent_id": "turns"})["output_ids"]
            beside = [under_way.result()["output_ids"], short]
            alone = [server.generate(prompt, extra_key="alone")["output_ids"] for prompt in (long, turn)]
            assert beside == alone
            turn += [*short, *tokens(("result", number), 20)]
        state = settled_state(server)
    assert state["beside_long_prompts"] > 0


def test_retractions_and_a_small_host_pool_change_no_output(stock_outputs):
    """Requests are retracted every few passes, and the host holds a third of what the device does."""
    retract = {"SGLANG_TEST_RETRACT": "1", "SGLANG_TEST_RETRACT_INTERVAL": "5"}
    flags = ("--max-total-tokens", "2048", "--max-running-requests", "8", "--hicache-ratio", "0.34", "--enable-metrics")
    with ServerProcess(*flags, *TOKENCAKE, module=LAUNCHER, env=retract) as server:
        player = Player(server, "app")
        assert player.play(len(MANNERS)) == stock_outputs
        check_answers(player)
        assert server.metric("sglang:num_retracted_requests_total") > 0
        state = settled_state(server)
        time.sleep(1.1)  # metrics are brought up to date once a second, with a step
        server.generate([300, 301, 302], 4)
        shown = {name: server.metric(f"tokencake:{name}_total") for name in state["counters"]}
        assert shown == state["counters"] and server.metric("tokencake:device_total") == 2048
        assert server.metric("tokencake:stall_restore_seconds_count") == state["stall_totals"]["returned"] > 0
    counters, pool = state["counters"], state["pool"]
    assert pool["host_total"] < pool["device_total"] / 2
    assert counters["offloads_started"] == counters["offloads_completed"]
    assert counters["uploads_started"] == counters["uploads_completed"]
    assert state["num_agents"] == 0 and pool["device_free"] + pool["device_evictable"] == pool["device_total"]


def check_answers(player: Player) -> None:
    assert {status for _, status, _ in player.statuses} == {200}
    words = [word for _, _, word in player.statuses]
    assert words.count("duplicate") == TURNS - 1  # the doubled start events, nothing else
    assert words.count("late_finish") == 0


def settled_state(server: ServerProcess) -> dict:
    """The state once nothing moves or runs any more."""
    for _ in range(50):
        status, text = server.get("/v1/tokencake/state")
        assert status == 200, text
        state = json.loads(text)
        if not state["moves"] and not state["pool"]["running_requests"]:
            return state
        time.sleep(0.1)
    raise AssertionError(f"moves or requests are left over: {state['moves']}, {state['pool']}")
