"""Tool calls, and the late use of their results, as expressions of SGLang's language."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from tokencake_sglang.frontend import derive as dry
from tokencake_sglang.frontend.endpoint import Endpoint
from tokencake_sglang.frontend.events import refused
from tokencake_sglang.frontend.prefill import Prefill, check_prefill
from tokencake_sglang.frontend.sglang_backend import (
    SglConstantText,
    SglExpr,
    SglExprList,
    SglGen,
    SglRoleBegin,
    SglRoleEnd,
    SglSelect,
    SglSeparateReasoning,
    SglVarScopeBegin,
    StreamExecutor,
)
from tokencake_sglang.frontend.state_view import StateView
from tokencake_sglang.frontend.tool import STAGE_REPORTER, Tool, ToolError, ToolTimeout
from tokencake_sglang.frontend.unknown import Unknown


class Call(SglExpr):
    """A tool call in a program; made by `call`. May be added to several states, and keeps none of their data."""

    def __init__(self, tool: Tool, args: Any, name: str, prefill: bool | str | None = None):
        super().__init__()
        self.tool = tool
        self.args = args
        self.name = name
        self.prefill = prefill
        self.defines_vars = (name,)

    def execute_on(self, executor: StreamExecutor) -> None:
        """Run the tool on this (the executor's worker) thread and bind its result, or its ToolError, to `name`.

        The tool sees the contextvars of the program that calls it.
        """
        prefill = self._prefill_on(executor)
        context = getattr(executor, "agent_context", None)
        variables = context.variables if context is not None else None
        begin, outcome = time.monotonic(), "error"
        try:
            value, outcome = self._work(executor) if variables is None else variables.copy().run(self._work, executor)
        except BaseException as cause:  # even a tool's sys.exit() must not leave the program waiting
            outcome = _outcome_of(cause)
            value = ToolError(self.tool.name, cause)
            executor.error_ = executor.error_ or value
        seconds = time.monotonic() - begin
        executor.meta_info[self.name] = {"tool": self.tool.name, "outcome": outcome, "seconds": seconds}
        executor.variables[self.name] = value
        executor.variable_event[self.name].set()
        if executor.stream_var_event:
            executor.stream_var_event[self.name].set()
        if prefill is not None:
            prefill.finish()

    def _work(self, executor: StreamExecutor) -> tuple[Any, str]:
        """The tool's result, and what the server is told of it: ok, error or cancelled."""
        args = self.args(StateView(executor)) if callable(self.args) else self.args
        with _stall(executor, self.tool) as report:
            value = self.tool.run(dict(args))
            report.outcome = self.tool.outcome_of(value)
        return value, report.outcome

    def _prefill_on(self, executor: StreamExecutor) -> Prefill | None:
        endpoint = executor.backend
        if not isinstance(endpoint, Endpoint) or not executor.use_thread:
            return None
        wanted = endpoint.prefill if self.prefill is None else self.prefill
        return Prefill(executor, endpoint, wanted, _known_part).start() if wanted else None

    def __repr__(self) -> str:
        return f"Call({self.tool.name}, name={self.name!r})"


def call(tool: Any, args: Any = None, name: str = "result", prefill: bool | str | None = None) -> Call:
    """An expression that runs a tool when its turn comes: `s += call(search, {"query": "kv cache"}, name="hits")`.

    `tool` is a Tool, a function, or an agent, which then runs as a sub-agent and gives what its function returns.
    `args` are the tool's keyword arguments: a dict, or a function that makes one from a `StateView` when the turn of
    the call comes, `lambda s: {"query": s["query"]}`. The result is read as `s[name]`, which waits for it and raises
    ToolError if the tool (or `args`) raised. Nothing is added to the text. While a program is only traced the tool
    does not run. `prefill`: whether what is known of the next prompt is sent while the tool runs; True: what the
    program has added behind the call; a text: that text; None: as the endpoint says.
    """
    args = {} if args is None else args
    if not (isinstance(args, (Mapping, SglExpr)) or callable(args)):
        raise TypeError(
            f"call: args found {type(args).__name__}; allowed are a dict of keyword arguments, "
            "or a function of the state that returns one"
        )
    if not isinstance(name, str) or not name:
        raise TypeError(f"call: name found {name!r}; allowed is the name of the variable to bind, a non-empty string")
    check_prefill("call", prefill)
    if hasattr(tool, "program"):
        tool = SubAgent(tool)
    return Call(tool if isinstance(tool, Tool) else Tool(tool), args, name, prefill)


class SubAgent(Tool):
    """An agent as a tool of another: a stall of its caller, of a kind named after its type."""

    def __init__(self, agent: Any):
        super().__init__(agent.program, name=agent.node_id, kind=agent.agent_type)
        self.agent = agent

    def run(self, arguments: dict[str, Any]) -> Any:
        """Run the agent to its end. Raises its error, also a ToolError that its program has not read."""
        state = self.agent.run(**arguments)
        if state.error() is not None:
            raise state.error()
        return state.ret_value


class Value(SglExpr):
    """The text of a variable of the same state, when its turn comes; made by `value`."""

    def __init__(self, name: str):
        super().__init__()
        self.name = name

    def execute_on(self, executor: StreamExecutor) -> None:
        """Append the text. A failed tool's ToolError ends the state's work, and whoever reads from it gets that."""
        executor._execute_fill(str(StateView(executor)[self.name]))

    def __repr__(self) -> str:
        return f"Value({self.name!r})"


def value(name: str) -> Value:
    """An expression that appends the text of the variable `name`: the program goes on without waiting for it."""
    if not isinstance(name, str) or not name:
        raise TypeError(f"value: name found {name!r}; allowed is the name of a variable, a non-empty string")
    return Value(name)


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
    elif isinstance(expression, Value):
        yield dry.Step("value", expression.name)
    elif isinstance(expression, SglSeparateReasoning):
        yield dry.Step("scope", expression.name)
    elif isinstance(expression, SglVarScopeBegin):
        yield dry.Step("scope", expression.name)
    else:
        yield dry.Step("text", uses=getattr(expression, "value", expression))


def _known_part(expression: Any) -> tuple[list[Any], bool]:
    """What of an expression is known before it is executed, from its start, and whether that is all of it."""
    if isinstance(expression, SglExprList):
        known: list[Any] = []
        for part in expression.expr_list:
            found, is_all = _known_part(part)
            known += found
            if not is_all:
                return known, False
        return known, True
    is_known = isinstance(expression, (str, SglConstantText, SglRoleBegin, SglRoleEnd))
    return ([expression], True) if is_known else ([], False)


class _Report:
    """How a call has ended; "error" until something else is known."""

    outcome = "error"


@contextmanager
def _stall(executor: StreamExecutor, tool: Tool) -> Iterator[_Report]:
    """Report a stall of the executor's agent around the body, and its stages within. What it raises passes through."""
    endpoint, report = executor.backend, _Report()
    if not isinstance(endpoint, Endpoint):
        yield report
        return
    agent_id, call_id = endpoint.context_of(executor).agent_id, uuid.uuid4().hex
    answer = endpoint.stall_started(
        agent_id, tool.kind, tool.predict_time, call_id, tool.stages, estimated_p90_s=tool.p90)
    # An unanswered start may have been applied, so its end is sent; a refused one was not.
    known = not refused(answer)
    token = STAGE_REPORTER.set((lambda stage: endpoint.stage_finished(agent_id, stage, call_id)) if known else None)
    try:
        yield report
    except BaseException as cause:
        report.outcome = _outcome_of(cause)
        raise
    finally:
        STAGE_REPORTER.reset(token)
        if known:
            endpoint.stall_finished(agent_id, call_id, report.outcome)


def _outcome_of(cause: BaseException) -> str:
    return "cancelled" if isinstance(cause, ToolTimeout) else "error"
