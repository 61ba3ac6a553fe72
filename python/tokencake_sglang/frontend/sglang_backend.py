"""Agents, tool calls and the endpoint on SGLang's frontend language: the one file here that imports sglang."""

from __future__ import annotations

import copy
import functools
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from sglang.lang.backend.runtime_endpoint import RuntimeEndpoint
from sglang.lang.interpreter import StreamExecutor
from sglang.lang.ir import SglExpr, SglFunction
from sglang.lang.tracer import TracerProgramState

from tokencake_sglang.frontend.events import EventClient, refused
from tokencake_sglang.frontend.identity import AgentContext, check_id, current_app
from tokencake_sglang.frontend.tool import STAGE_REPORTER, TRACING, Stage, Tool, ToolError

PLAIN_FUNCTION_TYPE = "function"


class AgentFunction(SglFunction):
    """An `sgl.function` whose every run is an agent of its own; made by `@agent`, used like an SglFunction."""

    def __init__(self, func: Callable[..., Any], *, type: str | None = None, name: str | None = None, **kwargs: Any):
        super().__init__(func, **kwargs)
        functools.update_wrapper(self, func)
        self.program = func
        self.agent_type = check_id("agent type", type or func.__name__)
        self.node_id = check_id("agent name", name or func.__name__)
        self.func = functools.partial(self._run_as_agent, None)

    def bind(self, **kwargs: Any) -> AgentFunction:
        """The same agent with some of its arguments fixed."""
        unknown = sorted(set(kwargs) - set(self.arg_names))
        if unknown:
            raise TypeError(f"bind: found {unknown}; the arguments of {self.node_id!r} are {self.arg_names}")
        bound = copy.copy(self)
        bound.bind_arguments = {**self.bind_arguments, **kwargs}
        return bound

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """`SglFunction.run`, as a new agent of the app around the caller. `state.error()` tells an unread ToolError."""
        return SglFunction.run(self._in_current_app(), *args, **kwargs)

    def run_batch(self, batch_kwargs: Any, **kwargs: Any) -> Any:
        """`SglFunction.run_batch`; each item is an agent of its own."""
        return SglFunction.run_batch(self._in_current_app(), batch_kwargs, **kwargs)

    def _in_current_app(self) -> AgentFunction:
        # SGLang runs programs on threads that do not inherit the caller's context, so the app is bound here.
        clone = copy.copy(self)
        clone.func = functools.partial(self._run_as_agent, current_app())
        return clone

    def _run_as_agent(self, app_id: str | None, s: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(s, TracerProgramState):
            token = TRACING.set(True)
            try:
                return self.program(s, *args, **kwargs)
            finally:
                TRACING.reset(token)
        context = AgentContext(self.agent_type, self.node_id, app_id, announces_end=True)
        s.stream_executor.agent_context = context
        try:
            return self.program(s, *args, **kwargs)
        finally:
            _end_forks(context)


def agent(fn: Callable[..., Any] | None = None, *, type: str | None = None, name: str | None = None) -> Any:
    """Decorator on a function whose first parameter is `s`, with or without arguments.

    `type` (default: the function's name) groups agents of the same kind; `name` (the same default) is the node in
    the application's graph.
    """
    if fn is None:
        return functools.partial(agent, type=type, name=name)
    return AgentFunction(fn, type=type, name=name)


class StateView:
    """What the arguments of a call may look at: the state as it is when the call's turn has come."""

    def __init__(self, executor: StreamExecutor):
        self._executor = executor

    def __getitem__(self, name: str) -> Any:
        variables = self._executor.variables
        if name not in variables:
            raise KeyError(f"variable {name!r} has no value yet when the call's turn comes; it has {sorted(variables)}")
        value = variables[name]
        return value.read_on(self._executor) if isinstance(value, ToolError) else value

    def __contains__(self, name: str) -> bool:
        return name in self._executor.variables

    def text(self) -> str:
        """The state's whole text so far."""
        return self._executor.text_

    def messages(self) -> list[dict[str, Any]]:
        """The state's finished chat messages so far."""
        return list(self._executor.messages_)


class Call(SglExpr):
    """A tool call in a program; made by `call`. May be added to several states, and keeps none of their data."""

    def __init__(self, tool: Tool, args: Any, name: str):
        super().__init__()
        self.tool = tool
        self.args = args
        self.name = name
        self.defines_vars = (name,)

    def execute_on(self, executor: StreamExecutor) -> None:
        """Run the tool on this (the executor's worker) thread and bind its result, or its ToolError, to `name`."""
        try:
            args = self.args(StateView(executor)) if callable(self.args) else self.args
            with _stall(executor, self.tool):
                value = self.tool.run(dict(args))
        except BaseException as cause:  # even a tool's sys.exit() must not leave the program waiting
            value = ToolError(self.tool.name, cause)
            executor.error_ = executor.error_ or value
        executor.variables[self.name] = value
        executor.variable_event[self.name].set()
        if executor.stream_var_event:
            executor.stream_var_event[self.name].set()

    def __repr__(self) -> str:
        return f"Call({self.tool.name}, name={self.name!r})"


def call(tool: Tool | Callable[..., Any], args: Any = None, name: str = "result") -> Call:
    """An expression that runs a tool when its turn comes: `s += call(search, {"query": "kv cache"}, name="hits")`.

    `args` are the tool's keyword arguments: a dict, or a function that makes one from a `StateView` when the turn of
    the call comes, `lambda s: {"query": s["query"]}`. The result is read as `s[name]`, which waits for it and raises
    ToolError if the tool (or `args`) raised. Nothing is added to the text. While a program is only traced the tool
    does not run.
    """
    args = {} if args is None else args
    if not (isinstance(args, (Mapping, SglExpr)) or callable(args)):
        raise TypeError(
            f"call: args found {type(args).__name__}; allowed are a dict of keyword arguments, "
            "or a function of the state that returns one"
        )
    if not isinstance(name, str) or not name:
        raise TypeError(f"call: name found {name!r}; allowed is the name of the variable to bind, a non-empty string")
    return Call(tool if isinstance(tool, Tool) else Tool(tool), args, name)


class Endpoint(RuntimeEndpoint):
    """An SGLang server as the backend of agents.

    Every request of a state carries that state's identity as the JSON object `tokencake`. Programs that are plain
    `sgl.function`s run unchanged, each run and each fork as an agent of type "function". A server without TokenCake
    is noticed at the first event; from then on it gets stock requests and no events.
    """

    def __init__(self, base_url: str, app_id: str | None = None, api_key: str | None = None, **kwargs: Any):
        """`kwargs` are those of RuntimeEndpoint (verify, chat_template_name). `app_id` is for runs outside `app()`."""
        base_url = base_url.rstrip("/")
        super().__init__(base_url, api_key=api_key, **kwargs)
        self.support_concate_and_append = False  # its route is gone from the server; join() then joins the texts
        self.app_id = None if app_id is None else check_id("app_id", app_id)
        self.events = EventClient(base_url, api_key, self.verify)

    # Events. Each returns the server's answer, or None if it gave none; none of them raises.

    def stall_started(
        self,
        agent_id: str,
        kind: str = "tool",
        estimated_duration_s: float | None = None,
        call_id: str | None = None,
        stages: Sequence[Stage] = (),
    ) -> dict[str, Any] | None:
        """Report that the agent now waits for something outside the model, for about so many seconds, in these
        stages."""
        return self.events.send(
            {
                "event": "stall_started",
                "agent_id": agent_id,
                "kind": kind,
                "estimated_duration_s": estimated_duration_s,
                "call_id": call_id,
                "stages": [{"name": stage.name, "estimated_s": float(stage.seconds)} for stage in stages] or None,
            }
        )

    def stage_finished(self, agent_id: str, stage: str, call_id: str | None = None) -> dict[str, Any] | None:
        """Report that a stage of an open call is over."""
        return self.events.send(
            {"event": "stage_finished", "agent_id": agent_id, "call_id": call_id, "stage": stage}
        )

    def stall_finished(self, agent_id: str, call_id: str | None = None, outcome: str = "ok") -> dict[str, Any] | None:
        """Report that the wait is over; `outcome` is ok, error or cancelled."""
        return self.events.send(
            {"event": "stall_finished", "agent_id": agent_id, "call_id": call_id, "outcome": outcome}
        )

    def agent_finished(self, agent_id: str) -> dict[str, Any] | None:
        """Report that the agent has ended: the server then keeps nothing for it."""
        return self.events.send({"event": "agent_finished", "agent_id": agent_id})

    def state(self, agents: int | None = None) -> dict[str, Any] | None:
        """The server's TokenCake state, or None from a server without TokenCake."""
        return self.events.state(agents)

    # What SGLang's interpreter calls.

    def context_of(self, executor: StreamExecutor) -> AgentContext:
        """The agent behind a state; a plain function's state becomes one at its first request."""
        # The program's thread and the worker may both be first; setdefault lets only one of them win.
        if "agent_context" not in executor.__dict__:
            executor.__dict__.setdefault("agent_context", AgentContext(PLAIN_FUNCTION_TYPE, app_id=current_app()))
        return executor.agent_context

    def _add_images(self, s: StreamExecutor, data: dict[str, Any]) -> None:
        # Every request that RuntimeEndpoint makes for a state passes here before it is sent.
        super()._add_images(s, data)
        if not self.events.is_off:
            data["tokencake"] = self.context_of(s).identity(self.app_id)

    def fork_program(self, src: StreamExecutor, dst: list[StreamExecutor], position_ids_offset: Any = None) -> None:
        context = self.context_of(src)
        for executor in dst:
            executor.agent_context = context.fork()
            context.child_executors.add(executor)

    def end_program(self, s: StreamExecutor) -> None:
        context = getattr(s, "agent_context", None)
        if context is not None:
            context.ended = True
        if not s.use_thread:
            self.finish_program(s)

    def finish_program(self, s: StreamExecutor) -> None:
        context = getattr(s, "agent_context", None)
        if context is not None and context.announces_end:
            context.announces_end = False
            self.agent_finished(context.agent_id)


@contextmanager
def _stall(executor: StreamExecutor, tool: Tool) -> Iterator[None]:
    """Report a stall of the executor's agent around the body, and its stages within. What it raises passes through."""
    endpoint = executor.backend
    if not isinstance(endpoint, Endpoint):
        yield
        return
    agent_id, call_id = endpoint.context_of(executor).agent_id, uuid.uuid4().hex
    answer = endpoint.stall_started(agent_id, tool.kind, tool.predict_time, call_id, tool.stages)
    # An unanswered start may have been applied, so its end is sent; a refused one was not.
    known = not refused(answer)
    token = STAGE_REPORTER.set((lambda stage: endpoint.stage_finished(agent_id, stage, call_id)) if known else None)
    outcome = "error"
    try:
        yield
        outcome = "ok"
    finally:
        STAGE_REPORTER.reset(token)
        if known:
            endpoint.stall_finished(agent_id, call_id, outcome)


def _end_forks(context: AgentContext) -> None:
    """End the forks that the program has left open, so that their threads end and their agents are reported."""
    for executor in list(context.child_executors):
        child = executor.agent_context
        _end_forks(child)
        if not child.ended:
            executor.end()
