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
from sglang.lang.ir import SglExpr, SglExprList, SglFunction, SglGen, SglSelect, SglSeparateReasoning
from sglang.lang.ir import SglVarScopeBegin as ScopeBegin
from sglang.lang.tracer import StopTracing, TracerProgramState

from tokencake_sglang.core.errors import GraphError
from tokencake_sglang.frontend import derive as dry
from tokencake_sglang.frontend.batch import Batch
from tokencake_sglang.frontend.events import EventClient, refused
from tokencake_sglang.frontend.identity import AgentContext, check_id, current_app
from tokencake_sglang.frontend.state_view import StateView
from tokencake_sglang.frontend.tool import STAGE_REPORTER, TRACING, Stage, Tool, ToolError
from tokencake_sglang.frontend.unknown import Unknown

PLAIN_FUNCTION_TYPE = "function"


class AgentFunction(SglFunction):
    """An `sgl.function` whose every run is an agent of its own; made by `@agent`, used like an SglFunction."""

    def __init__(self, func: Callable[..., Any], *, type: str | None = None, name: str | None = None, **kwargs: Any):
        super().__init__(func, **kwargs)
        functools.update_wrapper(self, func)
        self.program = func
        self.agent_type = check_id("agent type", type or func.__name__)
        self.node_id = check_id("agent name", name or func.__name__)
        self.func = functools.partial(self._run_as_agent, None, None)

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
        flow = dry.current()
        return flow.run_agent(self, args, kwargs) if flow else SglFunction.run(self._in_current_app(), *args, **kwargs)

    async def arun(self, *args: Any, **kwargs: Any) -> Any:
        """`run` on a thread of its own, while the event loop goes on; awaited, the state has done all of its work.

        With `stream=True` the state is there at once, for `state.text_async_iter()`. Cancelling the task stops the
        agent at its next step.
        """
        if dry.current():
            return self.run(*args, **kwargs)
        batch = Batch(self.node_id, 1)
        bound = self._in_current_app(batch)

        def work() -> Any:
            state = SglFunction.run(bound, *args, **kwargs)
            if not kwargs.get("stream"):
                state.sync()
            return state

        return await batch.on_thread(work)

    def run_batch(self, batch_kwargs: Any, **kwargs: Any) -> Any:
        """`SglFunction.run_batch`; each item is an agent of its own. Ctrl-C raises BatchInterrupted."""
        flow, generator_style = dry.current(), kwargs.get("generator_style", False)
        if flow:
            states = flow.run_agents(self, batch_kwargs, kwargs)
            return iter(states) if generator_style else states
        batch = Batch(self.node_id, len(batch_kwargs))
        bound = self._in_current_app(batch)
        if generator_style:
            return batch.each(iter(SglFunction.run_batch(bound, batch_kwargs, **kwargs)))
        with batch.interruptible():
            return SglFunction.run_batch(bound, batch_kwargs, **kwargs)

    def cache(self, backend: Any = None) -> Any:
        """`SglFunction.cache`; in a dry run nothing is sent."""
        return None if dry.current() else super().cache(backend)

    def _in_current_app(self, batch: Batch | None = None) -> AgentFunction:
        # SGLang runs programs on threads that do not inherit the caller's context, so the app is bound here.
        clone = copy.copy(self)
        clone.func = functools.partial(self._run_as_agent, current_app(), batch)
        return clone

    def _run_as_agent(self, app_id: str | None, batch: Batch | None, s: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(s, TracerProgramState):
            return self._trace(s, args, kwargs)
        context = AgentContext(self.agent_type, self.node_id, app_id, announces_end=True)
        (batch or Batch(self.node_id, 1)).start(s.stream_executor, context)
        try:
            value = self.program(s, *args, **kwargs)
            if batch is not None:
                batch.ended += 1
            return value
        finally:
            _end_forks(context)

    def _trace(self, s: TracerProgramState, args: Any, kwargs: Any) -> Any:
        token = TRACING.set(True)
        try:
            return self.program(s, *args, **kwargs)
        except Exception as error:
            # The trace before a batch has no real arguments: whatever it meets says nothing about the programs.
            if s.only_trace_prefix:
                raise StopTracing() from error
            raise
        finally:
            TRACING.reset(token)


def agent(fn: Callable[..., Any] | None = None, *, type: str | None = None, name: str | None = None) -> Any:
    """Decorator on a function whose first parameter is `s`, with or without arguments.

    `type` (default: the function's name) groups agents of the same kind; `name` (the same default) is the node in
    the application's graph.
    """
    if fn is None:
        return functools.partial(agent, type=type, name=name)
    return AgentFunction(fn, type=type, name=name)


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


class UnknownExpr(Unknown, SglExpr):
    """An unknown value that may also be added to a state, alone or in a sum of expressions."""

    def __init__(self, what: str, steps: tuple[str, ...]):
        super().__init__()
        self.what, self.steps = what, steps


def steps_of(expression: Any) -> Iterator[dry.Step]:
    """What an expression does, in order, for a dry run."""
    if isinstance(expression, SglExprList):
        for part in expression.expr_list:
            yield from steps_of(part)
    elif isinstance(expression, SglGen):
        yield dry.Step("gen", expression.name or "gen", expression.sampling_params.max_new_tokens)
    elif isinstance(expression, SglSelect):
        yield dry.Step("gen", expression.name or "select", 1)  # the choices are scored, one token is chosen by
    elif isinstance(expression, Call):
        yield dry.Step("call", expression.name, tool=expression.tool, uses=expression.args)
    elif isinstance(expression, SglSeparateReasoning):
        yield dry.Step("scope", expression.name)
    elif isinstance(expression, ScopeBegin):
        yield dry.Step("scope", expression.name)
    else:
        yield dry.Step("text", uses=getattr(expression, "value", expression))


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
        if dry.current():
            raise GraphError("derive: a plain sgl.function was run; decorate it with @tc.agent to have it in the graph")
        super()._add_images(s, data)
        if not self.events.is_off:
            data["tokencake"] = self.context_of(s).identity(self.app_id)

    def fork_program(self, src: StreamExecutor, dst: list[StreamExecutor], position_ids_offset: Any = None) -> None:
        context = self.context_of(src)
        if context.stopped is not None:
            for executor in dst:  # nobody else will end them, and their threads keep the process alive
                executor.end()
            raise context.stopped
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
