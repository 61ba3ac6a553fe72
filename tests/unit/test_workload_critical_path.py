"""The time of a program without contention: its longest path, with every prefix its own past has computed."""

from __future__ import annotations

import pytest

from tokencake_sglang.emulator.program import Call, Output, Program, Text, ToolCall
from tokencake_sglang.emulator.spec import WorkloadSpec
from tokencake_sglang.emulator.workloads import build
from tokencake_sglang.emulator.workloads.critical_path import critical_path_s


class Profile:
    """1 s for each new token, 0.001 s for each of its prefix; 10 s and 0.01 s for each token of context a step."""

    def prefill_s(self, chunks: list[tuple[int, int]]) -> float:
        return sum(new + 0.001 * prefix for new, prefix in chunks)

    def decode_s(self, batch: int, total_context: int) -> float:
        assert batch == 1
        return 10 + 0.01 * total_context


def call(name: str, *prompt, output: int = 1, after: tuple[str, ...] = (), **more) -> Call:
    return Call(name, "agent", "type", prompt, output, after, **more)


def seconds(*calls: Call) -> float:
    return critical_path_s(Program("app", calls, arrival_s=1000.0), Profile())


def test_the_first_token_comes_with_the_prefill_and_each_other_one_from_a_decode_step() -> None:
    assert seconds(call("a", Text("x", 100))) == pytest.approx(100)
    # contexts 101 .. 199, mean 150
    assert seconds(call("a", Text("x", 100), output=100)) == pytest.approx(100 + 99 * (10 + 0.01 * 150), rel=1e-3)


def test_a_child_computes_only_what_its_ancestors_have_not() -> None:
    first = call("a", Text("x", 100), output=50)
    alone = seconds(first)
    child = call("b", Text("x", 100), Output("a"), Text("y", 7), after=("a",))
    assert seconds(first, child) - alone == pytest.approx(7 + 0.150)
    cut = call("b", Text("x", 100), Output("a", 20), Text("y", 7), after=("a",))
    assert seconds(first, cut) - alone == pytest.approx(7 + 0.120)
    again = call("c", Text("x", 100), after=("b",))
    assert seconds(first, child, again) - seconds(first, child) == pytest.approx(1 + 0.099)


def test_a_longer_ancestor_that_shares_less_does_not_hide_one_that_shares_more() -> None:
    calls = [call("a", Text("x", 100)), call("b", Text("x", 10), Text("z", 500), after=("a",)),
             call("c", Text("x", 100), Output("a"), Text("y", 5), after=("b",))]
    assert seconds(*calls) - seconds(*calls[:2]) == pytest.approx(5 + 0.101)


def test_nothing_is_shared_after_a_part_that_ends_earlier() -> None:
    first = call("a", Text("x", 100), Text("y", 10))
    shorter = call("b", Text("x", 60), Text("y", 10), after=("a",))
    assert seconds(first, shorter) - seconds(first) == pytest.approx(10 + 0.060)


def test_a_siblings_prefix_is_not_counted() -> None:
    calls = [call("a", Text("x", 10)), call("b", Text("y", 50), after=("a",)), call("c", Text("y", 50), after=("a",))]
    assert seconds(*calls) == pytest.approx(10 + 50)


def test_the_longest_branch_with_its_tools_and_delays_counts() -> None:
    calls = [
        call("a", Text("x", 10), tool=ToolCall("t", 3.0)), call("short", Text("s", 5), after=("a",)),
        call("long", Text("l", 20), after=("a",), delay_s=2.0, tool=ToolCall("t", 40.0)),
        call("join", Text("j", 1), after=("short", "long"))]
    assert seconds(*calls) == pytest.approx(10 + 3 + 2 + 20 + 40 + 1)
    assert seconds() == 0.0


def test_code_writer_waits_at_least_for_the_tools_of_its_verification_path() -> None:
    class Free:
        def prefill_s(self, chunks: list[tuple[int, int]]) -> float:
            return 0.0

        def decode_s(self, batch: int, total_context: int) -> float:
            return 0.0

    program = build(WorkloadSpec("code_writer", params={"applications": 1})).programs[0]
    assert critical_path_s(program, Free()) == pytest.approx(30.5)
