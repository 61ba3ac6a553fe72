"""Tools: ordinary Python functions with what the server should know about how long they take."""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import inspect
import math
import threading
from collections.abc import Callable, Sequence
from contextvars import ContextVar, copy_context
from dataclasses import dataclass
from typing import Any

from tokencake_sglang.core.errors import TokenCakeError
from tokencake_sglang.frontend.identity import check_id

MAX_SECONDS = 86400.0
MAX_STAGES = 32
OUTCOMES = ("ok", "error", "cancelled")
SHAPES = {"steady": 1.2, "varying": 3.0, "long_tailed": 20.0}  # nine of ten calls stay below so many expected times

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


class ToolTimeout(TokenCakeError, TimeoutError):
    """A tool has not returned within its `timeout`; the `cause` of the ToolError that the program then gets."""


class TracedToolCall(TokenCakeError, TypeError):
    """A tool or agent ran directly while the program is only being traced. A TypeError, which ends a prefix trace."""


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
    duration in seconds: as given, else the sum of `stages`, else the first of the pair in `hint`, else None (the server
    then goes by what it has seen). `p90` is what nine of ten calls stay below, in seconds, or None: from `hint`, which
    is a pair of seconds (what half of the calls stay below, what nine of ten do) or one of SHAPES. `timeout` is how
    many seconds a program waits for it at most. `outcome` tells from a result whether it is "ok", "error" or
    "cancelled".
    """

    def __init__(
        self,
        fn: Callable[..., Any],
        *,
        name: str | None = None,
        kind: str | None = None,
        predict_time: float | None = None,
        stages: Sequence[Stage] | None = None,
        hint: tuple[float, float] | str | None = None,
        timeout: float | None = None,
        outcome: Callable[[Any], str] | None = None,
    ):
        if not callable(fn):
            raise TypeError(f"a tool needs a callable, found {type(fn).__name__}; decorate a function with @tool")
        functools.update_wrapper(self, fn)
        self.fn = fn
        self.name = name or getattr(fn, "__name__", type(fn).__name__)
        self.kind = kind or self.name
        self.stages = _checked_stages(self.name, stages)
        if predict_time is not None:
            _check_seconds(f"predict_time of tool {self.name!r}", predict_time)
        elif self.stages:
            predict_time = sum(stage.seconds for stage in self.stages)
            _check_seconds(f"the stages of tool {self.name!r} together", predict_time)
        self.predict_time, self.p90 = _spread(self.name, predict_time, hint)
        if timeout is not None and not (_is_seconds(timeout) and timeout > 0):
            raise ValueError(f"timeout of tool {self.name!r}: found {timeout!r}; allowed are more than 0 seconds, at "
                             f"most {MAX_SECONDS:g}")
        self.timeout = timeout
        if outcome is not None and not callable(outcome):
            raise TypeError(f"outcome of tool {self.name!r}: found {outcome!r}; allowed is a function of the result "
                            f"that returns one of {', '.join(OUTCOMES)}")
        self._outcome = outcome

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function itself, with no event sent. Raises TracedToolCall in a program that is only traced."""
        if TRACING.get():
            raise TracedToolCall(
                f"tool {self.name!r} was called directly while its program is being traced, which must have no "
                "effects; write `s += call(tool, args)` instead"
            )
        return self.fn(*args, **kwargs)

    def run(self, arguments: dict[str, Any]) -> Any:
        """Call the function with keyword arguments and wait for it, also when it is a coroutine function.

        Raises ToolTimeout after `timeout` seconds. A coroutine is then cancelled; any other function goes on, on a
        thread of its own that nobody waits for.
        """
        return self._result(arguments) if self.timeout is None else self._run_aside(arguments)

    def outcome_of(self, result: Any) -> str:
        """What the server is told of a call with this result."""
        outcome = "ok" if self._outcome is None else self._outcome(result)
        if outcome not in OUTCOMES:
            raise ValueError(f"outcome of tool {self.name!r}: found {outcome!r}; allowed: {', '.join(OUTCOMES)}")
        return outcome

    def _result(self, arguments: dict[str, Any]) -> Any:
        result = self.fn(**arguments)
        return asyncio.run(self._awaited(result)) if inspect.iscoroutine(result) else result

    async def _awaited(self, coroutine: Any) -> Any:
        task = asyncio.ensure_future(coroutine)
        done, _ = await asyncio.wait({task}, timeout=self.timeout)
        if not done:
            raise self._too_late()  # asyncio.run() then cancels the task
        return task.result()

    def _run_aside(self, arguments: dict[str, Any]) -> Any:
        ended: concurrent.futures.Future[Any] = concurrent.futures.Future()

        def work() -> None:
            try:
                ended.set_result(self._result(arguments))
            except BaseException as error:  # it belongs to who waits, if somebody still does
                ended.set_exception(error)

        name = f"tool {self.name}"
        threading.Thread(target=copy_context().run, args=(work,), name=name, daemon=True).start()
        concurrent.futures.wait([ended], self.timeout)
        if not ended.done():
            raise self._too_late()
        return ended.result()

    def _too_late(self) -> ToolTimeout:
        return ToolTimeout(f"it did not return within its timeout of {self.timeout:g} s")

    def __repr__(self) -> str:
        return f"Tool({self.name!r}, kind={self.kind!r}, predict_time={self.predict_time})"


def tool(
    fn: Callable[..., Any] | None = None,
    *,
    name: str | None = None,
    kind: str | None = None,
    predict_time: float | None = None,
    stages: Sequence[Stage] | None = None,
    hint: tuple[float, float] | str | None = None,
    timeout: float | None = None,
    outcome: Callable[[Any], str] | None = None,
) -> Any:
    """Decorator that makes a `Tool`, with or without arguments; see `Tool` for their meaning."""

    def wrap(function: Callable[..., Any]) -> Tool:
        return Tool(function, name=name, kind=kind, predict_time=predict_time, stages=stages, hint=hint,
                    timeout=timeout, outcome=outcome)

    return wrap if fn is None else wrap(fn)


def _checked_stages(tool_name: str, stages: Sequence[Stage] | None) -> tuple[Stage, ...]:
    found = tuple(stages or ())
    for stage in found:
        if not isinstance(stage, Stage):
            raise TypeError(f"stages of tool {tool_name!r}: found {stage!r}; allowed are Stage(name, seconds)")
    names = [stage.name for stage in found]
    if len(names) > MAX_STAGES or len(set(names)) < len(names):
        raise ValueError(f"stages of tool {tool_name!r}: found {names}; allowed are at most {MAX_STAGES}, each"
                         " with a name of its own")
    return found


def _spread(tool_name: str, expected: float | None, hint: Any) -> tuple[float | None, float | None]:
    """(expected seconds, seconds that nine of ten calls stay below) from what a tool says of both."""
    where = f"hint of tool {tool_name!r}"
    allowed = f"allowed are a pair of seconds, p50 and p90, rising, or one of {', '.join(SHAPES)}"
    if hint is None:
        p90 = None
    elif isinstance(hint, str):
        if hint not in SHAPES:
            raise ValueError(f"{where}: found {hint!r}; {allowed}")
        if expected is None:
            raise ValueError(f"{where}: {hint!r} says how the duration spreads around predict_time or the sum of the "
                             "stages, and neither is given; add one, or give a pair of seconds")
        p90 = min(MAX_SECONDS, expected * SHAPES[hint])
    else:
        if not isinstance(hint, (tuple, list)) or len(hint) != 2 or not all(map(_is_seconds, hint)):
            raise ValueError(f"{where}: found {hint!r}; {allowed}")
        p90 = float(hint[1])
        expected = hint[0] if expected is None else expected
        if p90 < max(expected, hint[0]):
            raise ValueError(f"{where}: found {hint!r} where {expected:g} s are expected; {allowed}")
    return None if expected is None else float(expected), p90


def _is_seconds(value: Any) -> bool:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and math.isfinite(value) and 0 <= value <= MAX_SECONDS


def _check_seconds(what: str, value: Any) -> None:
    if not _is_seconds(value):
        raise ValueError(f"{what}: found {value!r}; allowed are seconds from 0 to {MAX_SECONDS:g}")
