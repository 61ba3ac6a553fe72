"""The runs of a comparison in their processes, forked or started anew: results, failures, interruption, resumption."""

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
from tokencake_sglang.emulator.zygote import FreshProcesses, Processes, Zygote

ROOT = Path(__file__).resolve().parents[2]
WAYS = {
    "fresh": lambda: FreshProcesses((sys.executable, str(ROOT / "tests/support/stand_in_run.py"))),
    "forked": lambda: Zygote("tests.support.stand_in_run:main", ["tests.support.stand_in_run"]),
}
pytestmark = pytest.mark.timeout(120)


@pytest.fixture(autouse=True)
def import_paths(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "python")]))


@pytest.fixture(params=WAYS)
def processes(request) -> Processes:
    return WAYS[request.param]()


def experiment(*behaviours: str, seeds: tuple[int, ...] = (1,)) -> Experiment:
    configurations = tuple(
        Configuration(behaviour.replace(" ", "-"), {"behaviour": behaviour}) for behaviour in behaviours)
    return Experiment("code_writer", {}, Grid(seeds=seeds).cells(), configurations, "a-profile")


def test_every_result_lies_at_its_place_and_in_the_report(tmp_path, processes):
    report, documents = compare(experiment("works", seeds=(1, 2)), tmp_path, 2, False, ["code_writer"], processes)
    assert json.loads((tmp_path / "report.json").read_text()) == report
    assert report["complete"] and [cell["seed"] for cell in report["cells"]] == [1, 2]
    for file, document in documents.items():
        assert json.loads((tmp_path / file).read_text()) == document
    assert not list(tmp_path.rglob("*.part"))


def test_a_failed_run_is_reported_with_its_last_lines_and_the_others_are_kept(tmp_path, processes):
    report, documents = compare(experiment("fails", "writes rubbish", "works"), tmp_path, 1, False, [], processes)
    errors = {run["configuration"]: run["error"] for run in report["cells"][0]["runs"]}
    assert errors["works"] is None and len(documents) == 1
    assert errors["fails"] == "a line before\nthe pool is too small\nthe process ended with status 3"
    assert "schema None" in errors["writes-rubbish"]
    assert (tmp_path / "runs").rglob("fails.log").__next__().read_text().startswith("a line before")
    assert "fails failed" in report["warnings"][0]


def test_a_run_that_crashes_or_is_killed_costs_no_other(tmp_path, processes):
    report, documents = compare(experiment("crashes", "is killed", "works"), tmp_path, 1, False, [], processes)
    errors = {run["configuration"]: run["error"] for run in report["cells"][0]["runs"]}
    assert errors["works"] is None and len(documents) == 1
    assert "in main\n" in errors["crashes"]
    assert errors["crashes"].endswith("RuntimeError: the pool is torn\nthe process ended with status 1")
    assert errors["is-killed"] == "the process ended with status -9"


def test_what_a_run_changes_in_its_process_is_gone_in_the_next(tmp_path, processes):
    compare(experiment("tells its state", seeds=(1, 2)), tmp_path, 1, False, [], processes)
    for log in tmp_path.rglob("*.log"):
        assert json.loads(log.read_text()) == {"environment": None, "hooks": []}
    assert len(list(tmp_path.rglob("*.log"))) == 2


def test_resuming_keeps_results_of_an_equal_spec_and_makes_the_others_again(tmp_path, processes):
    plan = experiment("works", "fails")
    first, second = plan.jobs()
    (tmp_path / first.file).parent.mkdir(parents=True)
    (tmp_path / first.file).write_text(json.dumps(run_document(first.spec, [1.0])))
    (tmp_path / second.file).write_text(json.dumps(run_document(first.spec, [1.0])))
    report, documents = compare(plan, tmp_path, 1, True, [], processes)
    assert documents[first.file]["latency"]["mean_s"] == 1.0
    assert report["cells"][0]["runs"][1]["error"] is not None, "a result of another spec must not be kept"
    assert not (tmp_path / second.file).exists()


def test_a_new_run_replaces_what_was_there(tmp_path, processes):
    plan = experiment("works")
    (job,) = plan.jobs()
    (tmp_path / job.file).parent.mkdir(parents=True)
    (tmp_path / job.file).write_text(json.dumps(run_document(job.spec, [1.0])))
    _, documents = compare(plan, tmp_path, 1, False, [], processes)
    assert documents[job.file]["latency"]["mean_s"] == 150.0


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_command_ends_its_runs_and_keeps_what_is_finished(tmp_path, number, way):
    code = ("import json, signal, sys\nfrom pathlib import Path\n"
            "signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background inherits it ignored\n"
            "from tests.emulator.test_compare_processes import *\n"
            "import tokencake_sglang.emulator.cli as cli\n"
            "cli.experiment_of = lambda given: experiment('works', 'hangs')\n"
            "sys.exit(cli.main(['code_writer', '--out', sys.argv[1], '--jobs', '1'], WAYS[sys.argv[2]]()))\n")
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path), way], stderr=subprocess.PIPE, text=True)
    try:
        while not (pid_files := list(tmp_path.rglob("*.pid"))) or not pid_files[0].read_text():
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.05)
        process.send_signal(number)
        said = process.communicate(timeout=30)[1]
    finally:
        process.kill()
    assert process.returncode == 130 and "--resume" in said
    assert has_ended(int(pid_files[0].read_text()))
    assert [path.stem for path in tmp_path.rglob("runs/*/*.json")] == ["works"]


def has_ended(pid: int, within_s: float = 10) -> bool:
    """A process that is ended without having been waited for is there for a moment longer."""
    give_up = time.monotonic() + within_s
    while time.monotonic() < give_up:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.02)
    return False


def wait_for_pid(folder: Path) -> int:
    while not (files := list(folder.rglob("*.pid"))) or not files[0].read_text():
        time.sleep(0.02)
    return int(files[0].read_text())


def test_runs_end_with_the_process_that_asked_for_them(tmp_path):
    """Killed, it can end nothing itself; a run of many minutes must not go on for nobody."""
    code = ("import sys\nfrom pathlib import Path\n"
            "from tests.emulator.test_compare_processes import *\n"
            "compare(experiment('hangs'), Path(sys.argv[1]), 1, False, [], WAYS['forked']())\n")
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)])
    pid = wait_for_pid(tmp_path)
    process.kill()
    process.wait()
    assert has_ended(pid)


def test_a_zygote_that_dies_costs_the_runs_under_way_and_no_later_one(tmp_path):
    for job in experiment("hangs", "works").jobs():
        (tmp_path / f"{job.configuration.name}.spec").write_text(json.dumps(job.spec.to_dict()))
    with WAYS["forked"]() as zygote:
        under_way = zygote.start([str(tmp_path / "hangs.spec"), str(tmp_path / "hangs.json")])
        pid = wait_for_pid(tmp_path)
        zygote._process.kill()
        assert under_way.wait(timeout=30) == -signal.SIGKILL and has_ended(pid)
        later = zygote.start([str(tmp_path / "works.spec"), str(tmp_path / "works.json")])
        assert later.wait(timeout=30) == 0 and (tmp_path / "works.json").exists()


def test_a_zygote_that_cannot_import_says_so_in_every_run(tmp_path):
    report, _ = compare(experiment("works", seeds=(1, 2)), tmp_path, 2, False, [],
                        Zygote("tests.support.stand_in_run:main", ["no_such_module"]))
    for cell in report["cells"]:
        (run,) = cell["runs"]
        assert "No module named 'no_such_module'" in run["error"]
        assert "the process that runs are forked from ended with status 1" in run["error"]


def test_arguments_that_no_message_can_carry_are_refused():
    with WAYS["forked"]() as zygote, pytest.raises(ValueError, match="allowed: 131072"):
        zygote.start(["x" * (1 << 17)])


def test_there_are_never_more_processes_than_runs():
    assert default_jobs(1) == 1 and default_jobs(0) == 1
    assert 1 <= default_jobs(10_000) <= (os.cpu_count() or 1)
