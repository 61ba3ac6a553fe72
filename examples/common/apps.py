"""Runs many applications at once against one server and records what each agent was asked, answered and charged."""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

import sglang as sgl

import tokencake_sglang as tc
from common.progress import Board


@dataclass
class Call:
    """What the server reported for one generation. `cached_tokens` of the prompt were not computed again; `host_tokens`
    of these came from host memory when the request arrived; `finish` is stop, length or abort."""

    agent: str
    variable: str
    prompt_tokens: int
    cached_tokens: int
    host_tokens: int
    completion_tokens: int
    retractions: int
    finish: str


@dataclass
class AppResult:
    name: str
    seconds: float = 0.0
    note: str = ""
    error: str = ""
    outputs: dict[str, str] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class AppContext:
    """What the agents of one running application share: the endpoint, the progress board and the record."""

    def __init__(self, name: str, endpoint: tc.Endpoint, board: Board, free: bool) -> None:
        self.name = name
        self.endpoint = endpoint
        self.board = board
        self.free = free
        self.result = AppResult(name)
        self._lock = threading.Lock()

    def doing(self, agent: str, state: str) -> None:
        self.board.set(self.name, agent, state)

    def write(self, s: Any, agent: str, name: str, max_tokens: int, **constraint: Any) -> str:
        """One assistant turn bound to variable `name`. A constraint (regex, json_schema) bounds the output; without one
        the model writes freely, and in constrained mode (dummy weights) always exactly `max_tokens` tokens."""
        fixed_length = not self.free and not constraint
        self.doing(agent, f"writing {name}")
        s += sgl.assistant(sgl.gen(name, max_tokens=max_tokens, ignore_eos=fixed_length, **constraint))
        text = s[name]
        self._record(s, agent, name, text)
        return text

    def note(self, s: Any, agent: str, name: str) -> str:
        """Wait for a variable that a fork generates and record it."""
        self.doing(agent, f"writing {name}")
        text = s[name]
        self._record(s, agent, name, text)
        return text

    def choose(self, s: Any, agent: str, name: str, choices: list[str]) -> str:
        """One assistant turn that is one of `choices` (SGLang `select`, by log-probability)."""
        self.doing(agent, f"choosing {name}")
        s += sgl.assistant(sgl.gen(name, choices=choices))
        text = s[name]
        with self._lock:
            self.result.outputs[f"{agent}/{name}"] = text
        return text

    def use(self, s: Any, agent: str, tool: tc.Tool, args: dict[str, Any], name: str, then: Any = None) -> str:
        """Call a tool from the agent's program; returns its answer, or one line that says how it failed.

        `then` is what the conversation goes on with: known while the tool runs, but for the `tc.value(name)` in it.
        """
        self.doing(agent, f"tool {tool.name}")
        s += tc.call(tool, args, name=name)
        if then is not None:
            s += then
        try:
            answer = str(s[name])
        except tc.ToolError as error:
            answer = f"The tool {tool.name} failed: {error.cause}"
        with self._lock:
            self.result.outputs[f"{agent}/{name}"] = answer
        self.doing(agent, "thinking")
        return answer

    def run(self, program: Any, **arguments: Any) -> Any:
        """Run one agent to its end and return what its function returned; raises its error."""
        (value,) = self.map(program, [arguments])
        return value

    def map(self, program: Any, rows: Sequence[dict[str, Any]]) -> list[Any]:
        """Run one agent per row, all at once; what their functions return, in the order of the rows."""
        return program.bind(ctx=self).map(rows, backend=self.endpoint, temperature=0)

    def _record(self, s: Any, agent: str, name: str, text: str) -> None:
        meta = s.get_meta_info(name) or {}
        reason = meta.get("finish_reason") or {}
        details = meta.get("cached_tokens_details") or {}
        call = Call(agent, name, int(meta.get("prompt_tokens", 0)), int(meta.get("cached_tokens", 0)),
                    int(details.get("host", 0)), int(meta.get("completion_tokens", 0)),
                    int(meta.get("num_retractions", 0)), str(reason.get("type", "unknown")))
        with self._lock:
            self.result.outputs[f"{agent}/{name}"] = text
            self.result.calls.append(call)


def run_apps(title: str, url: str, app: Callable[[AppContext, int], str], count: int, concurrency: int,
             free: bool, prefill: bool = False) -> list[AppResult]:
    """Run `count` applications, at most `concurrency` at a time, in order of their number. A failed application is
    recorded with its error and does not stop the others. A signal does not wait for them: whoever started the server
    ends it next, and they with it."""
    pool = ThreadPoolExecutor(concurrency)
    try:
        with Board(title, count) as board:
            return list(pool.map(lambda number: _run_one(title, url, app, number, board, free, prefill), range(count)))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _run_one(title: str, url: str, app: Callable[[AppContext, int], str], number: int, board: Board,
             free: bool, prefill: bool) -> AppResult:
    name = f"{title}-{number}"
    begin = time.monotonic()
    ctx = AppContext(name, tc.Endpoint(url, app_id=name, prefill=prefill), board, free)
    try:
        ctx.result.note = app(ctx, number)
    except Exception as error:  # noqa: BLE001 - one application's failure is a result, shown and counted
        ctx.result.error = "".join(traceback.format_exception(error))
        ctx.result.note = f"FAILED: {error}"
    ctx.result.seconds = time.monotonic() - begin
    board.app_done(name, ctx.result.seconds, ctx.result.note)
    return ctx.result
