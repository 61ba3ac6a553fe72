"""Runs the jobs of an experiment in child processes, several at a time, and writes the report.

Every run has a process of its own (`zygote`). A result is moved to its place when it is whole, so an interrupted
command can be resumed. A run that fails is reported with what it said last and costs no other run.
"""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokencake_sglang.emulator.cells import Experiment, Job
from tokencake_sglang.emulator.progress import Progress
from tokencake_sglang.emulator.report import build_report
from tokencake_sglang.emulator.result import SCHEMA as RUN_SCHEMA
from tokencake_sglang.emulator.zygote import END_GRACE_S, Processes, ZygoteError, run_processes

BYTES_PER_RUN = 2 * 2**30  # what a run needs at most, imports included
LAST_LINES = 12
PROGRESS_MARK = "PROGRESS "


def default_jobs(runs: int) -> int:
    """As many processes as there are runs, cores for them, and free memory at 2 GiB each."""
    import psutil

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(runs, cores, psutil.virtual_memory().available // BYTES_PER_RUN))


class Child:
    """One run in a process of its own; `progress` holds the last line of progress that it wrote."""

    def __init__(self, job: Job, out: Path, processes: Processes):
        self.job, self.progress = job, {}
        self.target = out / job.file
        self.partial = self.target.with_suffix(".part")
        self.target.parent.mkdir(parents=True, exist_ok=True)
        spec_file = self.target.with_suffix(".spec")
        spec_file.write_text(json.dumps(job.spec.to_dict(), indent=1), encoding="utf-8")
        for left_over in (self.target, self.partial):
            left_over.unlink(missing_ok=True)
        self.process = processes.start([str(spec_file), str(self.partial), "--progress"])
        self._last: deque[str] = deque(maxlen=LAST_LINES)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        with self.target.with_suffix(".log").open("w", encoding="utf-8") as log:
            for line in self.process.stderr:
                if line.startswith(PROGRESS_MARK):
                    self.progress = json.loads(line[len(PROGRESS_MARK):])
                else:
                    log.write(line)
                    self._last.append(line)

    def result(self) -> dict[str, Any] | str | None:
        """None while it runs; then the document, or what the process said last."""
        status = self.process.poll()
        if status is None:
            return None
        self._reader.join(timeout=END_GRACE_S)
        said = "".join(self._last)
        if status:
            return f"{said}the process ended with status {status}"
        try:
            document = read_result(self.partial)
        except (OSError, ValueError) as error:
            return f"{said}the process ended without a result: {error}"
        self.partial.replace(self.target)
        return document

    def end(self) -> None:
        """Ends the process, by force when it does not follow."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(END_GRACE_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self._reader.join(timeout=END_GRACE_S)
        self.partial.unlink(missing_ok=True)


def read_result(path: Path) -> dict[str, Any]:
    """The document of a finished run; ValueError when the file holds something else."""
    document = json.loads(path.read_text(encoding="utf-8"))
    found = document.get("schema") if isinstance(document, dict) else None
    if found != RUN_SCHEMA:
        raise ValueError(f"{path} has the schema {found!r}; allowed: {RUN_SCHEMA!r}. Remove the file and run it again.")
    return document


def finished(job: Job, out: Path) -> dict[str, Any] | None:
    """The stored result of a job, when there is one and it was made from an equal spec."""
    try:
        document = read_result(out / job.file)
    except (OSError, ValueError):
        return None
    return document if document["spec"] == json.loads(json.dumps(job.spec.to_dict())) else None


def run_jobs(jobs: Sequence[Job], out: Path, parallel: int, progress: Progress, processes: Processes,
             poll_s: float = 0.1) -> dict[str, dict[str, Any] | str]:
    """Results by `Job.file`: the document, or the text of the failure. Ends its processes whatever happens."""
    results: dict[str, dict[str, Any] | str] = {}
    waiting, running = deque(jobs), []

    def ended(job: Job, result: dict[str, Any] | str) -> None:
        results[job.file] = result
        progress.finished(job, result)

    with processes:
        try:
            while waiting or running:
                while waiting and len(running) < parallel:
                    job = waiting.popleft()
                    try:
                        running.append(Child(job, out, processes))
                    except (OSError, ZygoteError) as error:
                        ended(job, f"the process could not be started: {error}")
                for child in list(running):
                    result = child.result()
                    if result is not None:
                        running.remove(child)
                        ended(child.job, result)
                progress.update([child.progress for child in running])
                if running:
                    time.sleep(poll_s)
        finally:
            for child in running:
                child.end()
    return results


def compare(experiment: Experiment, out: Path, parallel: int | None, resume: bool, arguments: list[str],
            processes: Processes | None = None, before: dict[str, Any] | None = None,
            ) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The report, and the documents of the finished runs by `Job.file`.

    `arguments` go into the report as given. `processes`: where the runs take place, if not in those of
    `run_processes`. `before`: an earlier report, with whose event logs those of equal runs are compared.
    """
    jobs = list(experiment.jobs())
    results: dict[str, Any] = {}
    if resume:
        results = {job.file: document for job in jobs if (document := finished(job, out)) is not None}
    left = [job for job in jobs if job.file not in results]
    with Progress(len(jobs), len(results)) as progress:
        results |= run_jobs(left, out, parallel or default_jobs(len(left)), progress, processes or run_processes())
    report = build_report(experiment, results, arguments, before)
    write_whole(out / "report.json", json.dumps(report, indent=1) + "\n")
    return report, {file: result for file, result in results.items() if not isinstance(result, str)}


def write_whole(path: Path, text: str) -> None:
    """Writes a file so that no reader ever sees a part of it."""
    partial = path.with_name(path.name + ".part")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
