"""The ready tools: their kinds, their durations, and what their own functions do."""

from __future__ import annotations

import sys

import pytest

import tokencake_sglang as tc
from tokencake_sglang.core.graph import TOOL_SECONDS


def given(*_args):
    return "mine"


@pytest.mark.parametrize("kind", [kind for kind in TOOL_SECONDS if kind != "local"])
def test_a_ready_tool_has_its_kind_and_takes_what_its_kind_takes(kind):
    tool = getattr(tc.nodes, kind)(given)
    assert (tool.name, tool.kind, tool.predict_time) == (kind, kind, TOOL_SECONDS[kind])
    assert tool("x") == "mine"


def test_durations_and_names_of_your_own_replace_the_ready_ones():
    tool = tc.nodes.search(given, name="web", predict_time=9.0)
    assert (tool.name, tool.kind, tool.predict_time, tool.stages) == ("web", "search", 9.0, ())
    assert tc.nodes.data_analysis(given, stages=[tc.Stage("all", 3.0)]).predict_time == 3.0
    tool = tc.nodes.search(given, hint=(0.5, 2.0), timeout=30)
    assert (tool.predict_time, tool.p90, tool.stages, tool.timeout) == (0.5, 2.0, (), 30)
    tool = tc.nodes.search(given, hint="varying")
    assert (tool.predict_time, tool.p90, len(tool.stages)) == (4.0, 12.0, 4)


def test_a_ready_tool_decorates_a_function():
    @tc.nodes.data_analysis
    def mean(values):
        return sum(values) / len(values)

    assert mean([1, 3]) == 2
    assert [stage.name for stage in mean.stages] == ["load", "analysis"]


def test_files_are_written_read_and_searched(tmp_path):
    path = str(tmp_path / "a.txt")
    assert tc.nodes.file_write()(path, "one\ntwo\nten\n") == 12
    assert tc.nodes.file_read()(path) == "one\ntwo\nten\n"
    assert tc.nodes.file_query()(path, "t") == ["two", "ten"]


@pytest.mark.parametrize(("typed", "answer"), [("y", True), (" YES ", True), ("n", False), ("", False)])
def test_the_user_is_asked_on_the_terminal(monkeypatch, typed, answer):
    monkeypatch.setattr("builtins.input", lambda question: typed)
    assert tc.nodes.user_confirm()("Write the file?") is answer


@pytest.mark.parametrize(("code", "passed"), [("print('fine')", True), ("print('fine'); raise SystemExit(3)", False)])
def test_a_test_program_runs_in_its_folder_and_says_whether_it_passed(tmp_path, code, passed):
    run = tc.nodes.external_test()
    assert run([sys.executable, "-c", code], str(tmp_path)) == (passed, "fine\n")


def test_what_is_no_function_is_refused():
    with pytest.raises(TypeError, match=r"nodes\.search: found 7; allowed is a function"):
        tc.nodes.search(7)
