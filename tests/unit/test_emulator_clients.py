"""The clients of a run, against a server in memory that answers every request a fixed time after it came."""

from __future__ import annotations

from array import array
from typing import Any

from tokencake_sglang.emulator.clients import Answer, Clients
from tokencake_sglang.emulator.clock import SECOND, START_NS, VirtualClock
from tokencake_sglang.emulator.program import Call, Output, Program, Text, ToolCall, Workload
from tokencake_sglang.emulator.spec import Configuration
from tokencake_sglang.emulator.tokens import EOS, OutputPlan, text_tokens

ANSWER_S = 1.0
STOCK = Configuration("stock")
TOKENCAKE = Configuration("tokencake", tokencake={})


class MemoryServer:
    """Keeps what it was sent with the time in seconds, and answers after ANSWER_S with the whole plan."""

    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.sent: list[tuple[Any, ...]] = []
        self.prompts: dict[str, array] = {}
        self.fields: dict[str, dict[str, Any]] = {}
        self.clients: Clients | None = None

    def note(self, *what: Any) -> None:
        self.sent.append((round(self.clock.elapsed_s(), 6), *what))

    def submit(self, rid: str, prompt: array, plan: OutputPlan, max_new_tokens: int, **fields: Any) -> None:
        self.note("submit", rid)
        self.prompts[rid], self.fields[rid] = prompt, {**fields, "max_new_tokens": max_new_tokens}
        answer = Answer(array("q", plan.tokens), len(prompt), 0, 0, 0, 0, "stop")
        self.clock.after(ANSWER_S * SECOND, lambda: self.clients.answered(rid, answer))

    def tell(self, event: dict[str, Any]) -> None:
        self.note("tell", *event.values())

    def open_session(self, session_id: str) -> None:
        self.note("open", session_id)

    def close_session(self, session_id: str) -> None:
        self.note("close", session_id)

    def of(self, *kinds: str) -> list[tuple[Any, ...]]:
        return [entry for entry in self.sent if entry[1] in kinds]

    def times(self) -> dict[str, float]:
        """When each request was submitted."""
        return {rid: time for time, kind, rid in self.of("submit")}


def call(name: str, after: tuple[str, ...] = (), agent: str = "a", **fields: Any) -> Call:
    prompt = fields.pop("prompt", (Text(f"text of {name}", 10),))
    return Call(name, agent, "worker", prompt, fields.pop("output_tokens", 4), after, **fields)


def play(*programs: Program, configuration: Configuration = STOCK) -> tuple[MemoryServer, Clients, list[Any]]:
    """Run to the end of time."""
    server, log = MemoryServer(), []
    server.clients = clients = Clients(server, Workload("w", programs), configuration, lambda *event: log.append(event))
    clients.start()
    while server.clock.next_wake_ns() is not None:
        server.clock.advance_to(server.clock.next_wake_ns())
    assert clients.is_done()
    return server, clients, log


# -- when calls are sent ----------------------------------------------------------------------------------------


def test_programs_arrive_at_their_times_and_a_call_follows_its_parent():
    chain = (call("x"), call("y", ("x",)))
    server, clients, log = play(Program("p", chain, 0.5), Program("q", chain, 2.0))
    assert server.times() == {"p/x": 0.5, "p/y": 1.5, "q/x": 2.0, "q/y": 3.0}
    assert [run.ended_ns for run in clients.runs] == [START_NS + int(t * SECOND) for t in (2.5, 4.0)]
    assert [event[0] for event in log if event[1].startswith("p")] == [
        "arrive", "submit", "finish", "submit", "finish", "end"]


def test_a_join_waits_for_the_last_parent_and_for_its_tool():
    calls = (call("x"), call("y", agent="b", tool=ToolCall("search", 2.0)), call("z", ("x", "y")))
    server, clients, _ = play(Program("p", calls))
    assert server.times() == {"p/x": 0.0, "p/y": 0.0, "p/z": 3.0}
    done = clients.by_rid["p/y"]
    assert (done.finished_ns, done.ended_ns) == (START_NS + SECOND, START_NS + 3 * SECOND)
    assert clients.by_rid["p/z"].ready_ns == START_NS + 3 * SECOND


def test_a_delay_comes_between_the_parents_end_and_the_call():
    server, clients, _ = play(Program("p", (call("x", delay_s=0.25), call("y", ("x",), delay_s=0.5))))
    assert server.times() == {"p/x": 0.25, "p/y": 1.75}
    assert clients.by_rid["p/y"].ready_ns == START_NS + int(1.25 * SECOND)


def test_programs_of_a_lane_follow_one_another_with_their_pauses():
    lanes = [("p", 1.0, 0), ("q", 0.5, 0), ("r", 0.0, 1), ("s", 0.0, 1), ("t", 2.0, 0)]
    server, _, _ = play(*(Program(name, (call("x"),), pause, lane=lane) for name, pause, lane in lanes))
    assert server.times() == {"p/x": 1.0, "q/x": 2.5, "r/x": 0.0, "s/x": 1.0, "t/x": 5.5}


def test_a_program_without_calls_ends_when_it_arrives_and_its_lane_goes_on():
    server, clients, _ = play(Program("p", (), 1.0, lane=0), Program("q", (call("x"),), lane=0))
    assert clients.runs[0].ended_ns == START_NS + SECOND and server.times() == {"q/x": 1.0}


# -- what they hold ---------------------------------------------------------------------------------------------


def test_a_prompt_is_the_chain_of_its_texts_and_of_what_was_generated():
    prompt = (Text("system", 5), Output("x"), Text("result", 3), Output("x", 2))
    server, clients, _ = play(Program("p", (call("x"), call("y", ("x",), prompt=prompt))))
    output = clients.by_rid["p/x"].output
    assert len(output) == 4
    assert server.prompts["p/y"] == text_tokens("system", 5) + output + text_tokens("result", 3) + output[:2]


def test_an_output_ends_by_length_or_by_eos_where_the_client_asks_for_more():
    server, clients, _ = play(Program("p", (call("x"), call("y", max_new_tokens=64))))
    assert server.fields["p/x"]["max_new_tokens"] == 4 and server.fields["p/y"]["max_new_tokens"] == 64
    assert EOS not in clients.by_rid["p/x"].output and clients.by_rid["p/y"].output[-1] == EOS
    assert len(clients.by_rid["p/y"].output) == 4


# -- what the server is told ------------------------------------------------------------------------------------

AGENTS = Program("p", (
    call("x", tool=ToolCall("search", 2.0, 1.5)), call("y", ("x",), last_of_agent=True),
    call("z", ("y",), agent="b", tool=ToolCall("test", 1.0))))


def test_a_client_of_tokencake_tells_of_stalls_with_its_forecast_and_of_the_end_of_agents():
    server, _, _ = play(AGENTS, configuration=TOKENCAKE)
    assert server.of("tell") == [
        (1.0, "tell", "stall_started", "search", "x", 1.5, "p:a"), (3.0, "tell", "stall_finished", "x", "p:a"),
        (4.0, "tell", "agent_finished", "p:a"),
        (5.0, "tell", "stall_started", "test", "z", "p:b"), (6.0, "tell", "stall_finished", "z", "p:b"),
        (6.0, "tell", "agent_finished", "p:b")]
    assert server.fields["p/z"]["agent_metadata"] == {
        "app_id": "p", "agent_id": "p:b", "agent_type": "worker", "node_id": "z"}


def test_a_client_of_stock_sends_requests_and_nothing_else():
    server, _, _ = play(AGENTS)
    assert {entry[1] for entry in server.sent} == {"submit"}
    assert server.fields["p/x"] == {"max_new_tokens": 4}


def test_a_tenant_is_told_with_every_request_and_to_a_server_with_tokencake_only():
    program = Program("p", (call("x"), call("y", agent="")), tenant="blue")
    server, _, _ = play(program, configuration=TOKENCAKE)
    assert server.fields["p/x"]["agent_metadata"]["tenant"] == "blue"
    assert server.fields["p/y"]["agent_metadata"] == {"tenant": "blue"}
    stock, _, _ = play(program)
    assert stock.fields["p/x"] == {"max_new_tokens": 4}


def test_an_agent_that_ended_and_one_that_its_program_ends_are_told_once():
    program = Program("p", (call("x", last_of_agent=True), call("y", agent="b")))
    server, _, _ = play(program, configuration=TOKENCAKE)
    assert [entry[-1] for entry in server.of("tell")] == ["p:a", "p:b"]


def test_a_call_without_an_agent_is_nobodys():
    program = Program("p", (call("x", agent="", tool=ToolCall("search", 1.0)),))
    server, _, _ = play(program, configuration=TOKENCAKE)
    assert server.of("tell") == [] and "agent_metadata" not in server.fields["p/x"]


def test_sessions_are_opened_before_the_first_call_of_an_agent_and_closed_at_its_end():
    configuration = Configuration("sessions", server_args={"enable_session_radix_cache": True})
    server, _, _ = play(AGENTS, configuration=configuration)
    assert server.sent == [
        (0.0, "open", "p:a"), (0.0, "submit", "p/x"), (3.0, "submit", "p/y"), (4.0, "close", "p:a"),
        (4.0, "open", "p:b"), (4.0, "submit", "p/z"), (6.0, "close", "p:b")]
    assert server.fields["p/y"]["session_id"] == "p:a"


def test_priorities_fall_with_the_order_of_arrival_and_routing_keys_name_the_program():
    programs = [Program(name, (call("x"),), arrival) for name, arrival in (("p", 0.0), ("q", 1.0))]
    server, _, _ = play(*programs, configuration=Configuration("aged", priority="program_age", routing_key=True))
    assert server.fields["p/x"]["priority"] > server.fields["q/x"]["priority"]
    assert [server.fields[f"{name}/x"]["routing_key"] for name in "pq"] == ["p", "q"]


def test_an_agent_that_waits_for_other_agents_is_stalled_until_its_next_call_is_due():
    calls = (call("x", tool=ToolCall("subagents", 99.0, 3.0, until_next=True)),
             call("y", ("x",), agent="b", tool=ToolCall("test", 1.0)), call("z", ("y",)))
    server, clients, _ = play(Program("p", calls), configuration=TOKENCAKE)
    assert server.times() == {"p/x": 0.0, "p/y": 1.0, "p/z": 3.0}
    assert [entry for entry in server.of("tell") if entry[-1] == "p:a"] == [
        (1.0, "tell", "stall_started", "subagents", "x", 3.0, "p:a"), (3.0, "tell", "stall_finished", "x", "p:a"),
        (4.0, "tell", "agent_finished", "p:a")]
    assert clients.calls_done == 3
