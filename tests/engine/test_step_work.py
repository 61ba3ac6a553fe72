"""What a step of the extension does on the real cache, by how many agents have KV in it and how many requests wait."""

from __future__ import annotations

import pytest

from tests.engine.test_life_cycle import Server
from tests.support.work import instructions

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
