"""The flag that records: its two names, its path, and what cannot be recorded."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest

from tokencake_sglang import launch_server, serving
from tokencake_sglang.core.errors import ConfigError
from tokencake_sglang.server import options, record


@pytest.mark.parametrize("words", [["--record", "day.csv"], ["--tokencake-record=day.csv"]])
def test_either_name_gives_the_absolute_path_with_and_without_tokencake(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for switch in ([], ["--enable-tokencake"]):
        ours, rest = options.split(["--model-path", "m", *words, *switch])
        assert rest == ["--model-path", "m"]
        assert (options.config_from_flags(ours) is None) == (not switch)
        assert options.recording_from_flags(ours) == str(tmp_path / "day.csv")
    assert list(tmp_path.iterdir()) == []


def test_without_the_flag_nothing_is_recorded():
    assert options.recording_from_flags(options.split(["--model-path", "m"])[0]) is None


def test_sglang_has_no_flag_of_that_name():
    for flag in ("--record", record.FLAG):
        with pytest.raises(SystemExit):
            launch_server.parse_given(["--model-path", "m", flag, "x"])


@pytest.mark.parametrize(("path", "said"), [
    ("day.txt", "ends in '.txt'; allowed: .csv, .jsonl"), ("day", "ends in ''"), ("no/day.csv", "there is no folder"),
    ("full.csv", "holds 4 bytes already"), ("folder.csv", "is not a file"), ("/dev/null/x.csv", "there is no folder"),
    ("/proc/day.csv", "cannot be written"),
])
def test_a_path_that_cannot_be_written_ends_the_start_with_one_line(path, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full.csv").write_text("full")
    (tmp_path / "folder.csv").mkdir()
    assert launch_server.main(["--model-path", "m", "--record", path]) == 2
    captured = capsys.readouterr()
    assert said in captured.err and captured.err.count("\n") == 1
    assert (tmp_path / "full.csv").read_text() == "full" and len(os.listdir(tmp_path)) == 2


def test_an_empty_file_is_used(tmp_path):
    (tmp_path / "day.jsonl").touch()
    assert record.check_path(str(tmp_path / "day.jsonl")) == str(tmp_path / "day.jsonl")
    assert (tmp_path / "day.jsonl").exists()


def test_what_cannot_be_recorded_is_named_and_an_ordinary_server_is_not_refused():
    fine, _ = launch_server.parse_given(["--model-path", "m", "--tp", "2"])
    record.check(fine)
    for name, (allowed, reason) in record.REFUSED.items():
        with pytest.raises(ConfigError, match=reason) as caught:
            record.check(SimpleNamespace(**{**vars(fine), name: True if allowed[0] is False else "other"}))
        assert "--" + name.replace("_", "-") in str(caught.value)


def test_the_notice_says_where_a_recording_goes():
    for config in (None, serving.TokenCakeConfig()):
        assert "to /x/day.csv" in serving.notice(config, "cpu", {}, None, "/x/day.csv")
        assert "recording" not in serving.notice(config, "cpu", {}, None)
