"""A trace on disk: layouts, what is there after a kill at any moment, and a disk that fails."""

from __future__ import annotations

import csv
import errno
import json
import logging
import os
import stat

import pytest

from tokencake_sglang.core.errors import TokenCakeError
from tokencake_sglang.core.recording import Row, Wait
from tokencake_sglang.engine.trace_file import CSV_COLUMNS, MAX_MS, TraceFile

FIRST = Row(0, 5, 5, 0, 0, 700, 30, [0, 1], "coder", 0)
SECOND = Row(0, 5, 2005, 1, 730, 900, 31, [0, 2], None, 700)


def test_csv_is_tracelabs_layout(tmp_path):
    file = TraceFile(str(tmp_path / "t.csv"))
    ref = file.row(FIRST)
    file.row(SECOND)
    file.wait(ref, Wait(1000, "search", 5, 6))
    text = (tmp_path / "t.csv").read_text()
    assert text == CSV_COLUMNS + "\n0,5,0,0,700,30,0000001000\n0,5,1,730,170,31,0000000000\n"
    assert [int(row["tool_wait_after_ms"]) for row in csv.DictReader(text.splitlines())] == [1000, 0]


def test_jsonl_is_mooncakes_layout_with_more_fields(tmp_path):
    file = TraceFile(str(tmp_path / "t.jsonl"))
    ref = file.row(FIRST)
    file.row(SECOND)
    file.wait(ref, Wait(1000, "search", 900, 950))
    first, second = (json.loads(line) for line in (tmp_path / "t.jsonl").read_text().splitlines())
    assert list(first)[:4] == ["timestamp", "input_length", "output_length", "hash_ids"]
    assert first == {
        "timestamp": 5, "input_length": 700, "output_length": 30, "hash_ids": [0, 1], "session_id": 0, "round_idx": 0,
        "prefix_len": 0, "cached_tokens": 0, "agent_type": "coder", "tool_wait_after_ms": 1000, "tool_kind": "search",
        "tool_forecast_ms": 900, "tool_ms": 950}
    assert second["tool_kind"] is second["agent_type"] is None and second["tool_wait_after_ms"] == 0


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
@pytest.mark.parametrize("wait", [
    Wait(10**15, "x" * 256, 10**15, 10**15), Wait(1, '"' * 256, 1, 1), Wait(1, "\u6587\U0001f600" * 128, 1, 1),
    Wait(1, "tab\tline\n", 0, 0)])
def test_the_longest_and_oddest_wait_fits_into_the_place_that_is_kept_for_it(tmp_path, ending, wait):
    path = tmp_path / f"t.{ending}"
    file = TraceFile(str(path))
    refs = [file.row(FIRST), file.row(SECOND), file.row(FIRST)]
    size = path.stat().st_size
    file.wait(refs[1], wait)
    lines = path.read_text().splitlines()
    assert path.stat().st_size == size and len(lines) == 3 + (ending == "csv")
    assert lines[-1] == lines[-3]
    if ending == "jsonl":
        row = json.loads(lines[1])
        assert row["tool_wait_after_ms"] == min(wait.wait_ms, MAX_MS) and wait.tool_kind.startswith(row["tool_kind"])
        assert row["tool_kind"]


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_every_row_is_in_the_file_as_soon_as_it_is_known(tmp_path, ending):
    path = tmp_path / f"t.{ending}"
    file = TraceFile(str(path))
    for count in range(1, 4):
        file.row(FIRST)
        assert path.read_text().count("\n") == count + (ending == "csv") and path.read_text().endswith("\n")


def test_a_file_that_holds_something_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("yesterday\n")
    with pytest.raises(TokenCakeError, match="not empty"):
        TraceFile(str(path))
    assert path.read_text() == "yesterday\n"


def test_what_is_not_a_file_or_cannot_be_made_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.csv")
    for path in (tmp_path / "pipe.csv", tmp_path / "missing" / "t.csv", tmp_path):
        with pytest.raises(TokenCakeError, match="cannot be written"):
            TraceFile(str(path))
    assert stat.S_ISFIFO((tmp_path / "pipe.csv").stat().st_mode)
    with pytest.raises(TokenCakeError, match="not a file"):
        TraceFile("/dev/null")


def test_a_full_disk_loses_whole_rows_is_logged_once_and_the_recording_goes_on(tmp_path, monkeypatch, caplog):
    path = tmp_path / "t.csv"
    file = TraceFile(str(path))
    first = file.row(FIRST)
    real, room = os.pwrite, [10]

    def full(descriptor: int, data: bytes, at: int) -> int:
        if not room[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = real(descriptor, data[:room[0]], at)
        room[0] -= written
        return written

    monkeypatch.setattr(os, "pwrite", full)
    with caplog.at_level(logging.WARNING):
        assert file.row(SECOND) is None and file.row(SECOND) is None
        file.wait(None, Wait(7))
        file.wait(first, Wait(7))
        assert path.read_text() == CSV_COLUMNS + "\n0,5,0,0,700,30,0000000000\n"
        monkeypatch.setattr(os, "pwrite", real)
        file.wait(first, Wait(8))
        file.row(SECOND)
    assert path.read_text().endswith("\n0,5,0,0,700,30,0000000008\n0,5,1,730,170,31,0000000000\n")
    assert file.lost == 3 and [record.levelname for record in caplog.records] == ["ERROR", "WARNING"]
