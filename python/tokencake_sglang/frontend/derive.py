"""A graph from a program: its functions run without a server, and each model call and tool call becomes a node.

A dry run starts no thread, sends no request and runs no tool. What a model or a tool would return is unknown (see
`unknown.py`) unless the caller has given an answer for it, and a program that asks what it is ends with an error.
"""

from __future__ import annotations

import sysconfig
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokencake_sglang.core.errors import GraphError
from tokencake_sglang.core.graph import Node
from tokencake_sglang.frontend.dry_run import DryRun
from tokencake_sglang.frontend.graph import AgentGraph
from tokencake_sglang.frontend.tool import TRACING, Tool
from tokencake_sglang.frontend.unknown import Undecided, Unknown, steps_in

DEFAULT_TOKENS = 128  # of SglFunction.run
_FLOW: ContextVar[Flow | None] = ContextVar("tokencake_dry_run", default=None)
_NOT_THE_PROGRAMS = (str(Path(__file__).parent), *(sysconfig.get_path(name) for name in ("stdlib", "purelib")), "<")


@dataclass(frozen=True)
class Step:
    """One thing that an expression does: `kind` is text, gen, call, value or scope. `tokens` None: as the run says."""

    kind: str
    name: str = ""
    tokens: int | None = None
    tool: Tool | None = None
    uses: Any = None


def derive(program: Any, answers: Mapping[str, Any] | None = None, **arguments: Any) -> AgentGraph:
    """The graph of an agent, or of a function that runs agents, for these arguments.

    Model calls are named `agent.variable`, tool calls after the variable of their result; the second run of an agent is
    `agent#2`, the items of a `run_batch` are `agent[1]`, `agent[2]`, ..., and forks are `agent.0`, `agent.1` like their
    ids. `answers` are sample results, by variable, `agent.variable` or full name of the step: needed where the program
    decides by them. Raises GraphError where an answer is missing, and where one belongs to no step.
    """
    name = getattr(program, "node_id", None) or getattr(program, "__name__", type(program).__name__)
    if not hasattr(program, "program") and (not callable(program) or hasattr(program, "run_batch")):
        raise GraphError(f"derive: found {type(program).__name__} {name!r}; allowed are a function decorated with "
                         "@agent, or a plain function that runs such agents")
    run = DryRun(AgentGraph(name), dict(answers or {}))
    flow, tracing = Flow(run), TRACING.set(True)
    token = _FLOW.set(flow)
    try:
        if hasattr(program, "program"):
            flow.run_agent(program, (), arguments)
        else:
            program(**arguments)
    except Undecided as undecided:
        raise GraphError(_undecided(undecided)) from None
    except Exception as error:
        raise GraphError(f"derive: the dry run of {name!r} stopped at {_place(error)}: {type(error).__name__}: "
                         f"{error}. " + run.hint()) from error
    finally:
        _FLOW.reset(token)
        TRACING.reset(tracing)
    run.check()
    return run.graph


def current() -> Flow | None:
    """Where the dry run is that the caller is part of, or None in a real run."""
    return _FLOW.get()


class Flow:
    """A line of control: `after` are the nodes that whatever comes next in it waits for."""

    def __init__(self, run: DryRun, after: Iterable[str] = ()):
        self.run = run
        self.after: tuple[str, ...] = tuple(after)

    def wait_for(self, names: Iterable[str]) -> None:
        self.after = self.run.last_of([*self.after, *names])

    def run_agent(self, agent: Any, args: Sequence[Any], arguments: Mapping[str, Any]) -> DryState:
        """Run an agent to its end; what follows in this flow waits for it."""
        state = self._agent(agent, self.run.unique(agent.node_id), args, arguments)
        self.wait_for(state.after)
        return state

    def run_agents(self, agent: Any, rows: Sequence[Any], arguments: Mapping[str, Any]) -> list[DryState]:
        """Run one agent for each row, all at the same time; what follows waits for all of them."""
        label = self.run.unique(agent.node_id) if rows else ""
        states = []
        for number, row in enumerate(rows, 1):
            name = label if len(rows) == 1 else f"{label}[{number}]"
            given = row if isinstance(row, Mapping) else dict(zip(agent.arg_names, row, strict=False))
            states.append(self._agent(agent, name, (), {**arguments, **given}))
        for state in states:
            self.wait_for(state.after)
        return states

    def unknown(self, what: str, steps: Iterable[str]) -> Unknown:
        from tokencake_sglang.frontend.calls import UnknownExpr

        return UnknownExpr(what, tuple(steps))

    def expected_items(self, name: str, items: Unknown, expected: int | None) -> list[Unknown]:
        """As many unknown items as the program says to expect of a list that only a real run has."""
        if expected is None:
            raise GraphError(f"map of {name!r}: a dry run does not know {items.what} (step {items.steps[-1]}); say how "
                             f"many items to expect, map(..., expected=3), or give a sample of that step")
        return [self.unknown(f"an item of {items.what}", items.steps) for _ in range(expected)]

    def apart(self, *bodies: Callable[[], Any]) -> list[Any]:
        """Run each from where this flow is now; what follows waits for all. What they return."""
        before, ends, values = self.after, [], []
        for body in bodies:
            self.after = before
            values.append(body())
            ends += self.after
        self.after = before
        self.wait_for(ends)
        return values

    def _agent(self, agent: Any, label: str, args: Sequence[Any], arguments: Mapping[str, Any]) -> DryState:
        own = {name: arguments[name] for name in arguments if name in agent.arg_names} | agent.bind_arguments
        state = DryState(self.run, agent, label, self.after, arguments.get("max_new_tokens", DEFAULT_TOKENS))
        token = _FLOW.set(state)
        try:
            state.ret_value = agent.program(state, *args, **own)
        finally:
            _FLOW.reset(token)
        return state


class DryState(Flow):
    """Stands for SGLang's ProgramState in a dry run: the same methods, on nodes instead of text."""

    def __init__(self, run: DryRun, agent: Any, label: str, after: Iterable[str], tokens: int,
                 parent: DryState | None = None):
        super().__init__(run, after)
        self.agent, self.label, self.default_tokens, self.parent = agent, label, tokens, parent
        self.variables: dict[str, Any] = {}
        self.ret_value: Any = None
        self._set_by: dict[str, tuple[str, ...]] = {}
        self._forks = 0

    def __iadd__(self, expression: Any) -> DryState:
        from tokencake_sglang.frontend.calls import steps_of

        if expression is None:
            raise ValueError("Tried to append None to state.")
        for step in steps_of(expression):
            self.wait_for(name for name in steps_in(step.uses) if name not in self.after)
            if step.kind == "scope":
                self.variables[step.name] = self.unknown(f"the text of {step.name!r}", self.after)
            elif step.kind == "value":
                self.get_var(step.name)
            elif hasattr(step.tool, "agent"):
                self._sub_agent(step)
            elif step.kind != "text":
                self._node(step)
        return self

    def _node(self, step: Step) -> None:
        label = self.run.unique(f"{self.label}.{step.name}")
        common = self.agent.node_fields
        if step.tool is not None:
            stages = tuple((stage.name, stage.seconds) for stage in step.tool.stages)
            tool = {"seconds": step.tool.predict_time, "tool_kind": step.tool.kind, "stages": stages}
            node = Node(label, "tool", **tool, **common)
            what = f"what the tool {step.tool.name!r} returns"
        else:
            tokens = self.default_tokens if step.tokens is None else step.tokens
            node, what = Node(label, tokens=tokens, **common), f"what the model writes into {step.name!r}"
        self.after = (self.run.add(node, self.after),)
        known, value = self.run.answer(label, self.agent.node_id, step.name)
        self.variables[step.name] = value if known else self.unknown(what, (label,))
        self._set_by[step.name] = (label,)

    def _sub_agent(self, step: Step) -> None:
        given = step.uses(self) if callable(step.uses) else step.uses
        self.variables[step.name] = self.run_agent(step.tool.agent, (), dict(given)).ret_value
        self._set_by[step.name] = self.after

    def get_var(self, name: str) -> Any:
        steps, above = self._set_by.get(name), self.parent
        while steps is not None and above is not None:  # the program waits here, and so does what it adds above
            above.wait_for(steps)
            above = above.parent
        return self.variables[name]

    def set_var(self, name: str, value: Any) -> None:
        self.variables[name] = value

    __getitem__, __setitem__ = get_var, set_var

    def __contains__(self, name: str) -> bool:
        return name in self.variables

    def fork(self, size: int = 1, position_ids_offset: Any = None) -> DryGroup:
        states = []
        for _ in range(size):
            child = DryState(self.run, self.agent, f"{self.label}.{self._forks}", self.after, self.default_tokens, self)
            child.variables = dict(self.variables)
            self._forks += 1
            states.append(child)
        return DryGroup(states, self)

    @contextmanager
    def copy(self, position_ids_offset: Any = None) -> Iterator[DryState]:
        group = self.fork(1)
        yield group[0]
        group.join()

    @contextmanager
    def _scope(self, variable: str | None = None) -> Iterator[None]:
        yield
        if variable is not None:
            self.variables[variable] = self.unknown(f"the text of {variable!r}", self.after)

    def _role(self, expression: Any = None) -> Any:
        if expression is None:
            return self._scope()
        self.__iadd__(expression)
        return expression

    system = user = assistant = _role
    var_scope = _scope

    def text(self) -> Any:
        return self.unknown("the text of the state", self.after)

    messages = text

    def text_iter(self, var_name: str | None = None) -> Iterator[Any]:
        yield self.text() if var_name is None else self.get_var(var_name)

    def get_meta_info(self, name: str, timeout: float | None = None) -> dict[str, Any]:
        return {}

    def sync(self) -> None:
        """Nothing is under way."""

    def error(self) -> None:
        """Nothing has failed."""


def meet(states: Sequence[DryState], point: Node) -> None:
    """All of these states reach the point before any of them goes on."""
    after = states[0].run.add(point, [name for state in states for name in state.after])
    for state in states:
        state.after = (after,)


class DryGroup:
    """Stands for SGLang's ProgramStateGroup in a dry run."""

    def __init__(self, states: list[DryState], source: DryState):
        self.states, self.src_state = states, source

    def join(self, mode: str = "gather_variable") -> None:
        before = set(self.src_state.variables)
        for state in self.states:
            self.src_state.wait_for(state.after)
            for name in [name for name in state.variables if name not in before and mode == "gather_variable"]:
                self.src_state.variables.setdefault(name, []).append(state.variables[name])

    def __getitem__(self, index: int) -> DryState:
        return self.states[index]

    def __setitem__(self, index: int, value: DryState) -> None:
        """`group[i] += ...` stores what it got back."""

    def __iadd__(self, other: Any) -> DryGroup:
        for index, state in enumerate(self.states):
            state += other[index] if isinstance(other, (list, tuple)) else other(index) if _is_plan(other) else other
        return self


def _is_plan(other: Any) -> Callable[..., Any] | bool:
    return callable(other) and not isinstance(other, Unknown)


def _undecided(undecided: Undecided) -> str:
    unknown = undecided.unknown
    step = unknown.steps[-1] if unknown.steps else "a step"
    return (
        f"derive: the program decides by {unknown.what} (step {step}) at {_place(undecided)}, with {undecided.how}; a "
        f"dry run does not know it. Give a sample, derive(..., answers={{{step!r}: ...}}), and the graph is that of "
        "this sample. Or declare the graph by hand, with the counts that you expect: "
        "graph.branch((step, 0.3), (other, 0.7)), graph.loop(step, expected=2)")


def _place(error: BaseException) -> str:
    """`file:line` of the innermost frame of the program: not the dry run itself and no library."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(_NOT_THE_PROGRAMS)]
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "its start"
