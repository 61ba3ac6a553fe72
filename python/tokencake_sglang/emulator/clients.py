"""The clients of an emulated run: they send the calls of programs, wait for tools, and tell the server about stalls.

Everything that a real client would do is done here at virtual times; nothing here knows the server's inside.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from tokencake_sglang.core.graph import AgentGraph
from tokencake_sglang.core.types import TENANT
from tokencake_sglang.emulator.clock import SECOND, START_NS, VirtualClock
from tokencake_sglang.emulator.program import Call, Program, Text, ToolCall, Workload
from tokencake_sglang.emulator.spec import Configuration
from tokencake_sglang.emulator.tokens import OutputPlan, text_tokens


@dataclass
class CallRun:
    """One call as it goes. Times are virtual nanoseconds, None until they are known."""

    call: Call
    program: ProgramRun
    prompt: array = field(default_factory=lambda: array("q"))
    output: array = field(default_factory=lambda: array("q"))
    ready_ns: int | None = None  # all calls before it had ended
    submitted_ns: int | None = None
    finished_ns: int | None = None  # the answer was complete
    ended_ns: int | None = None  # its tool, too
    answer: Answer | None = None
    uploaded_tokens: int = 0  # of its KV, brought back by an upload before it was scheduled

    @property
    def rid(self) -> str:
        return f"{self.program.program.app_id}/{self.call.name}"

    @property
    def agent_id(self) -> str:
        return f"{self.program.program.app_id}:{self.call.agent}"


@dataclass
class ProgramRun:
    program: Program
    order: int
    graph_id: str | None = None  # of the graph that the server knows it follows
    arrived_ns: int | None = None
    ended_ns: int | None = None
    calls: dict[str, CallRun] = field(default_factory=dict)
    children: dict[str, list[CallRun]] = field(default_factory=dict)
    open_calls: int = 0
    known_agents: dict[str, None] = field(default_factory=dict)
    waiting_agents: dict[str, CallRun] = field(default_factory=dict)  # for other agents, since this call


@dataclass(frozen=True)
class Answer:
    """What the server said with the last token of a request."""

    output: array
    prompt_tokens: int
    cached_tokens: int
    cached_device_tokens: int
    cached_host_tokens: int
    retractions: int
    finish: str  # "length", "stop" or "abort"


class Server(Protocol):
    """What the clients need of a server."""

    clock: VirtualClock

    def submit(self, rid: str, prompt: array, plan: OutputPlan, max_new_tokens: int, **fields: Any) -> None: ...

    def tell(self, event: dict[str, Any]) -> None: ...

    def add_graph(self, graph: AgentGraph) -> str: ...

    def open_session(self, session_id: str) -> None: ...

    def close_session(self, session_id: str) -> None: ...


class Clients:
    """Runs the programs of a workload against a server. `log(kind, ...)` gets every event of every client."""

    def __init__(self, server: Server, workload: Workload, configuration: Configuration,
                 log: Callable[..., None] = lambda *event: None) -> None:
        self.server, self.clock = server, server.clock
        self.workload, self.configuration, self.log = workload, configuration, log
        self.tells_stalls = configuration.tokencake is not None
        self.uses_sessions = bool(configuration.server_args.get("enable_session_radix_cache"))
        self.runs = [_program_run(program, order) for order, program in enumerate(workload.programs)]
        self.by_rid = {call.rid: call for run in self.runs for call in run.calls.values()}
        self.lanes: dict[int, list[ProgramRun]] = {}
        self.open_programs = len(self.runs)
        self.calls_done = 0
        self.on_submit: Callable[[CallRun], None] = lambda call: None
        self.on_finish: Callable[[CallRun], None] = lambda call: None
        self.on_tool_end: Callable[[CallRun], None] = lambda call: None

    def start(self) -> None:
        """Schedule the arrival of every program; of a lane, the first one."""
        if self.tells_stalls:
            graphs = dict.fromkeys(run.program.graph for run in self.runs if run.program.graph is not None)
            ids = {graph: self.server.add_graph(graph) for graph in graphs}
            for run in self.runs:
                run.graph_id = ids.get(run.program.graph)
        for run in self.runs:
            if run.program.lane is not None:
                self.lanes.setdefault(run.program.lane, []).append(run)
        heads = [lane.pop(0) for lane in self.lanes.values()]
        for run in [run for run in self.runs if run.program.lane is None] + heads:
            self._at(START_NS + _ns(run.program.arrival_s), lambda run=run: self._arrive(run))

    def is_done(self) -> bool:
        return self.open_programs == 0

    # -- programs -------------------------------------------------------------------------------------------

    def _at(self, time_ns: int, event: Callable[[], None]) -> None:
        if time_ns <= self.clock.now_ns:
            event()
        else:
            self.clock.at(time_ns, event)

    def _arrive(self, run: ProgramRun) -> None:
        run.arrived_ns = self.clock.now_ns
        self.log("arrive", run.program.app_id)
        if not run.calls:
            self._end_program(run)
        for call in run.calls.values():
            if not call.call.after:
                self._ready(call)

    def _ready(self, call: CallRun) -> None:
        call.ready_ns = self.clock.now_ns
        waited_since = call.program.waiting_agents.pop(call.agent_id, None)
        if waited_since is not None:
            self._tool_returned(waited_since)
        self._at(self.clock.now_ns + _ns(call.call.delay_s), lambda: self._submit(call))

    def _end_program(self, run: ProgramRun) -> None:
        run.ended_ns = self.clock.now_ns
        self.open_programs -= 1
        self.log("end", run.program.app_id)
        for agent in list(run.known_agents):
            self._end_agent(run, agent)
        lane = self.lanes.get(run.program.lane) if run.program.lane is not None else None
        if lane:
            following = lane.pop(0)
            self._at(self.clock.now_ns + _ns(following.program.arrival_s), lambda: self._arrive(following))

    # -- calls ----------------------------------------------------------------------------------------------

    def _submit(self, call: CallRun) -> None:
        spec = call.call
        call.prompt = prompt_of(spec, {name: earlier.output for name, earlier in call.program.calls.items()})
        call.submitted_ns = self.clock.now_ns
        self.log("submit", call.rid, len(call.prompt))
        fields: dict[str, Any] = {}
        run = call.program
        if spec.agent:
            fields.update(self._agent_fields(run, call))
        if self.tells_stalls and run.program.tenant:
            fields.setdefault("agent_metadata", {})[TENANT] = run.program.tenant
        if self.configuration.routing_key:
            fields["routing_key"] = run.program.app_id
        if self.configuration.priority == "program_age":
            fields["priority"] = -run.order
        wanted = spec.max_new_tokens or spec.output_tokens
        self.server.submit(call.rid, call.prompt, plan_of(call), wanted, **fields)
        self.on_submit(call)

    def _agent_fields(self, run: ProgramRun, call: CallRun) -> dict[str, Any]:
        fields: dict[str, Any] = {}
        if self.uses_sessions:
            if call.agent_id not in run.known_agents:
                self.server.open_session(call.agent_id)
            fields["session_id"] = call.agent_id
        run.known_agents[call.agent_id] = None
        if self.tells_stalls:
            fields["agent_metadata"] = {
                "app_id": run.program.app_id, "agent_id": call.agent_id, "agent_type": call.call.agent_type,
                "node_id": call.call.name}
            if run.graph_id is not None:
                fields["agent_metadata"]["graph_id"] = run.graph_id
        return fields

    def answered(self, rid: str, answer: Answer) -> None:
        """The server finished (or refused) request `rid`."""
        call = self.by_rid[rid]
        call.answer, call.output, call.finished_ns = answer, answer.output, self.clock.now_ns
        self.calls_done += 1
        self.log("finish", rid, answer.prompt_tokens, len(answer.output), answer.cached_device_tokens,
                 answer.cached_host_tokens, answer.retractions, answer.finish)
        self.on_finish(call)
        tool = call.call.tool
        if tool is None:
            self._end_call(call)
            return
        self._tell(call, {"event": "stall_started", "kind": tool.kind, "call_id": call.call.name, **_estimate(tool)})
        if tool.until_next:
            call.program.waiting_agents[call.agent_id] = call
            self._end_call(call)
        else:
            self._at(self.clock.now_ns + _ns(tool.duration_s), lambda: self._tool_ended(call))

    def _tool_ended(self, call: CallRun) -> None:
        self._tool_returned(call)
        self._end_call(call)

    def _tool_returned(self, call: CallRun) -> None:
        self.log("tool", call.rid)
        self.on_tool_end(call)
        self._tell(call, {"event": "stall_finished", "call_id": call.call.name})

    def _end_call(self, call: CallRun) -> None:
        call.ended_ns = self.clock.now_ns
        run = call.program
        run.open_calls -= 1
        if call.call.last_of_agent:
            self._end_agent(run, call.agent_id)
        for child in run.children.get(call.call.name, ()):
            if all(run.calls[name].ended_ns is not None for name in child.call.after):
                self._ready(child)
        if run.open_calls == 0:
            self._end_program(run)

    # -- what the server is told ----------------------------------------------------------------------------

    def _tell(self, call: CallRun, event: dict[str, Any]) -> None:
        if self.tells_stalls and call.call.agent:
            self.server.tell({**event, "agent_id": call.agent_id})

    def _end_agent(self, run: ProgramRun, agent_id: str) -> None:
        if agent_id not in run.known_agents:
            return
        del run.known_agents[agent_id]
        if self.tells_stalls:
            self.server.tell({"event": "agent_finished", "agent_id": agent_id})
        if self.uses_sessions:
            self.server.close_session(agent_id)


def plan_of(call: CallRun) -> OutputPlan:
    """What the model will answer to `call`; known before it is sent."""
    spec = call.call
    wanted = spec.max_new_tokens or spec.output_tokens
    return OutputPlan(call.rid, spec.output_tokens, ends_by_eos=wanted > spec.output_tokens)


def prompt_of(call: Call, outputs: Mapping[str, array]) -> array:
    """The prompt's tokens. `outputs`: what the calls of the program have generated, by name."""
    tokens = array("q")
    for part in call.prompt:
        whole = text_tokens(part.key, part.tokens) if isinstance(part, Text) else outputs[part.call]
        tokens.extend(whole if part.tokens is None else whole[:part.tokens])
    return tokens


def _program_run(program: Program, order: int) -> ProgramRun:
    run = ProgramRun(program, order, open_calls=len(program.calls))
    for call in program.calls:
        run.calls[call.name] = CallRun(call, run)
    for call in run.calls.values():
        for parent in call.call.after:
            run.children.setdefault(parent, []).append(call)
    return run


def _estimate(tool: ToolCall) -> dict[str, float]:
    return {} if tool.forecast_s is None else {"estimated_duration_s": tool.forecast_s}


def _ns(seconds: float) -> int:
    return round(seconds * SECOND)
