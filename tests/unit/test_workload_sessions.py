"""Coding sessions follow the statistics of their parameter file, compact at the limit, and fill their lanes."""

from __future__ import annotations

import json
from importlib.resources import files
from statistics import mean, quantiles

import pytest

from tokencake_sglang.emulator.program import Output, Program, Text
from tokencake_sglang.emulator.spec import WorkloadSpec
from tokencake_sglang.emulator.workloads import build
from tokencake_sglang.emulator.workloads.parts import common_prefix, output_lengths, prompt_tokens

FILE = json.loads((files("tokencake_sglang.emulator") / "data/coding_sessions.json").read_text())
SCALE = FILE["scales"]["scaled_32k"]
FOREVER = 1e9


def sessions(count: int = 60, **params) -> tuple[Program, ...]:
    given = {"arrival": "poisson", "sessions": count, "horizon_s": FOREVER, **params}
    return build(WorkloadSpec("coding_sessions", 3, given)).programs


@pytest.fixture(scope="module")
def many() -> tuple[Program, ...]:
    return sessions(1500)


def test_sessions_have_the_fitted_means(many: tuple[Program, ...]) -> None:
    fit = SCALE["fit"]["simulated"]
    prompts, outputs, requests, tool_steps = [], [], [], []
    for program in many:
        lengths = output_lengths(program)
        prompts += [prompt_tokens(call.prompt, lengths) for call in program.calls]
        outputs += lengths.values()
        humans = sum(call.tool is not None and call.tool.kind == "human" for call in program.calls)
        requests.append(1 + humans)
        tool_steps.append(len(program.calls) - 1 - humans)
    assert mean(prompts) == pytest.approx(fit["total_input"]["mean"], rel=0.03)
    assert max(prompts) < SCALE["context_limit_tokens"]["values"][0]
    assert mean(outputs) == pytest.approx(fit["out"]["mean"], rel=0.03)
    assert mean(requests) == pytest.approx(fit["requests"]["mean"], rel=0.08)
    assert mean(tool_steps) == pytest.approx(fit["tool_steps_session"]["mean"], rel=0.06)
    assert quantiles(tool_steps, n=4)[1] == pytest.approx(fit["tool_steps_session"]["p25_50_90_99"][1], abs=1)
    assert max(len(program.calls) for program in many) == SCALE["max_steps_per_session"]


def test_sessions_compact_as_often_as_the_fit_says_and_keep_only_the_system_prompt(many: tuple[Program, ...]) -> None:
    compacted = 0
    for program in many:
        lengths, cuts = output_lengths(program), 0
        for before, call in zip(program.calls, program.calls[1:], strict=False):
            length = prompt_tokens(before.prompt, lengths)
            shared = common_prefix(call.prompt, (*before.prompt, Output(before.name)), lengths)
            if shared >= length + before.output_tokens:
                continue
            cuts += 1
            assert shared <= SCALE["shared_system_prompt_tokens"]
            assert prompt_tokens(call.prompt, lengths) < 0.36 * SCALE["context_limit_tokens"]["values"][0] * 1.5
        compacted += cuts > 0
    assert 100 * compacted / len(many) == pytest.approx(SCALE["fit"]["simulated"]["sess_with_comp_pct"], abs=3)


def test_tool_waits_have_the_measured_quantiles(many: tuple[Program, ...]) -> None:
    tools = [call.tool for program in many for call in program.calls if call.tool]
    waits = [tool.duration_s for tool in tools if tool.kind == "tool"]
    assert max(waits) == 600
    share_above_60 = sum(wait > 60 for wait in waits) / len(waits)
    assert 0.04 < share_above_60 < 0.065  # 4 % of calls; a step waits for the slowest of 1.3
    humans = [tool for tool in tools if tool.kind == "human"]
    assert quantiles([tool.duration_s for tool in humans], n=2)[0] == pytest.approx(84, rel=0.15)
    assert {tool.forecast_s for tool in humans} == {None}


def test_only_the_system_prompt_is_shared_between_sessions(many: tuple[Program, ...]) -> None:
    keys = [{part.key for call in program.calls for part in call.prompt if isinstance(part, Text)}
            for program in many[:9]]
    assert all(one & other <= {"coding_sessions/system"} for one in keys for other in keys if one is not other)


def test_a_growth_smaller_than_the_output_keeps_its_first_tokens() -> None:
    parts = [part for program in sessions(20, scale="full", max_steps=50) for call in program.calls
             for part in call.prompt if isinstance(part, Output)]
    assert any(part.tokens is not None for part in parts) and any(part.tokens is None for part in parts)


def test_every_lane_is_busy_until_the_horizon() -> None:
    workload = build(WorkloadSpec("coding_sessions", params={"sessions": 6, "horizon_s": 900.0, "pause_s": 3.0}))
    for lane in range(6):
        programs = [program for program in workload.programs if program.lane == lane]
        waits = sum(call.tool.duration_s for program in programs for call in program.calls if call.tool)
        tokens = sum(call.output_tokens for program in programs for call in program.calls)
        assert programs[0].arrival_s == 10.0 * lane
        assert {program.arrival_s for program in programs[1:]} <= {3.0}
        assert waits + 0.001 * tokens + 3.0 * (len(programs) - 1) + programs[0].arrival_s > 900
    assert [program.lane for program in workload.programs[:6]] == [0, 1, 2, 3, 4, 5]


def test_a_parent_waits_for_all_its_sub_agents() -> None:
    children = 0
    for program in sessions(60, sub_agents=True):
        calls = {call.name: call for call in program.calls}
        last = {call.agent: call.name for call in program.calls}
        for call in program.calls:
            if call.tool and call.tool.kind == "sub_agent":
                started = {other.agent for other in calls.values() if other.after == (call.name,) and
                           other.agent_type == "sub_agent"}
                waiting = next(other for other in calls.values()
                               if other.agent == call.agent and call.name in other.after)
                assert started and set(waiting.after) == {call.name, *(last[agent] for agent in started)}
                children += len(started)
    assert children > 10
    assert all(call.agent_type == "coding_agent" for program in sessions(60) for call in program.calls)


def test_a_smaller_context_and_another_tool_time_can_be_given() -> None:
    programs = sessions(20, max_context=6000, tool_wait="infercept.math", max_steps=12, forecast="mean")
    for program in programs:
        lengths = output_lengths(program)
        assert all(prompt_tokens(call.prompt, lengths) + call.output_tokens <= 6000 for call in program.calls)
        assert len(program.calls) <= 12
    tools = [call.tool for program in programs for call in program.calls if call.tool and call.tool.kind == "tool"]
    assert max(tool.duration_s for tool in tools) < 0.001
    assert len({tool.forecast_s for tool in tools}) == 1


def test_a_parameter_file_without_what_is_needed_is_refused(tmp_path) -> None:
    path = tmp_path / "mine.json"
    path.write_text('{"schema": "coding-sessions/1", "scales": {"scaled_32k": {}}}')
    with pytest.raises(ValueError, match="mine.json: KeyError.'tool_wait_s'. while reading scale scaled_32k"):
        sessions(1, path=str(path))
    path.write_text('{"schema": "agent-dag/1"}')
    with pytest.raises(ValueError, match="\"schema\" is 'agent-dag/1', this workload reads 'coding-sessions/1'"):
        sessions(1, path=str(path))
