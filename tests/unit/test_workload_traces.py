"""Traces become programs with the lengths and the sharing they state; a line that cannot be read is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tokencake_sglang.emulator.program import Output, Text, ToolCall, Workload
from tokencake_sglang.emulator.spec import WorkloadSpec
from tokencake_sglang.emulator.workloads import build, describe
from tokencake_sglang.emulator.workloads.parts import output_lengths, prompt_tokens

HEADER = "session_id,arrival_time,round_idx,prefix_len,input_len,output_len,tool_wait_after_ms"


def tracelab(tmp_path: Path, *lines: str, header: str = HEADER, **params) -> Workload:
    path = tmp_path / "day.csv"
    path.write_text("\n".join((header, *lines)) + "\n")
    return build(WorkloadSpec("tracelab", params={"path": str(path), **params}))


def mooncake(tmp_path: Path, *entries: dict, **params) -> Workload:
    path = tmp_path / "day.jsonl"
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return build(WorkloadSpec("mooncake", params={"path": str(path), **params}))


def test_the_shipped_sample_becomes_three_sessions_that_append() -> None:
    programs = build(WorkloadSpec("tracelab")).programs
    assert [(program.arrival_s, len(program.calls)) for program in programs] == [(0.0, 3), (0.2, 2), (0.5, 3)]
    first, second, third = programs[0].calls
    assert second.prompt == (*first.prompt, Output(first.name), Text("multi_session_example-0/round-0001", 128))
    assert third.after == (second.name,) and second.tool == ToolCall("tool", 0.1, 0.1)
    assert third.tool is None and third.last_of_agent and not second.last_of_agent


def test_a_shorter_prefix_cuts_inside_texts_and_outputs(tmp_path: Path) -> None:
    program = tracelab(tmp_path, "a,0,0,0,100,20,5", "a,0,1,110,30,20,0", "a,0,2,60,5,1,0", "a,0,4,0,7,1,0").programs[0]
    cut_output, cut_text, new = (call.prompt for call in program.calls[1:])
    assert cut_output == (Text("day-a/round-0000", 100), Output("round-0000", 10), Text("day-a/round-0001", 30))
    assert cut_text == (Text("day-a/round-0000", 60), Text("day-a/round-0002", 5))
    assert new == (Text("day-a/round-0004", 7),)
    lengths = output_lengths(program)
    assert [prompt_tokens(call.prompt, lengths) for call in program.calls] == [100, 140, 65, 7]


def test_what_a_prefix_claims_beyond_the_round_before_is_new_text(tmp_path: Path) -> None:
    program = tracelab(tmp_path, "a,0,0,0,100,20,0", "a,0,1,150,30,20,0").programs[0]
    assert program.calls[1].prompt == (
        Text("day-a/round-0000", 100), Output("round-0000"), Text("day-a/round-0001", 60))


def test_first_prefixes_are_one_text_for_all_sessions(tmp_path: Path) -> None:
    first, second = tracelab(tmp_path, "a,0,0,50,10,5,0", "b,9,0,80,10,5,0").programs
    assert (first.calls[0].prompt[0], second.calls[0].prompt[0]) == (Text("day/system", 50), Text("day/system", 80))
    assert describe(Workload("both", (first, second)))["distinct_tokens"] == 80 + 2 * (10 + 5)


def test_a_window_of_sessions_starts_at_zero_and_may_be_faster(tmp_path: Path) -> None:
    lines = ["late,9000,0,0,10,5,2000", "late,9000,1,15,10,5,0", "early,1000,0,0,10,5,0", "mid,5000,0,0,10,5,0"]
    programs = tracelab(tmp_path, *lines, start_s=2.0, speed=2.0).programs
    assert [(program.app_id, program.arrival_s) for program in programs] == [("day-mid", 1.5), ("day-late", 3.5)]
    assert programs[1].calls[0].tool.duration_s == 2.0
    assert [program.app_id for program in tracelab(tmp_path, *lines, limit=1).programs] == ["day-early"]


def test_without_arrival_times_the_arrivals_must_be_given(tmp_path: Path) -> None:
    header = HEADER.replace("arrival_time,", "")
    with pytest.raises(ValueError, match=r"day.csv:1: no column arrival_time; add it \(ms\) or give arrival poisson"):
        tracelab(tmp_path, "a,0,0,10,5,0", header=header)
    programs = tracelab(tmp_path, "a,0,0,10,5,0", "b,0,0,10,5,0", header=header, arrival="even", qps=0.5).programs
    assert [program.arrival_s for program in programs] == [0.0, 2.0]


@pytest.mark.parametrize(("line", "words"), [
    ("a,0,1,15,x,5,0", "day.csv:3: input_len is 'x'; it must be a number of at least 0"),
    ("a,0,1,15,-3,5,0", "day.csv:3: input_len is '-3'"),
    ("a,0,1,15,2.5,5,0", "day.csv:3: input_len is '2.5'; it must be a whole number"),
    ("a,0,1,15,10,0,0", "day.csv:3: output_len is '0'; it must be a whole number of at least 1"),
    ("a,0,0,15,10,5,0", "day.csv:3: round_idx is 0 after 0 of session a"),
    ("a,0,1,0,0,5,0", "day.csv:3: prefix_len and input_len are both 0"),
    ("a,0,1,15,10,5", "day.csv:3: not as many values as the 7 columns"),
    ("a,0,1,15,10,5,nan", "day.csv:3: tool_wait_after_ms is 'nan'"),
])
def test_a_bad_round_is_named_by_file_and_line(tmp_path: Path, line: str, words: str) -> None:
    with pytest.raises(ValueError) as refused:
        tracelab(tmp_path, "a,0,0,0,10,5,0", line)
    assert words in str(refused.value)


def test_a_missing_column_an_empty_file_and_an_empty_window_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="day.csv:1: no column output_len"):
        tracelab(tmp_path, header=HEADER.replace("output_len,", ""))
    with pytest.raises(ValueError, match="no round in it"):
        tracelab(tmp_path)
    with pytest.raises(ValueError, match="no session arrives at 7 s or later"):
        tracelab(tmp_path, "a,0,0,0,10,5,0", start_s=7)


def test_the_shipped_mooncake_slice_has_its_published_statistics() -> None:
    workload = build(WorkloadSpec("mooncake"))
    summary = describe(workload)
    assert summary["programs"] == summary["calls"] == 4000 and summary["agents"] == 0
    assert summary["prompt_tokens_mean"] == pytest.approx(13312, abs=1)
    assert summary["output_tokens_mean"] == pytest.approx(347, abs=1)
    assert summary["last_arrival_s"] == pytest.approx(1302, abs=1)
    assert summary["reusable_share"] == pytest.approx(0.33, abs=0.005)
    blocks = {part.key for program in workload.programs for part in program.calls[0].prompt}
    assert len(blocks) == 71424


def test_a_prompt_is_its_blocks_and_the_last_may_be_short(tmp_path: Path) -> None:
    workload = mooncake(
        tmp_path, {"timestamp": 4000, "input_length": 1024, "output_length": 2, "hash_ids": [0, 7]},
        {"timestamp": 1000, "input_length": 513, "output_length": 2, "hash_ids": [0, 1]})
    earlier, later = workload.programs
    assert earlier.calls[0].prompt == (Text("day/block/0", 512), Text("day/block/1", 1))
    assert later.calls[0].prompt == (Text("day/block/0", 512), Text("day/block/7", 512))
    assert (earlier.arrival_s, later.arrival_s) == (1.0, 4.0)


def session_lines() -> list[dict]:
    line = {"input_length": 100, "output_length": 2, "hash_ids": [0], "agent_type": "coder"}
    return [
        {**line, "timestamp": 0, "session_id": "s", "tool_wait_after_ms": 1500}, {**line, "timestamp": 500},
        {**line, "timestamp": 9000, "session_id": "s", "tool_wait_after_ms": 0}]


def test_requests_of_a_session_follow_one_another_only_in_a_closed_loop(tmp_path: Path) -> None:
    session, single = mooncake(tmp_path, *session_lines(), closed_loop=True, forecast={"factor": 2}).programs
    first, second = session.calls
    assert second.after == (first.name,) and first.tool == ToolCall("tool", 1.5, 3.0) and second.tool is None
    assert (first.agent, first.agent_type, second.last_of_agent) == ("session", "coder", True)
    assert len(single.calls) == 1 and single.calls[0].agent == ""
    apart = mooncake(tmp_path, *session_lines()).programs
    assert [(len(program.calls), program.calls[0].tool, program.arrival_s) for program in apart] == [
        (1, None, 0.0), (1, None, 0.5), (1, None, 9.0)]


@pytest.mark.parametrize(("entry", "words"), [
    ({"input_length": 10, "output_length": 1, "hash_ids": [0]}, "day.jsonl:2: timestamp is missing"),
    ({"timestamp": 0, "input_length": 0, "output_length": 1, "hash_ids": []}, "day.jsonl:2: input_length is 0"),
    ({"timestamp": 0, "input_length": 513, "output_length": 1, "hash_ids": [0]},
     "day.jsonl:2: hash_ids is 1 ids; input_length 513 takes a list of 2 ids"),
    ({"timestamp": 0, "input_length": 10, "output_length": "many", "hash_ids": [0]}, "output_length is 'many'"),
    ([], "day.jsonl:2: list; each line must be one JSON object"),
])
def test_a_bad_request_is_named_by_file_and_line(tmp_path: Path, entry: dict, words: str) -> None:
    good = {"timestamp": 0, "input_length": 10, "output_length": 1, "hash_ids": [0]}
    with pytest.raises(ValueError) as refused:
        mooncake(tmp_path, good, entry)
    assert words in str(refused.value)


def test_a_line_that_is_no_json_is_named(tmp_path: Path) -> None:
    path = tmp_path / "day.jsonl"
    path.write_text('{"timestamp": 0\n')
    with pytest.raises(ValueError, match="day.jsonl:1: not JSON"):
        build(WorkloadSpec("mooncake", params={"path": str(path)}))
