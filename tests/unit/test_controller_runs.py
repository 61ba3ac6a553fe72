"""What the controller's events do to runs of graphs, and what a policy sees of them."""

from __future__ import annotations

import pytest

from tests.support.mechanism import MemoryMechanism
from tokencake_sglang.core.config import TokenCakeConfig
from tokencake_sglang.core.controller import Controller
from tokencake_sglang.core.plan import Decision
from tokencake_sglang.core.types import AgentIdentity, AgentView

#  plan 2.5 s -> search 4 s -> write 5 s;  plan -> log, which nobody waits for;  plan -> fetch 1 s
PLAN = {
    "nodes": [
        {"name": "plan", "tokens": 100}, {"name": "search", "kind": "tool", "tool_kind": "web", "seconds": 4},
        {"name": "fetch", "kind": "tool", "tool_kind": "fetch", "seconds": 1},
        {"name": "write", "tokens": 200}, {"name": "log", "tokens": 900, "objective": "throughput"}],
    "edges": [["plan", "search"], ["search", "write"], ["plan", "log"], ["plan", "fetch"]]}


class Looking:
    """A policy that keeps what it was shown."""

    reads_waiting = False

    def __init__(self) -> None:
        self.seen: dict[str, AgentView] = {}

    def decide(self, now, agent, pool) -> Decision:
        self.seen[agent.key] = agent
        return Decision(None, "only looking")


@pytest.fixture()
def controller() -> Controller:
    made = Controller(TokenCakeConfig(forecast="paper"), MemoryMechanism(), Looking())
    made.graph = made.runs.graphs.post(PLAN)[1]["graph_id"]
    return made


def send(controller: Controller, agent: str, node: str, rid: str) -> None:
    controller.mechanism.live.add(rid)
    controller.request_added(
        AgentIdentity(app_id="p", graph_id=controller.graph, node_id=node, agent_id=agent), rid)


def end(controller: Controller, agent: str, rid: str, tokens: int = 100) -> None:
    controller.mechanism.live.discard(rid)
    controller.runs.request_ended(controller.now, rid, tokens)
    controller.request_ended(agent, rid)


def tell(controller: Controller, event: str, agent: str = "a", **fields) -> None:
    fields = {"stall_started": {"kind": "web"}, "stall_finished": {"outcome": "ok"}}.get(event, {}) | fields
    assert controller.event({"event": event, "agent_id": agent, **fields}).status == 200


def running(controller: Controller) -> list[str]:
    (run,) = controller.runs.reports(controller.now, 9)
    return run["nodes_running"]


def test_requests_and_tools_move_the_run_on(controller):
    send(controller, "a", "plan", "r1")
    assert running(controller) == ["plan"] and controller.runs.place("r1").path_s == pytest.approx(2.5 + 4 + 5)
    end(controller, "a", "r1")
    tell(controller, "stall_started", call_id="1")
    assert running(controller) == ["search"]
    tell(controller, "stall_started", call_id="2", kind="fetch")
    tell(controller, "stall_finished", call_id="1")
    assert running(controller) == ["search", "fetch"]
    tell(controller, "stall_finished", call_id="2")
    assert running(controller) == []
    send(controller, "a", "write", "r2")
    assert running(controller) == ["write"]
    tell(controller, "agent_finished")
    assert controller.runs.place("r2") is None


def test_the_policy_sees_how_important_an_agent_is_and_whether_little_is_left_after_it(controller):
    send(controller, "a", "plan", "r1")
    end(controller, "a", "r1")
    tell(controller, "stall_started", call_id="1")
    send(controller, "b", "log", "r2")
    send(controller, "c", "write", "r3")
    controller.request_added(AgentIdentity(agent_id="d"), "r4")
    controller.step()
    seen = {key: (round(view.importance, 6), view.near_completion) for key, view in controller.policy.seen.items()}
    # From the search 4 + 5 s are left, from `write` 5; for the 22.5 s of `log` nobody waits.
    assert seen == {"a": (10.0, False), "b": (0.0, True), "c": (round(10 * 5 / 9, 6), True), "d": (0.0, False)}


def test_a_request_that_vanished_is_no_longer_under_way(controller):
    send(controller, "a", "plan", "r1")
    controller.mechanism.live.discard("r1")
    controller.step()
    assert running(controller) == [] and controller.runs.place("r1") is None


def test_a_graph_id_that_the_server_does_not_know_is_no_run(controller):
    controller.request_added(AgentIdentity(app_id="p", graph_id="?", node_id="plan", agent_id="a"), "r1")
    assert controller.runs.reports(0.0, 9) == []


def test_the_next_request_of_an_agent_ends_its_tools_in_the_run_too(controller):
    send(controller, "a", "plan", "r1")
    end(controller, "a", "r1")
    tell(controller, "stall_started", call_id="1")
    send(controller, "a", "write", "r2")
    assert running(controller) == ["write"]


def test_a_request_that_ends_only_some_calls_leaves_the_tools_running(controller):
    send(controller, "a", "plan", "r1")
    end(controller, "a", "r1")
    tell(controller, "stall_started", call_id="1")
    tell(controller, "stall_started", call_id="2", kind="fetch")
    controller.request_added(
        AgentIdentity(app_id="p", graph_id=controller.graph, node_id="log", agent_id="a"), "r2", {"1"})
    assert running(controller) == ["search", "fetch", "log"]


def test_a_tool_that_was_inferred_gives_way_to_the_one_that_the_client_tells(controller):
    send(controller, "a", "plan", "r1")
    end(controller, "a", "r1")
    tell(controller, "stall_started", call_id="1", inferred=True)
    assert running(controller) == ["search"]
    tell(controller, "stall_started", call_id="2", kind="fetch")
    assert running(controller) == ["fetch"]


def test_an_agent_that_works_for_another_is_of_its_run(controller):
    send(controller, "a", "plan", "r1")
    controller.request_added(AgentIdentity(
        graph_id=controller.graph, node_id="write", agent_id="b", parent_agent_id="a"), "r2")
    assert running(controller) == ["plan", "write"]


def test_a_request_that_only_prepares_the_next_prompt_is_no_step_of_the_run(controller):
    send(controller, "a", "plan", "r1")
    end(controller, "a", "r1")
    tell(controller, "stall_started", call_id="1")
    controller.request_added(AgentIdentity(
        app_id="p", graph_id=controller.graph, node_id="write", agent_id="a", purpose="prefill"), "r2")
    assert running(controller) == ["search"] and controller.runs.place("r2") is None
