"""The runs of a comparison in their processes: results, failures, interruption, resumption."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.emulation import run_document
from tokencake_sglang.emulator.cells import Experiment, Grid
from tokencake_sglang.emulator.compare import compare, default_jobs
from tokencake_sglang.emulator.spec import Configuration

ROOT = Path(__file__).resolve().parents[2]
STAND_IN = (sys.executable, str(ROOT / "tests/support/stand_in_run.py"))
pytestmark = pytest.mark.timeout(120)


@pytest.fixture(autouse=True)
def import_paths(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "python")]))


def experiment(*behaviours: str, seeds: tuple[int, ...] = (1,)) -> Experiment:
    configurations = tuple(
        Configuration(behaviour.replace(" ", "-"), {"behaviour": behaviour}) for behaviour in behaviours)
    return Experiment("code_writer", {}, Grid(seeds=seeds).cells(), configurations, "a-profile")


def test_every_result_lies_at_its_place_and_in_the_report(tmp_path):
    report, documents = compare(experiment("works", seeds=(1, 2)), tmp_path, 2, False, ["code_writer"], STAND_IN)
    assert json.loads((tmp_path / "report.json").read_text()) == report
    assert report["complete"] and [cell["seed"] for cell in report["cells"]] == [1, 2]
    for file, document in documents.items():
        assert json.loads((tmp_path / file).read_text()) == document
    assert not list(tmp_path.rglob("*.part"))


def test_a_failed_run_is_reported_with_its_last_lines_and_the_others_are_kept(tmp_path):
    report, documents = compare(experiment("fails", "writes rubbish", "works"), tmp_path, 1, False, [], STAND_IN)
    errors = {run["configuration"]: run["error"] for run in report["cells"][0]["runs"]}
    assert errors["works"] is None and len(documents) == 1
    assert errors["fails"] == "a line before\nthe pool is too small\nthe process ended with status 3"
    assert "schema None" in errors["writes-rubbish"]
    assert (tmp_path / "runs").rglob("fails.log").__next__().read_text().startswith("a line before")
    assert "fails failed" in report["warnings"][0]


def test_resuming_keeps_results_of_an_equal_spec_and_makes_the_others_again(tmp_path):
    plan = experiment("works", "fails")
    first, second = plan.jobs()
    (tmp_path / first.file).parent.mkdir(parents=True)
    (tmp_path / first.file).write_text(json.dumps(run_document(first.spec, [1.0])))
    (tmp_path / second.file).write_text(json.dumps(run_document(first.spec, [1.0])))
    report, documents = compare(plan, tmp_path, 1, True, [], STAND_IN)
    assert documents[first.file]["latency"]["mean_s"] == 1.0
    assert report["cells"][0]["runs"][1]["error"] is not None, "a result of another spec must not be kept"
    assert not (tmp_path / second.file).exists()


def test_a_new_run_replaces_what_was_there(tmp_path):
    plan = experiment("works")
    (job,) = plan.jobs()
    (tmp_path / job.file).parent.mkdir(parents=True)
    (tmp_path / job.file).write_text(json.dumps(run_document(job.spec, [1.0])))
    _, documents = compare(plan, tmp_path, 1, False, [], STAND_IN)
    assert documents[job.file]["latency"]["mean_s"] == 150.0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_command_ends_its_runs_and_keeps_what_is_finished(tmp_path, number):
    code = ("import json, signal, sys\nfrom pathlib import Path\n"
            "signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background inherits it ignored\n"
            "from tests.emulator.test_compare_processes import *\n"
            "import tokencake_sglang.emulator.cli as cli\n"
            "cli.experiment_of = lambda given: experiment('works', 'hangs')\n"
            "sys.exit(cli.main(['code_writer', '--out', sys.argv[1], '--jobs', '1'], STAND_IN))\n")
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stderr=subprocess.PIPE, text=True)
    try:
        while not (pid_files := list(tmp_path.rglob("*.pid"))) or not pid_files[0].read_text():
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.05)
        process.send_signal(number)
        said = process.communicate(timeout=30)[1]
    finally:
        process.kill()
    assert process.returncode == 130 and "--resume" in said
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid_files[0].read_text()), 0)
    assert [path.stem for path in tmp_path.rglob("runs/*/*.json")] == ["works"]


def test_there_are_never_more_processes_than_runs():
    assert default_jobs(1) == 1 and default_jobs(0) == 1
    assert 1 <= default_jobs(10_000) <= (os.cpu_count() or 1)
