"""The shapes of a program that a dry run must see too: loops, branches and barriers.

In a real run they are a `for`, an `if` and a wait. In a dry run (`derive`), which cannot decide by what a model has
written, they give the graph the counts that the program expects.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from tokencake_sglang.core.errors import GraphError
from tokencake_sglang.core.graph import Node
from tokencake_sglang.frontend import derive as dry


def loop(limit: int, *, until: Callable[[], Any] | None = None, expected: float | None = None) -> Iterator[int]:
    """`for number in loop(3, until=lambda: s["verdict"] == "enough", expected=1.5)`: 0, 1, 2, ...

    Ends after `limit` passes, or after a pass at whose end `until()` is true. `expected` is how many passes there are
    on average: a dry run then makes one pass, whose steps have this count, and does not ask `until`. Without `expected`
    it makes the passes that the sample answers lead to.
    """
    if not isinstance(limit, int) or isinstance(limit, bool) or limit < 0:
        raise ValueError(f"loop: limit found {limit!r}; allowed is a whole number of 0 or more")
    if expected is not None and not 0 < _number("loop", "expected", expected) <= limit:
        raise ValueError(f"loop: expected found {expected!r}; allowed is a number above 0, at most the limit {limit}")
    return _passes(limit, until, expected)


def _passes(limit: int, until: Callable[[], Any] | None, expected: float | None) -> Iterator[int]:
    flow = dry.current()
    if flow and expected is not None:
        with flow.run.expected_runs(expected):
            yield 0
        return
    for number in range(limit):
        yield number
        if until is not None and until():
            return


def branch(
    condition: Callable[[], Any], then: Callable[[], Any], otherwise: Callable[[], Any] | None = None, *,
    chance: float | None = None,
) -> Any:
    """`then()` where `condition()` is true, else `otherwise()`; what that returns.

    `chance` is how often the condition is true, 0 to 1: a dry run then runs both, with these counts, and does not ask
    `condition`. Without it a dry run takes the branch that the sample answers lead to.
    """
    if chance is not None and not 0 <= _number("branch", "chance", chance) <= 1:
        raise ValueError(f"branch: chance found {chance!r}; allowed is a number from 0 to 1")
    otherwise = otherwise or _nothing
    flow = dry.current()
    if not flow or chance is None:
        return then() if condition() else otherwise()

    def counted(body: Callable[[], Any], times: float) -> Callable[[], Any]:
        def run() -> Any:
            with flow.run.expected_runs(times):
                return body()

        return run

    values = flow.apart(counted(then, chance), counted(otherwise, 1.0 - chance))
    if all(value is None for value in values):
        return None
    return flow.unknown("what one of two branches returns", flow.after)


def barrier(*states: Any, name: str = "barrier") -> None:
    """Wait until all these states, or all forks of these groups, have done what was added to them: the end of a round.

    Raises the error of one whose work has failed. In a graph it is a point without duration, `agent.barrier`.
    """
    each = [state for item in states for state in getattr(item, "states", [item])]
    flow = dry.current()
    if not each:
        raise GraphError("barrier: found nothing; allowed are states, or groups of forks, at least one")
    if flow:
        dry.meet(each, Node(flow.run.unique(f"{each[0].agent.node_id}.{name}"), "tool", seconds=0.0, tool_kind="local"))
        return
    for state in each:
        state.sync()
    for state in each:
        failure = failure_of(state.stream_executor)
        if failure is not None:
            raise failure


def failure_of(executor: Any) -> Exception | None:
    """What has ended the work of this state before its end, or None."""
    return executor.error_ if executor.is_stopped else None


def _nothing() -> None:
    return None


def _number(where: str, what: str, value: Any) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise ValueError(f"{where}: {what} found {value!r}; allowed is a number")
    return value
