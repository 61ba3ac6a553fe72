"""Agents: functions of SGLang's language whose every run has an identity of its own."""

from __future__ import annotations

import copy
import functools
import threading
from collections.abc import Callable, Mapping, Sequence
from contextvars import copy_context
from dataclasses import dataclass
from typing import Any

from tokencake_sglang.core.graph import check_objective
from tokencake_sglang.frontend import derive as dry
from tokencake_sglang.frontend.batch import Batch
from tokencake_sglang.frontend.identity import AgentContext, Variables, check_id, current_agent, current_app, speaking
from tokencake_sglang.frontend.sglang_backend import SglFunction, StopTracing, TracerProgramState
from tokencake_sglang.frontend.tool import TRACING, TracedToolCall
from tokencake_sglang.frontend.unknown import Unknown, UnknownText


@dataclass(frozen=True)
class Launch:
    """Where an agent was started. SGLang may run it on a thread that inherits nothing of the caller's context."""

    app_id: str | None
    parent: AgentContext | None
    variables: Variables
    thread: int
    batch: Batch

    @classmethod
    def here(cls, batch: Batch) -> Launch:
        return cls(current_app(), current_agent(), copy_context(), threading.get_ident(), batch)


class AgentFunction(SglFunction):
    """An `sgl.function` whose every run is an agent of its own; made by `@agent`, used like an SglFunction."""

    def __init__(
        self,
        func: Callable[..., Any],
        *,
        type: str | None = None,
        name: str | None = None,
        role: str = "",
        objective: str = "latency",
        **kwargs: Any,
    ):
        super().__init__(func, **kwargs)
        functools.update_wrapper(self, func)
        self.program = func
        self.agent_type = check_id("agent type", type or func.__name__)
        self.node_id = check_id("agent name", name or func.__name__)
        self.role = role
        self.objective = check_objective(f"agent {self.node_id!r}", objective)
        self.func = functools.partial(self._run_as_agent, None)

    @property
    def node_fields(self) -> dict[str, str]:
        """What nodes of a graph say of their agent."""
        return {"agent": self.node_id, "agent_type": self.agent_type, "role": self.role, "objective": self.objective}

    def bind(self, **kwargs: Any) -> AgentFunction:
        """The same agent with some of its arguments fixed."""
        unknown = sorted(set(kwargs) - set(self.arg_names))
        if unknown:
            raise TypeError(f"bind: found {unknown}; the arguments of {self.node_id!r} are {self.arg_names}")
        bound = copy.copy(self)
        bound.bind_arguments = {**self.bind_arguments, **kwargs}
        return bound

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """`SglFunction.run`, as a new agent of the app around the caller. `state.error()` tells an unread ToolError.

        Inside another agent it is a sub-agent, on that one's backend unless another is given.
        """
        flow = dry.current()
        if flow:
            return flow.run_agent(self, args, kwargs)
        return SglFunction.run(self._launched(Batch(self.node_id, 1)), *args, **_on_backend(kwargs))

    async def arun(self, *args: Any, **kwargs: Any) -> Any:
        """`run` on a thread of its own, while the event loop goes on; awaited, the state has done all of its work.

        With `stream=True` the state is there at once, for `state.text_async_iter()`. Cancelling the task stops the
        agent at its next step.
        """
        if dry.current():
            return self.run(*args, **kwargs)
        batch = Batch(self.node_id, 1)
        bound, kwargs = self._launched(batch), _on_backend(kwargs)

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
        bound, kwargs = self._launched(batch), _on_backend(kwargs)
        if generator_style:
            return batch.each(iter(SglFunction.run_batch(bound, batch_kwargs, **kwargs)))
        with batch.interruptible():
            return SglFunction.run_batch(bound, batch_kwargs, **kwargs)

    def map(self, items: Sequence[Any], *, expected: int | None = None, **kwargs: Any) -> list[Any]:
        """One agent for each item, all at the same time; what their functions return, in the order of the items.

        An item is a dict of arguments, or the one argument that is not bound. `kwargs` are those of `run_batch`. Raises
        the first error of an agent, a ToolError that nobody has read too, after all of them have ended. `expected` is
        how many items a dry run takes when it cannot know the list.
        """
        flow = dry.current()
        if flow and isinstance(items, (Unknown, UnknownText)):
            items = flow.expected_items(self.node_id, items, expected)
        rows = [self._arguments(item) for item in items]
        states = self.run_batch(rows, **kwargs) if rows else []
        for state in states:
            if state.error() is not None:
                raise state.error()
        return [state.ret_value for state in states]

    def _arguments(self, item: Any) -> dict[str, Any]:
        if isinstance(item, Mapping):
            return dict(item)
        free = [name for name in self.arg_names if name not in self.bind_arguments]
        if not free:
            raise TypeError(f"map: agent {self.node_id!r} has no argument left for the items; allowed are dicts then")
        return {free[0]: item}

    def cache(self, backend: Any = None) -> Any:
        """`SglFunction.cache`; in a dry run nothing is sent."""
        return None if dry.current() else super().cache(backend)

    def _launched(self, batch: Batch) -> AgentFunction:
        if TRACING.get():
            raise TracedToolCall(
                f"agent {self.node_id!r} was run while the program around it is being traced, which must have no "
                "effects; write `s += call(agent, args)` instead")
        clone = copy.copy(self)
        clone.func = functools.partial(self._run_as_agent, Launch.here(batch))
        return clone

    def _run_as_agent(self, launch: Launch | None, s: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(s, TracerProgramState):
            return self._trace(s, args, kwargs)
        launch = launch or Launch.here(Batch(self.node_id, 1))
        executor = s.stream_executor
        context = AgentContext(self.agent_type, self.node_id, launch.app_id, announces_end=True, parent=launch.parent)
        context.backend = executor.backend
        launch.batch.start(executor, context)

        def work() -> Any:
            with speaking(context):
                return self.program(s, *args, **kwargs)

        try:
            on_thread_of_caller = threading.get_ident() == launch.thread
            value = work() if on_thread_of_caller else launch.variables.copy().run(work)
            launch.batch.ended += 1
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


def agent(
    fn: Callable[..., Any] | None = None,
    *,
    type: str | None = None,
    name: str | None = None,
    role: str = "",
    objective: str = "latency",
) -> Any:
    """Decorator on a function whose first parameter is `s`, with or without arguments.

    `type` (default: the function's name) groups agents of the same kind; `name` (the same default) is the node in
    the application's graph. `role` says what it does there; `objective` is what its model calls are to be served for,
    "latency" or "throughput". Both are for the graph and are not sent with requests.
    """
    options = {"type": type, "name": name, "role": role, "objective": objective}
    return functools.partial(AgentFunction, **options) if fn is None else AgentFunction(fn, **options)


def _on_backend(kwargs: dict[str, Any]) -> dict[str, Any]:
    """A sub-agent runs where its parent does."""
    parent = current_agent()
    if kwargs.get("backend") is None and parent is not None:
        return {**kwargs, "backend": parent.backend}
    return kwargs


def _end_forks(context: AgentContext) -> None:
    """End the forks that the program has left open, so that their threads end and their agents are reported."""
    for executor in list(context.child_executors):
        child = executor.agent_context
        _end_forks(child)
        if not child.ended:
            executor.end()
