"""`tokencake emulate` from the command line to the report, with real runs of the emulator."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
OWN = {
    "stock": {"server_args": {"schedule_policy": "lpm", "enable_hierarchical_cache": True}},
    "tokencake": {"tokencake": {"offload_policy": "eager"}, "server_args": {"schedule_policy": "lpm"}},
}
pytestmark = pytest.mark.timeout(600)


def emulate(*words: str) -> subprocess.CompletedProcess:
    env = dict(os.environ, PYTHONPATH=os.pathsep.join([str(ROOT / "python"), os.environ.get("PYTHONPATH", "")]))
    command = [sys.executable, "-m", "tokencake_sglang.cli", "emulate", *words]
    return subprocess.run(command, env=env, capture_output=True, text=True)


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    folder = tmp_path_factory.mktemp("emulate")
    (folder / "own.json").write_text(json.dumps(OWN))
    done = emulate("code_writer", "--apps", "2", "--pool", "20000", "--config-file", str(folder / "own.json"),
                   "--compare", "stock,tokencake", "--out", str(folder / "out"), "--plots", "none")
    assert done.returncode == 0, done.stderr
    return folder, done


def test_a_comparison_of_real_runs_is_equal_and_reported(comparison):
    folder, done = comparison
    report = json.loads((folder / "out/report.json").read_text())
    (cell,) = report["cells"]
    assert report["complete"] and cell["equal"] and cell["best_stock"] == "stock"
    ours = next(run for run in cell["runs"] if run["configuration"] == "tokencake")
    assert ours["counts"]["offloads"] > 0 and ours["counts"]["kv_bad_tokens"] == 0
    assert ours["pool_tokens"] == 20_000 and ours["counts"]["apps_completed"] == 2
    assert (folder / "out/report.md").read_text() in done.stdout
    assert "[2/2]" in done.stderr


def test_resuming_a_finished_comparison_runs_nothing_and_reports_the_same(comparison):
    folder, _ = comparison
    before = json.loads((folder / "out/report.json").read_text())
    again = emulate("code_writer", "--apps", "2", "--pool", "20000", "--config-file", str(folder / "own.json"),
                    "--compare", "stock,tokencake", "--out", str(folder / "out"), "--plots", "none", "--resume")
    assert again.returncode == 0 and again.stderr == "2 of 2 runs were finished before\n"
    assert json.loads((folder / "out/report.json").read_text())["cells"] == before["cells"]


def test_a_repeated_run_has_the_same_event_log(comparison):
    folder, _ = comparison
    done = emulate("--repeat-from", str(folder / "out/report.json"), "--compare", "tokencake",
                   "--out", str(folder / "again"), "--plots", "none")
    assert done.returncode == 0, done.stderr
    assert json.loads((folder / "again/report.json").read_text())["repeat"] == {"runs": 1, "differing": []}


def test_a_server_argument_that_sglang_does_not_know_is_told_in_the_report(comparison):
    folder, _ = comparison
    done = emulate("--repeat-from", str(folder / "out/report.json"), "--compare", "stock", "--out",
                   str(folder / "wrong"), "--server-arg", "colour=red")
    assert done.returncode == 2 and "--server-arg is given too" in done.stderr
    done = emulate("code_writer", "--apps", "1", "--config-file", str(folder / "own.json"), "--compare", "stock",
                   "--server-arg", "colour=red", "--out", str(folder / "wrong"))
    assert done.returncode == 1 and "colour" in done.stderr
    assert "stock failed" in (folder / "wrong/report.md").read_text()
