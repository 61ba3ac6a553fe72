"""Tools: ordinary Python functions with what the server should know about how long they take."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from tokencake_sglang.core.errors import TokenCakeError
from tokencake_sglang.frontend.identity import check_id

MAX_SECONDS = 86400.0
MAX_STAGES = 32

#: True in the context that runs a program only to see its expressions (see `TracedToolCall`).
TRACING: ContextVar[bool] = ContextVar("tokencake_tracing", default=False)

#: Inside a tool that a program called: what tells the server that a stage of it has finished.
STAGE_REPORTER: ContextVar[Callable[[str], None] | None] = ContextVar("tokencake_stage_reporter", default=None)


def stage_done(name: str) -> None:
    """Tell the server that this stage of the running tool is over, which makes its forecast of the end better.

    To be called inside a tool, on its own thread; elsewhere it does nothing, so that a tool can be called directly.
    A stage that the tool does not have is refused by the server, which is logged once and changes nothing.
    """
    report = STAGE_REPORTER.get()
    if report is not None:
        report(name)


class ToolError(TokenCakeError):
    """A tool that a program called has raised.

    Raised where the program reads the result variable; `state.error()` returns it while nobody has read it.
    `tool` is the tool's name, `cause` the exception that the tool raised.
    """

    def __init__(self, tool: str, cause: BaseException):
        super().__init__(f"tool {tool!r} failed: {type(cause).__name__}: {cause}")
        self.tool = tool
        self.cause = cause
        self.was_read = False
        self.__cause__ = cause

    def read_on(self, executor: Any) -> Any:
        """Raise this error in the reader, after which `state.error()` no longer reports it."""
        self.was_read = True
        if executor.error_ is self:
            unread = (v for v in list(executor.variables.values()) if isinstance(v, ToolError) and not v.was_read)
            executor.error_ = next(unread, None)
        raise self


class TracedToolCall(TokenCakeError, TypeError):
    """A tool was called directly while the program is only being traced. A TypeError, which ends a prefix trace."""


@dataclass(frozen=True)
class Stage:
    """One step of a tool (queueing, fetching, parsing) and its expected duration in seconds."""

    name: str
    seconds: float

    def __post_init__(self) -> None:
        check_id("stage name", self.name)
        _check_seconds(f"stage {self.name!r}", self.seconds)


class Tool:
    """A function that a program may call while its agent waits.

    `kind` groups calls whose durations resemble each other (default: the name). `predict_time` is the expected
    duration in seconds: as given, else the sum of `stages`, else None (the server then goes by what it has seen).
    """

    def __init__(
        self,
        fn: Callable[..., Any],
        *,
        name: str | None = None,
        kind: str | None = None,
        predict_time: float | None = None,
        stages: Sequence[Stage] | None = None,
    ):
        if not callable(fn):
            raise TypeError(f"a tool needs a callable, found {type(fn).__name__}; decorate a function with @tool")
        functools.update_wrapper(self, fn)
        self.fn = fn
        self.name = name or getattr(fn, "__name__", type(fn).__name__)
        self.kind = kind or self.name
        self.stages = tuple(stages or ())
        for stage in self.stages:
            if not isinstance(stage, Stage):
                raise TypeError(f"stages of tool {self.name!r}: found {stage!r}; allowed are Stage(name, seconds)")
        names = [stage.name for stage in self.stages]
        if len(names) > MAX_STAGES or len(set(names)) < len(names):
            raise ValueError(f"stages of tool {self.name!r}: found {names}; allowed are at most {MAX_STAGES}, each"
                             " with a name of its own")
        if predict_time is not None:
            _check_seconds(f"predict_time of tool {self.name!r}", predict_time)
        elif self.stages:
            predict_time = sum(stage.seconds for stage in self.stages)
            _check_seconds(f"the stages of tool {self.name!r} together", predict_time)
        self.predict_time = None if predict_time is None else float(predict_time)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function itself, with no event sent. Raises TracedToolCall in a program that is only traced."""
        if TRACING.get():
            raise TracedToolCall(
                f"tool {self.name!r} was called directly while its program is being traced, which must have no "
                "effects; write `s += call(tool, args)` instead"
            )
        return self.fn(*args, **kwargs)

    def run(self, arguments: dict[str, Any]) -> Any:
        """Call the function with keyword arguments and wait for it, also when it is a coroutine function."""
        result = self.fn(**arguments)
        if inspect.iscoroutine(result):
            import asyncio

            result = asyncio.run(result)
        return result

    def __repr__(self) -> str:
        return f"Tool({self.name!r}, kind={self.kind!r}, predict_time={self.predict_time})"


def tool(
    fn: Callable[..., Any] | None = None,
    *,
    name: str | None = None,
    kind: str | None = None,
    predict_time: float | None = None,
    stages: Sequence[Stage] | None = None,
) -> Any:
    """Decorator that makes a `Tool`, with or without arguments; see `Tool` for their meaning."""

    def wrap(function: Callable[..., Any]) -> Tool:
        return Tool(function, name=name, kind=kind, predict_time=predict_time, stages=stages)

    return wrap if fn is None else wrap(fn)


def _check_seconds(what: str, value: Any) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or not 0 <= value <= MAX_SECONDS:
        raise ValueError(f"{what}: found {value!r}; allowed are seconds from 0 to {MAX_SECONDS:g}")
