"""Every workload: the same spec gives the same programs, its programs hold together, wrong specs are refused."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tokencake_sglang.emulator.program import Output, Text, Workload
from tokencake_sglang.emulator.spec import WorkloadSpec
from tokencake_sglang.emulator.workloads import build, describe, names, parameters

ROOT = Path(__file__).resolve().parents[2]
GRAPH = str(ROOT / "python/tokencake_sglang/emulator/data/code_writer.json")
SMALL = {
    "code_writer": {"applications": 3, "tool_noise": "gaussian", "tool_noise_scale": 0.5},
    "deep_research": {"applications": 3, "forecast": {"lognormal_sigma": 0.5}},
    "dag": {"path": GRAPH, "applications": 2},
    "coding_sessions": {"sessions": 5, "sub_agents": True},
    "mooncake": {"limit": 100, "arrival": "poisson"},
    "tracelab": {},
    "chat": {"chats": 5, "turns": {"kind": "uniform", "low": 1, "high": 6}},
    "tool_turns": {"agents": 3, "turns": 4, "forecast": {"loguniform_factor": [0.25, 4]}},
    "crowd": {"active": 3, "known": 10},
    "mix": {"parts": [{"name": "code_writer", "params": {"applications": 2}},
                      {"name": "chat", "params": {"chats": 3}}]},
}


def small(name: str, seed: int = 1) -> Workload:
    return build(WorkloadSpec(name, seed, SMALL[name]))


def test_there_is_a_small_case_for_every_workload() -> None:
    assert set(SMALL) == set(names())


@pytest.mark.parametrize("name", names())
def test_equal_specs_give_equal_workloads_and_another_seed_gives_another(name: str) -> None:
    assert small(name) == small(name)
    if name != "tracelab":
        assert small(name, seed=2) != small(name)


def test_another_process_with_another_hash_seed_builds_the_same_programs() -> None:
    script = (
        "import hashlib, json, sys\n"
        "from tokencake_sglang.emulator.spec import WorkloadSpec\n"
        "from tokencake_sglang.emulator.workloads import build\n"
        "for name, params in json.load(sys.stdin).items():\n"
        "    print(name, hashlib.sha256(repr(build(WorkloadSpec(name, 1, params))).encode()).hexdigest())\n")
    environment = {**os.environ, "PYTHONHASHSEED": "77", "PYTHONPATH": str(ROOT / "python")}
    run = subprocess.run([sys.executable, "-c", script], input=json.dumps(SMALL), capture_output=True, text=True,
                         env=environment, check=True)
    here = [f"{name} {hashlib.sha256(repr(small(name)).encode()).hexdigest()}" for name in SMALL]
    assert run.stdout.splitlines() == here


@pytest.mark.parametrize("name", names())
def test_programs_hold_together(name: str) -> None:
    """Names are unique, parents come first, an output is used only by calls that wait for it, agents end once."""
    workload = small(name)
    assert len({program.app_id for program in workload.programs}) == len(workload.programs)
    for program in workload.programs:
        before: dict[str, set[str]] = {}
        ended: set[str] = set()
        for call in program.calls:
            assert call.name not in before and set(call.after) <= set(before)
            before[call.name] = set(call.after).union(*(before[parent] for parent in call.after))
            used = {part.call for part in call.prompt if isinstance(part, Output)}
            assert used <= before[call.name], (program.app_id, call.name)
            assert call.output_tokens >= 1 and call.prompt and call.agent not in ended
            if call.last_of_agent:
                ended.add(call.agent)
        own = {call.agent for call in program.calls if call.agent}
        assert own == ended
    starts = [program.arrival_s for program in workload.programs if program.lane is None]
    assert starts == sorted(starts)


def test_an_unknown_workload_or_parameter_is_refused_with_what_there_is() -> None:
    with pytest.raises(ValueError, match="no workload 'code_writr'; there are code_writer, deep_research"):
        build(WorkloadSpec("code_writr"))
    with pytest.raises(ValueError, match="unknown parameter application; it takes applications, arrival"):
        build(WorkloadSpec("code_writer", params={"application": 3}))


@pytest.mark.parametrize(("name", "params", "words"), [
    ("code_writer", {"applications": 0}, "applications is 0, it must be a whole number of at least 1"),
    ("code_writer", {"applications": True}, "applications is True"),
    ("code_writer", {"qps": 0}, "qps is 0, it must be a number above 0"),
    ("code_writer", {"qps": float("nan")}, "qps is nan"),
    ("code_writer", {"arrival": "burst"}, "one of poisson, even, closed"),
    ("code_writer", {"forecast": "good"}, "lognormal_sigma"),
    ("code_writer", {"forecast": {"uniform_factor": [2, 0.5]}}, "uniform_factor"),
    ("code_writer", {"forecast": {"loguniform_factor": [0, 1]}}, "with 0 < low <= high"),
    ("tool_turns", {"turns": 0}, "turns is 0, it must be a whole number of at least 1"),
    ("code_writer", {"path": "/no/such/graph.json"}, "cannot read the workload file /no/such/graph.json"),
    ("coding_sessions", {"horizon_s": None}, "horizon_s is None"),
    ("coding_sessions", {"tool_wait": "tracelab.shell"}, "a name from tool_latency.json"),
    ("coding_sessions", {"sub_agents": 1}, "true or false"),
    ("chat", {"prompt_tokens": {"kind": "lognormal"}}, "prompt_tokens is"),
    ("mix", {}, "a list of objects with name"),
    ("mix", {"parts": [{"name": "chat", "qps": 1}]}, "a list of objects with name"),
    ("mix", {"parts": [{"name": "chat", "tenant": 7}]}, "a list of objects with name"),
    ("mix", {"parts": [{"name": "chat", "label": "a"}, {"name": "chat", "label": "a-2"}, {"name": "chat",
             "label": "a"}]}, "two parts have the label 'a-2'"),
])
def test_a_wrong_value_is_refused_with_what_is_allowed(name: str, params: dict, words: str) -> None:
    with pytest.raises(ValueError) as refused:
        build(WorkloadSpec(name, params=params))
    assert words in str(refused.value)


def test_the_programs_of_a_part_are_of_its_tenant() -> None:
    parts = [{"name": "chat", "tenant": "a", "params": {"chats": 2}},
             {"name": "chat", "label": "b", "params": {"chats": 1}}]
    programs = build(WorkloadSpec("mix", params={"parts": parts})).programs
    assert sorted((program.app_id.split("/")[0], program.tenant) for program in programs) == [
        ("b", ""), ("chat", "a"), ("chat", "a")]


@pytest.mark.parametrize("name", ["code_writer", "deep_research"])
def test_clients_of_graphs_may_ask_for_more_tokens_than_they_use(name: str) -> None:
    calls = build(WorkloadSpec(name, params={"applications": 1, "max_new_tokens": 300})).programs[0].calls
    assert all(call.max_new_tokens == max(300, call.output_tokens) for call in calls)
    assert any(call.max_new_tokens > call.output_tokens for call in calls)
    exact = build(WorkloadSpec(name, params={"applications": 1})).programs[0].calls
    assert [call.output_tokens for call in exact] == [call.output_tokens for call in calls]
    assert {call.max_new_tokens for call in exact} == {None}


def test_poisson_arrivals_keep_their_pattern_at_another_rate_and_even_ones_are_spaced() -> None:
    def starts(**params) -> list[float]:
        programs = build(WorkloadSpec("code_writer", params={"applications": 400, **params})).programs
        return [program.arrival_s for program in programs]

    assert starts(qps=0.5) == pytest.approx([2 * start for start in starts(qps=1.0)])
    assert starts(qps=2.0)[-1] == pytest.approx(200, rel=0.1)
    assert starts(arrival="even", qps=4.0)[:3] == [0.0, 0.25, 0.5]


def test_closed_loops_keep_programs_in_lanes_with_a_ramp_and_pauses() -> None:
    params = {"applications": 7, "arrival": "closed", "lanes": 3, "ramp_s": 6.0, "pause_s": 1.5}
    programs = build(WorkloadSpec("code_writer", params=params)).programs
    assert [(program.lane, program.arrival_s) for program in programs] == [
        (0, 0.0), (1, 2.0), (2, 4.0), (0, 1.5), (1, 1.5), (2, 1.5), (0, 1.5)]


def test_the_forecast_knob_changes_what_clients_say_and_not_what_happens() -> None:
    def tools(knob) -> list:
        programs = build(WorkloadSpec("code_writer", params={"applications": 40, "forecast": knob})).programs
        return [call.tool for program in programs for call in program.calls if call.tool]

    exact = tools("exact")
    assert all(tool.forecast_s == tool.duration_s for tool in exact)
    for knob in ("none", {"factor": 2}, {"lognormal_sigma": 1.0}, {"uniform_factor": [0.5, 2]},
                 {"loguniform_factor": [0.5, 2]}):
        assert [tool.duration_s for tool in tools(knob)] == [tool.duration_s for tool in exact]
    assert {tool.forecast_s for tool in tools("none")} == {None}
    assert {tool.forecast_s / tool.duration_s for tool in tools({"factor": 2})} == {2.0}
    spread = sorted(tool.forecast_s / tool.duration_s for tool in tools({"lognormal_sigma": 1.0}))
    assert spread[len(spread) // 2] == pytest.approx(1.0, rel=0.15)
    assert spread[int(0.84 * len(spread))] == pytest.approx(2.72, rel=0.2)
    even = [tool.forecast_s / tool.duration_s for tool in tools({"uniform_factor": [0.5, 2]})]
    assert 0.5 <= min(even) < 0.55 and 1.9 < max(even) <= 2
    halves = sorted(tool.forecast_s / tool.duration_s for tool in tools({"loguniform_factor": [0.5, 2]}))
    assert 0.5 <= halves[0] < 0.52 and 1.92 < halves[-1] <= 2
    assert halves[len(halves) // 2] == pytest.approx(1.0, rel=0.1), "too short as often as too long"


def test_a_tool_turn_adds_the_answer_and_a_result_and_waits_for_a_tool_of_unequal_length() -> None:
    params = {"agents": 40, "turns": 3, "result_tokens": 9, "output_tokens": 7}
    programs = build(WorkloadSpec("tool_turns", params=params)).programs
    for program in programs:
        first, second, third = program.calls
        assert 16_000 <= first.prompt[0].tokens <= 56_000 and first.prompt[0].key.startswith(program.app_id)
        assert second.prompt == (*first.prompt, Output(first.name), Text(f"{program.app_id}/result-0", 9))
        assert third.prompt[: len(second.prompt)] == second.prompt and third.tool is None and third.last_of_agent
    tools = sorted(call.tool.duration_s for program in programs for call in program.calls if call.tool)
    assert 2 <= tools[0] < 3 and 50 < tools[-1] <= 60 and tools[len(tools) // 2] == pytest.approx(11, rel=0.3)
    assert [(program.lane, program.arrival_s) for program in programs[:2]] == [(0, 0.0), (1, 15.0)]


def test_a_mix_renames_its_parts_keeps_lanes_apart_and_shares_what_programs_share() -> None:
    part = {"name": "code_writer", "params": {"applications": 2, "arrival": "closed", "lanes": 2}}
    programs = build(WorkloadSpec("mix", params={"parts": [part, part, {"name": "chat", "params": {"chats": 2}}]})
                     ).programs
    assert {program.app_id for program in programs} == {
        "code_writer/code_writer-000", "code_writer/code_writer-001", "code_writer-1/code_writer-000",
        "code_writer-1/code_writer-001", "chat/chat-000", "chat/chat-001"}
    assert {program.lane for program in programs} == {0, 1, 2, 3, None}
    firsts = [program.calls[0] for program in programs if program.calls[0].agent_type == "architect"]
    assert len({call.prompt[0].key for call in firsts}) == 1
    assert len({call.prompt[1].key for call in firsts}) == 4
    assert all(call.prompt[1].key.startswith(program.app_id) for program in programs for call in program.calls[:1]
               if len(call.prompt) > 1)


def test_a_mix_ends_with_its_last_part_or_when_it_is_told_to() -> None:
    parts = [{"name": "coding_sessions", "params": {"sessions": 1, "horizon_s": 50.0}},
             {"name": "chat", "params": {"chats": 1}}]
    assert build(WorkloadSpec("mix", params={"parts": parts})).horizon_s is None
    assert build(WorkloadSpec("mix", params={"parts": parts[:1]})).horizon_s == 50.0
    assert build(WorkloadSpec("mix", params={"parts": parts, "horizon_s": 70.0})).horizon_s == 70.0


def test_a_chat_repeats_its_conversation_and_has_no_agent() -> None:
    params = {"chats": 1, "turns": 3, "think_s": 5.0, "system_tokens": 9, "max_new_tokens": 4096}
    program = build(WorkloadSpec("chat", params=params)).programs[0]
    first, second, third = program.calls
    assert third.prompt[: len(second.prompt) + 1] == (*second.prompt, Output(second.name))
    assert [call.delay_s for call in program.calls] == [0.0, 5.0, 5.0]
    assert first.prompt[0].tokens == 9 and {call.agent for call in program.calls} == {""}
    assert {call.max_new_tokens for call in program.calls} == {4096}


def test_the_summary_counts_every_shared_prefix_once() -> None:
    summary = describe(build(WorkloadSpec("tracelab")))
    # session 0: 512+64 +128+64 +128+64, session 1: 400+48 +100+48, session 2: 600+64 +120+48 +80+48
    assert summary["distinct_tokens"] == 960 + 596 + 960
    assert (summary["programs"], summary["calls"], summary["tools"], summary["agents"]) == (3, 8, 5, 3)
    assert summary["prompt_tokens"] == 512 + 704 + 896 + 400 + 548 + 600 + 784 + 864
    assert summary["reusable_share"] == pytest.approx((576 + 768 + 448 + 664 + 784) / summary["prompt_tokens"])
    assert summary["tool_s"] == pytest.approx(0.38)


def test_every_parameter_and_workload_stands_in_the_docs() -> None:
    text = (ROOT / "docs/workloads.md").read_text(encoding="utf-8")
    for name in names():
        assert f"### {name}\n" in text, name
        section = text.split(f"### {name}\n")[1].split("\n### ")[0].split("\n## ")[0]
        for parameter in parameters(name):
            assert f"`{parameter}`" in section, f"{name}: {parameter}"
