"""The two program graphs reproduce every figure their files state, and each prompt shares what the file says."""

from __future__ import annotations

import json
from collections import Counter
from importlib.resources import files

import pytest

from tokencake_sglang.emulator.program import Output, Program, Text
from tokencake_sglang.emulator.spec import WorkloadSpec
from tokencake_sglang.emulator.workloads import build
from tokencake_sglang.emulator.workloads.parts import common_prefix, output_lengths, prompt_tokens

CASES = [("code_writer", "append_tools128"), ("code_writer", "artifact"), ("deep_research", "artifact")]


def figures(name: str) -> dict:
    return json.loads((files("tokencake_sglang.emulator") / f"data/{name}.json").read_text())


def one_app(name: str, profile: str, **params) -> Program:
    return build(WorkloadSpec(name, params={"profile": profile, "applications": 1, **params})).programs[0]


def nodes_that_call(name: str) -> dict[str, dict]:
    return {node["id"]: node for node in figures(name)["nodes"] if node["llm_call"]}


@pytest.mark.parametrize(("name", "profile"), CASES)
def test_every_prompt_is_as_long_as_the_file_says(name: str, profile: str) -> None:
    program = one_app(name, profile)
    outputs = output_lengths(program)
    expected = {node["id"]: node["expected_prompt_tokens"][profile] for node in nodes_that_call(name).values()}
    assert {call.name: prompt_tokens(call.prompt, outputs) for call in program.calls} == expected


@pytest.mark.parametrize(("name", "profile"), [CASES[0], CASES[2]])
def test_an_appended_prompt_starts_with_its_first_parents_prompt_and_kept_output(name: str, profile: str) -> None:
    program = one_app(name, profile)
    outputs, calls = output_lengths(program), {call.name: call for call in program.calls}
    for node in nodes_that_call(name).values():
        call = calls[node["id"]]
        if not call.after:
            assert node["shared_prefix_tokens"][profile] == 0
            continue
        parent = calls[call.after[0]]
        reusable = (*parent.prompt, Output(parent.name))
        assert common_prefix(call.prompt, reusable, outputs) == node["shared_prefix_tokens"][profile], call.name


def test_in_the_artifact_profile_a_prompt_shares_at_most_role_texts_with_its_first_parent() -> None:
    program = one_app("code_writer", "artifact")
    outputs, calls = output_lengths(program), {call.name: call for call in program.calls}
    for name, node in nodes_that_call("code_writer").items():
        if calls[name].after:
            shared = common_prefix(calls[name].prompt, calls[calls[name].after[0]].prompt, outputs)
            assert shared in (0, node["own_prompt_tokens"]), name


def test_code_writer_has_the_published_counts() -> None:
    checks = figures("code_writer")["checks"]
    for profile in ("append_tools128", "artifact"):
        calls = one_app("code_writer", profile).calls
        assert len(calls) == checks["llm_calls"]["published"] == 27
        assert sum(call.output_tokens for call in calls) == checks["output_tokens"][profile]["published"]
        assert sum(call.critical for call in calls) == checks["critical_llm_calls"]["here"]
        assert sum(call.tool.duration_s for call in calls if call.tool) == pytest.approx(66.9)
    # 36 edges of the file less the one from `start` and the three to `end`, which make no calls
    assert sum(len(call.after) for call in calls) == checks["edges"]["published"] - 4


@pytest.mark.parametrize(("profile", "mean"), [
    ("append_tools128", 9067.4), ("append_full", 11106.6), ("artifact", 8365.8)])
def test_code_writers_mean_prompt_is_the_published_one(profile: str, mean: float) -> None:
    program = one_app("code_writer", profile)
    outputs = output_lengths(program)
    assert sum(prompt_tokens(call.prompt, outputs) for call in program.calls) / 27 == pytest.approx(mean, abs=0.06)
    assert sum(outputs.values()) == figures("code_writer")["profiles"][profile]["output_tokens_per_app"]


def test_deep_research_has_the_counts_of_its_file() -> None:
    program = one_app("deep_research", "artifact")
    outputs, checks = output_lengths(program), figures("deep_research")["checks"]
    assert len(program.calls) == checks["llm_calls"] == 32
    mean = sum(prompt_tokens(call.prompt, outputs) for call in program.calls) / 32
    assert mean == pytest.approx(checks["mean_prompt_tokens_here"], abs=0.06)
    assert sum(call.tool.duration_s for call in program.calls if call.tool) == pytest.approx(checks["all_tools_sum"])


@pytest.mark.parametrize(("name", "profile"), CASES)
def test_the_calls_of_one_agent_follow_one_another_and_only_the_last_ends_it(name: str, profile: str) -> None:
    program = one_app(name, profile)
    latest: dict[str, str] = {}
    for call in program.calls:
        if call.agent in latest:
            assert latest[call.agent] == call.after[0]
        latest[call.agent] = call.name
    assert sorted(call.name for call in program.calls if call.last_of_agent) == sorted(latest.values())


def test_the_main_conversation_of_code_writer_runs_through_to_the_last_write() -> None:
    agents = Counter(call.agent for call in one_app("code_writer", "append_tools128").calls)
    assert agents == {
        "architect_1": 14, "programmer_2_validate": 3, "programmer_3_validate": 3, "reviewer_2": 4,
        "reviser_2_validate": 3}


def test_applications_share_role_texts_and_the_header_and_nothing_else() -> None:
    first, second = build(WorkloadSpec("code_writer", params={"applications": 2})).programs
    keys = [{part.key for call in program.calls for part in call.prompt if isinstance(part, Text)}
            for program in (first, second)]
    assert all("/role/" in key or key.endswith("/header") for key in keys[0] & keys[1])
    assert common_prefix(first.calls[0].prompt, second.calls[0].prompt, {}) == 6
    assert len(keys[0] & keys[1]) > 5


def test_parents_come_before_their_children() -> None:
    for name, profile in CASES:
        seen: set[str] = set()
        for call in one_app(name, profile).calls:
            assert seen.issuperset(call.after)
            seen.add(call.name)


def test_tool_noise_changes_durations_around_the_mean_and_nothing_else() -> None:
    exact = one_app("code_writer", "append_tools128")
    noisy = build(WorkloadSpec("code_writer", params={
        "applications": 200, "tool_noise": "gaussian", "tool_noise_scale": 0.25})).programs
    means = {call.name: call.tool.duration_s for call in exact.calls if call.tool}
    drawn = [call.tool.duration_s / means[call.name] for app in noisy for call in app.calls if call.tool]
    assert sum(drawn) / len(drawn) == pytest.approx(1.0, abs=0.02)
    assert (sum((ratio - 1) ** 2 for ratio in drawn) / len(drawn)) ** 0.5 == pytest.approx(0.25, abs=0.02)
    assert noisy[0].calls[1].tool.forecast_s == exact.calls[1].tool.duration_s
    uniform = one_app("code_writer", "append_tools128", tool_noise="uniform", tool_noise_scale=0.5)
    ratios = [call.tool.duration_s / means[call.name] for call in uniform.calls if call.tool]
    assert 0.5 <= min(ratios) < 0.8 and 1.2 < max(ratios) <= 1.5


def test_the_default_forecast_of_an_overridden_tool_is_its_kinds_not_its_own() -> None:
    program = one_app("code_writer", "append_tools128", forecast="default")
    told = {call.name: call.tool for call in program.calls if call.tool}
    assert (told["plan_write"].duration_s, told["plan_write"].forecast_s) == (0.1, 1.7)
    assert (told["programmer_1_validate"].duration_s, told["programmer_1_validate"].forecast_s) == (8.0, 2.0)


def test_a_users_graph_contracts_its_local_nodes(tmp_path) -> None:
    edge = {"append": {"mine": ["conversation", "llm_output"]}, "join_order": 0}
    node = {"kind": "llm", "llm_call": True, "agent_type": "worker", "own_prompt_tokens": 5,
            "max_new_tokens": {"mine": 10}, "critical": False}
    graph = {
        "schema": "agent-dag/1", "name": "mine", "profiles": {"mine": {}},
        "initial_context": {"cross_application_shared_prefix_tokens": 6, "observed_mean_tokens": 100},
        "nodes": [{"id": "c", **node}, {"id": "a", **node}, {"id": "b", "kind": "local", "llm_call": False}],
        "edges": [{"src": "a", "dst": "b", **edge}, {"src": "b", "dst": "c", **edge}]}
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(graph))
    calls = build(WorkloadSpec("dag", params={"path": str(path), "applications": 1})).programs[0].calls
    assert [(call.name, call.after) for call in calls] == [("a", ()), ("c", ("a",))]
    assert prompt_tokens(calls[1].prompt, {"a": 10}) == 100 + 5 + 10 + 5
    graph["edges"].append({"src": "c", "dst": "a", **edge})
    path.write_text(json.dumps(graph))
    with pytest.raises(ValueError, match="cycle"):
        build(WorkloadSpec("dag", params={"path": str(path)}))


def test_a_wrong_profile_or_a_missing_path_is_refused_with_what_there_is() -> None:
    with pytest.raises(ValueError, match="append_tools128, append_full"):
        one_app("code_writer", "append")
    with pytest.raises(ValueError, match="path of a graph file"):
        build(WorkloadSpec("dag"))
