"""The diagnosis of an installation: this one passes, and each broken part is named with its mend."""

from __future__ import annotations

import importlib.metadata

import pytest

from tokencake_sglang import doctor


def test_every_check_reports_something_and_the_status_tells_whether_all_are_ok(capsys):
    status = doctor.main([])
    lines = capsys.readouterr().out.splitlines()
    results = doctor.diagnose()
    assert [name for name, _ in results] == [name for name, _ in doctor.CHECKS]
    assert all(finding.found for _, finding in results)
    assert status == int(any(not finding.ok for _, finding in results))
    assert sum(line.startswith(("ok  ", "FAIL")) for line in lines) == len(doctor.CHECKS)


def test_another_release_of_sglang_fails_with_the_command_that_mends_it(monkeypatch, capsys):
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.5.16")
    assert doctor.main([]) == 1
    text = capsys.readouterr().out
    assert "FAIL  SGLang: 0.5.16" in text and "pip install sglang==0.5.17" in text


def test_our_own_wheel_of_the_right_release_is_ok(monkeypatch):
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.5.17+tokencake.1")
    assert doctor.check_sglang().ok


def test_a_plugin_list_that_leaves_ours_out_fails(monkeypatch):
    monkeypatch.setenv("SGLANG_PLUGINS", "tokencake")
    assert "tokencake_cpu" in doctor.check_plugins_variable().found
    monkeypatch.setenv("SGLANG_PLUGINS", "tokencake,tokencake_cpu")
    assert doctor.check_plugins_variable().ok


def test_missing_entry_points_fail(monkeypatch):
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [])
    assert not doctor.check_entry_points().ok


def test_a_check_that_breaks_is_a_failed_check_and_the_others_still_run(monkeypatch):
    def broken():
        raise OSError("no such thing")

    monkeypatch.setattr(doctor, "CHECKS", (("first", broken), ("second", doctor.check_python)))
    (_, first), (_, second) = doctor.diagnose()
    assert not first.ok and first.found == "OSError: no such thing" and second.ok


def test_unknown_arguments_are_refused():
    with pytest.raises(SystemExit):
        doctor.main(["--nonsense"])
