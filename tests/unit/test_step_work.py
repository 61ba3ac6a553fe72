"""What a step does is bounded by what is due in it: not by how many agents are known, are stalled, or wait.

Counted in instructions of the interpreter, not in seconds, so that no result depends on the machine.
"""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import pytest

from tests.support.mechanism import MemoryMechanism, Tokens
from tests.support.work import instructions
from tokencake_sglang.core.config import TokenCakeConfig
from tokencake_sglang.core.controller import Controller
from tokencake_sglang.core.due import DECISIONS_PER_STEP, IN_QUEUE_PER_STEP
from tokencake_sglang.core.spatial import Demand, SpatialScheduler, Waiting
from tokencake_sglang.core.spatial.views import Place
from tokencake_sglang.core.types import AgentIdentity
from tokencake_sglang.engine.queue_order import QueueOrder

MORE = 1.05  # of the work of the small case: a heap, or a bisection, that is a few levels deeper
FEW, MANY = 100, 10_000


def test_instructions_count_the_rounds_of_a_loop_and_of_a_comprehension():
    def rounds(count):
        return instructions(lambda: [number for number in range(count)])

    assert rounds(1000) > rounds(10) + 900
    assert instructions(lambda: None) < 10


class Agents:
    """A controller with `idle` agents, and `stalled` ones whose tools are out for an hour and a half; nobody is due."""

    def __init__(self, idle: int = 0, stalled: int = 0, policy: str = "cost") -> None:
        self.mechanism = MemoryMechanism()
        self.controller = Controller(TokenCakeConfig(offload_policy=policy), self.mechanism)
        self.controller.observe = lambda now, key, decision, outcome: self.decided.append(key)
        self.decided: list[str] = []
        self.known = 0
        for _ in range(idle):
            self.serve()
        for _ in range(stalled):
            self.stall(self.serve(), 5_400.0)
        self.settle()

    def serve(self) -> str:
        key = f"a{self.known}"
        self.known += 1
        self.mechanism.tokens[key] = Tokens(200)
        self.controller.request_added(AgentIdentity(agent_id=key, agent_type="coder"), f"{key}.1")
        self.controller.request_ended(key, f"{key}.1")
        return key

    def stall(self, key: str, seconds: float) -> None:
        self.controller.event({
            "event": "stall_started", "agent_id": key, "kind": "tool", "call_id": f"{key}.c",
            "estimated_duration_s": seconds})

    def settle(self) -> None:
        """Steps, until every agent has been decided about."""
        for _ in range(3 + self.known // DECISIONS_PER_STEP):
            self.step()

    def step(self) -> None:
        self.controller.tick(self.controller.now + 0.001)
        self.controller.step()

    def work(self, due: int = 0) -> int:
        """Of a step in which as many agents have begun to wait, or wait no longer."""
        self.step()
        for number in range(due):
            self.stall(f"a{number}", 60.0)
        self.decided.clear()
        found = instructions(self.step)
        assert self.decided == [f"a{number}" for number in range(min(due, DECISIONS_PER_STEP))]
        return found


@pytest.mark.parametrize("policy", ["cost", "eager", "score", "paper"])
@pytest.mark.parametrize("due", [0, 1, 8])
def test_a_step_decides_about_those_that_are_due_and_knows_nothing_of_the_others(policy, due):
    few, many = (Agents(idle=count, policy=policy).work(due) for count in (FEW, MANY))
    assert few <= MORE * many and many <= MORE * few


@pytest.mark.parametrize("due", [0, 1, 8])
def test_a_step_costs_no_more_for_agents_whose_tools_are_out_while_none_is_due(due):
    few, many = (Agents(idle=8, stalled=count).work(due) for count in (16, 1024))
    assert few <= MORE * many and many <= MORE * few


def test_each_agent_that_is_due_costs_the_same_and_no_step_decides_about_more_than_so_many():
    most, more = (Agents(idle=3 * DECISIONS_PER_STEP).work(rounds * DECISIONS_PER_STEP) for rounds in (1, 3))
    assert more <= MORE * most
    one, two, nine = (Agents(idle=FEW).work(due) for due in (1, 2, 9))
    assert nine - one == pytest.approx(8 * (two - one), rel=0.05)


class Crowd(Agents):
    """`known` agents that were served as soon as they came, and behind them `waiting` ones, each with so many tokens of
    KV, whose requests wait in the order of the spatial scheduler. No request is admitted any more."""

    def __init__(self, known: int, waiting: int, kv_tokens: int) -> None:
        super().__init__()
        self.spatial = SpatialScheduler(TokenCakeConfig())
        self.controller.queue_wait_s = self.spatial.wait_s
        for _ in range(known):
            key = self.serve()
            self.join(key)
            self.controller.tick(self.controller.now + 0.001)
            self.spatial.request_admitted(self.controller.now, f"{key}.2", 100)
        self.settle()
        for number in range(waiting):
            if kv_tokens:
                self.mechanism.tokens[f"w{number}"] = Tokens(kv_tokens)
            self.join(f"w{number}")
            self.controller.request_added(AgentIdentity(agent_id=f"w{number}", agent_type="coder"), f"w{number}.2")
        self.spatial.follow(self.controller.now)
        for _ in range(2 + waiting // DECISIONS_PER_STEP):
            self.step()

    def join(self, key: str) -> None:
        self.mechanism.live.add(f"{key}.2")
        waiting = Waiting(f"{key}.2", key, key, "coder", prompt_tokens=100, max_new_tokens=10)
        self.spatial.request_added(self.controller.now, waiting, lambda agent: None)
        self.spatial.follow(self.controller.now)

    def steps(self, count: int) -> list[list[str]]:
        """Whom each of so many steps of 30 ms decides about."""
        found = []
        for _ in range(count):
            self.decided.clear()
            self.controller.tick(self.controller.now + 0.03)
            self.controller.step()
            found.append(list(self.decided))
        return found


@pytest.mark.parametrize("known", [0, MANY])
def test_an_agent_that_waits_for_its_turn_without_kv_is_not_decided_about_again(known):
    crowd = Crowd(known, 1_000, kv_tokens=0)
    assert crowd.controller.agents.get("w999").rids and crowd.spatial.wait_s("w999") > 0
    assert not any(crowd.steps(100))


def test_requests_that_wait_cost_a_step_nothing_while_their_agents_have_no_kv():
    few, many = (instructions(partial(Crowd(known, 1_000, kv_tokens=0).steps, 50)) for known in (0, MANY))
    assert few <= MORE * many and many <= MORE * few


@pytest.mark.parametrize("known", [FEW, MANY])
def test_of_agents_with_kv_that_wait_for_their_turns_a_step_decides_about_few_and_none_is_left_out(known):
    crowd = Crowd(known, 200, kv_tokens=200)
    found = crowd.steps(100)
    assert max(map(len, found)) == IN_QUEUE_PER_STEP, "at the pace of before, all are expected within the second"
    assert {key for step in found for key in step} == {f"w{number}" for number in range(1, 200)}, "the first is next"


class Queue:
    """A waiting queue of `count` requests of as many programs, in order, and what keeps it in order."""

    def __init__(self, count: int, *, graphs: bool = False, tenants: int = 1) -> None:
        self.spatial = SpatialScheduler(TokenCakeConfig())
        if graphs:
            self.spatial.place = lambda rid: Place(float(rid[1:]), True)
        self.tenants = tenants
        self.order = QueueOrder()
        self.queue: list[SimpleNamespace] = []
        self.now = 0.0
        self.number = 0
        for _ in range(count):
            self.come()
        self.step()

    def come(self) -> None:
        self.number += 1
        rid = f"r{self.number}"
        waiting = Waiting(rid, f"p{self.number}", f"a{self.number}", "coder", tenant=f"t{self.number % self.tenants}",
                          prompt_tokens=100, max_new_tokens=10)
        self.spatial.request_added(self.now, waiting, lambda agent: None)
        self.queue.append(SimpleNamespace(rid=rid))
        self.order.joined(self.queue[-1])

    def step(self) -> None:
        if self.spatial.follow(self.now):
            self.order.sort(self.queue, self.spatial)
        self.spatial.admit(self.now, Demand(10_000, {}, 1_000, running=True), lambda agent: None)

    def admit(self) -> None:
        req = self.queue.pop(0)
        self.spatial.request_admitted(self.now, req.rid, 100)
        self.order.left(req)

    def work(self) -> int:
        """Of a step before which one request has come, and of the admission of the first."""
        self.now += 0.01
        self.come()
        return instructions(self.step) + instructions(self.admit)


@pytest.mark.parametrize("graphs", [False, True])
def test_a_request_is_put_into_its_place_without_a_look_at_the_others_that_wait(graphs):
    few, many = (Queue(count, graphs=graphs).work() for count in (FEW, MANY))
    assert few <= MORE * many and many <= MORE * few


def test_a_step_in_which_nothing_has_come_asks_for_no_order():
    few, many = Queue(FEW), Queue(MANY)
    for queue in (few, many):
        queue.now = 0.5
    assert instructions(few.step) == instructions(many.step) < 150


def test_where_pools_take_turns_the_places_behind_those_that_are_shared_out_cost_next_to_nothing():
    """The list of all that wait is written anew there, which takes a few instructions for each."""
    few, many = (Queue(count, tenants=2).work() for count in (1_000, 3_000))
    assert many - few < 10 * 2_000
