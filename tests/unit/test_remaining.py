"""What is left of a program at each of its calls, without contention."""

from __future__ import annotations

import pytest

from tokencake_sglang.emulator.profile import load_profile
from tokencake_sglang.emulator.program import Call, Output, Program, Text, ToolCall
from tokencake_sglang.emulator.remaining import alone_costs, remaining_s

PROFILE = load_profile("llama-3.1-8b@a10g-24gb")
FIRST = Call("first", "a", "t", (Text("system", 1000),), 100, tool=ToolCall("search", 7.0))
SHORT = Call("short", "b", "t", (Text("other", 500),), 10, after=("first",))
LONG = Call("long", "a", "t", (*FIRST.prompt, Output("first"), Text("result", 50)), 300, after=("first",), delay_s=2.0)
JOIN = Call("join", "c", "t", (Text("join", 400),), 20, after=("short", "long"))
PROGRAM = Program("app", (FIRST, SHORT, LONG, JOIN))


def test_a_call_pays_only_for_what_no_call_before_it_has_computed():
    costs = alone_costs(PROGRAM, PROFILE)
    assert costs["first"].prefill_s == PROFILE.prefill_s([(1000, 0)])
    assert costs["long"].prefill_s == PROFILE.prefill_s([(50, 1100)])
    assert costs["short"].prefill_s == PROFILE.prefill_s([(500, 0)])


def test_what_remains_is_the_longest_path_with_tools_and_delays():
    costs = alone_costs(PROGRAM, PROFILE)
    left = remaining_s(PROGRAM, costs)
    assert left["join"] == costs["join"].total_s
    assert left["long"] == costs["long"].total_s + left["join"]
    assert left["first"] == pytest.approx(costs["first"].total_s + 7.0 + 2.0 + left["long"])
    assert left["short"] < left["long"]


def test_a_running_call_has_left_what_it_has_still_to_generate():
    cost = alone_costs(PROGRAM, PROFILE)["long"]
    assert cost.left_s(0) == cost.total_s
    assert cost.left_s(200) == pytest.approx(100 * cost.token_s)
    assert cost.left_s(300) == cost.left_s(301) == 0.0
