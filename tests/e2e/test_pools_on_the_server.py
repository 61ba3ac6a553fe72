"""Memory pools and shares of tenants on one real server: nothing is lost or cut, and every token has its account."""

from __future__ import annotations

import json
import threading

import pytest

from tests.support.scenario import tokens
from tests.support.server import ServerProcess

pytestmark = pytest.mark.e2e

TOTAL, LENGTH = 2048, 48
FLAGS = ("--max-total-tokens", str(TOTAL), "--hicache-ratio", "2", "--enable-tokencake", "--tokencake-pools", "shipped",
         "--tokencake-tenant-header", "x-tenant", "--tokencake-tenant-shares", "acme=0.3:1,beta=0:0.4")


@pytest.fixture(scope="module")
def server():
    with ServerProcess(*FLAGS, module="tokencake_sglang.launch_server") as server:
        yield server


def ask(server: ServerProcess, number: int, answers: list[int]) -> None:
    body = {
        "input_ids": tokens(f"agent {number}", 300), "sampling_params": {"max_new_tokens": LENGTH, "ignore_eos": True},
        "tokencake": {"app_id": f"run-{number % 4}", "graph_id": "app", "agent_id": f"a{number}",
                      "agent_type": ("plan", "write", "check")[number % 3]}}
    status, text = server.post("/generate", body, headers={"x-tenant": ("acme", "beta")[number % 2]})
    answers.append(json.loads(text)["meta_info"]["completion_tokens"] if status == 200 else -status)


def test_with_pools_and_shares_every_request_ends_whole_and_every_token_has_an_account(server):
    answers: list[int] = []
    asking = [threading.Thread(target=ask, args=(server, number, answers)) for number in range(16)]
    for one in asking:
        one.start()
    for one in asking:
        one.join()
    assert answers == [LENGTH] * 16
    state = json.loads(server.get("/v1/tokencake/state")[1])
    memory = state["queue"]["memory"]
    counts = [pool[name] for pool in memory["pools"] for name in ("used", "in_transfer", "cached")]
    assert memory["total"] == TOTAL == memory["free"] + sum(counts)
    assert {pool["agent_type"] for pool in memory["pools"]} >= {"plan", "write", "check"}
    tenants = {one["tenant"]: (one["floor"], one["ceiling"]) for one in memory["tenants"]}
    assert (tenants["acme"], tenants["beta"]) == ((0.3, 1.0), (0.0, 0.4))
    assert state["counters"]["denied_by_ceiling"] > 0, "six requests of 300 tokens and more fit at a time"
