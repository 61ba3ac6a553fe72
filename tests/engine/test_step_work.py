"""What a step of the extension does on the real cache, by how many agents have KV in it and how many requests wait."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from tests.engine.test_life_cycle import Server
from tests.support.work import instructions
from tokencake_sglang.core.controller import KV_LEFT_S
from tokencake_sglang.emulator.cost_meter import EXTENSION_CALLS

MORE = 1.05
FEW, MANY = 8, 48
PROMPT = 32


def prompt(number):
    return range(1_000 + PROMPT * number, 1_000 + PROMPT * (number + 1))


@pytest.fixture
def served(make):
    """A server that has served so many agents, each with KV of its own."""
    def build(count, **settings):
        server = Server(make(device_tokens=2_048, host_tokens=4_096, write_through=True), **settings)
        server.wait()
        for number in range(count):
            server.serve(prompt(number), f"a{number}", steps=1)
        for _ in range(2 + count // 16):
            server.wait(0.5)
        return server

    return build


def work_of_a_stall(server):
    """Of the step that decides about it; the tools of all others are out for long."""
    server.stall("a0", seconds=60.0)
    return instructions(server.extension._on_step)


@pytest.mark.parametrize("policy", ["cost", "eager"])
def test_a_step_looks_at_the_kv_of_the_agent_that_is_due_and_at_no_other(served, policy):
    few, many = (work_of_a_stall(served(count, offload_policy=policy)) for count in (FEW, MANY))
    assert few <= MORE * many and many <= MORE * few


def test_a_request_that_comes_costs_a_step_the_same_however_many_wait(served):
    def work(waiting):
        server = served(1)
        queue, extension = server.h.waiting_queue, server.extension

        def come(number):
            req = server.h.request(prompt(number), f"a{number}", f"r{number}")
            queue.append(req)
            extension.on_request_added(req)

        def step():
            extension._on_step()
            extension.order_waiting_queue(queue)

        for number in range(waiting):
            come(number)
            if number % 32 == 0:
                step()
        step()
        step()
        come(waiting)
        found = instructions(step)
        assert [req.rid for req in queue] == [f"r{number}" for number in range(waiting + 1)]
        return found

    few, many = work(32), work(256)
    assert few <= MORE * many and many <= MORE * few


@pytest.mark.parametrize("copied", [True, False])
def test_an_agent_hears_that_its_kv_has_left_the_device_while_its_tool_is_out(make, copied):
    server = Server(make(device_tokens=192, host_tokens=256, write_through=copied), offload_policy="cost")
    server.wait()
    done = server.serve(prompt(0))
    server.serve(prompt(1), "b")
    for agent in "ab":
        server.stall(agent, seconds=500.0)
    server.wait()
    agents = server.controller.agents
    assert agents.get("a").wake_at > server.now + 100.0 or not copied
    before = agents.get("b").wake_at
    server.h.evict(1)
    assert server.h.on_device(done) < len(done)
    soon = server.now + KV_LEFT_S
    assert (agents.get("a").wake_at == soon) == copied and agents.get("b").wake_at == before
    if copied:
        server.wait(KV_LEFT_S)
        assert agents.get("a").wake_at > server.now + 100.0, "and knows then when it has to come back"


def test_who_comes_back_soon_is_asked_of_the_agents_whose_tools_are_out_only(served):
    def work(count):
        server = served(count)
        server.stall("a0", seconds=0.5)
        returning = server.extension.queue.pools.returning
        assert [agent for agent, _ in returning(server.now + 1.0)] == ["a0"]
        return instructions(lambda: list(returning(server.now + 1.0)))

    few, many = work(FEW), work(MANY)
    assert few == many


def test_the_time_of_every_call_by_the_scheduler_counts_for_one_of_the_halves():
    from sglang.srt.managers.scheduler_extension import SchedulerExtension

    calls = {name for name in vars(SchedulerExtension) if not name.startswith("_")}
    asked_for_each_request = {"holds_back"}  # takes less time than reading the clock
    answered_before = {"tokens_beside_chunk"}  # in limit_chunk
    assert calls == EXTENSION_CALLS.keys() | asked_for_each_request | answered_before


def test_a_step_reckons_the_size_of_a_chunk_once_where_there_is_room_for_all_of_it(served, monkeypatch):
    server = served(FEW)
    long = server.h.request(range(5_000, 5_256), "long")
    server.h.admit(running := server.h.request(prompt(0), "a0"))
    long.init_next_round_input(server.h.cache)
    server.extension.scheduler.chunked_prefill_size = 64
    asked = []
    monkeypatch.setattr(server.extension.parking, "limit_chunk", lambda *call: asked.append(call) or 64)
    assert not server.extension.parks_chunk(long, SimpleNamespace(reqs=[running])) and not asked
