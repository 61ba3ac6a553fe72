"""Emulated runs for tests: each in a process of its own, forked from one that has imported SGLang already.

SGLang keeps global state, so a process can hold one emulated server; importing SGLang anew for each takes ten times
as long as a short run.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tempfile
import traceback
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PRELOADED = (
    "sglang.srt.plugins", "sglang.srt.models.qwen2", "sglang.srt.mem_cache.hiradix_cache",
    "tokencake_sglang.emulator.scheduler", "tokencake_sglang.emulator.server", "tokencake_sglang.emulator.session")


class EmulationError(RuntimeError):
    """A run failed; `kind` is the name of the exception and the message has its text and traceback."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(f"{kind}: {message}")
        self.kind = kind


class Emulations:
    """Processes to fork runs from, one for each of `hash_seeds` (of Python's hashes); for use in a `with` statement."""

    def __init__(self, *hash_seeds: int) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="tokencake-emulations-")
        self._log = open(Path(self._folder.name, "log"), "w+b")
        self._parents = [self._start(seed) for seed in hash_seeds]
        self._threads = [ThreadPoolExecutor(1) for _ in hash_seeds]
        self._waiting = [0] * len(hash_seeds)

    def _start(self, hash_seed: int) -> subprocess.Popen:
        env = dict(os.environ, PYTHONHASHSEED=str(hash_seed), OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")
        env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT / "python"), str(ROOT), env.get("PYTHONPATH")]))
        return subprocess.Popen(
            [sys.executable, "-m", __name__], env=env, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=self._log)

    def __enter__(self) -> Emulations:
        return self

    def __exit__(self, *exc: Any) -> None:
        for threads in self._threads:
            threads.shutdown(cancel_futures=True)
        for parent in self._parents:
            parent.kill()  # it holds nothing, and a clean end takes seconds
            parent.communicate()
        self._log.close()
        self._folder.cleanup()

    def submit(self, job: str, *args: Any, parent: int | None = None) -> Future:
        """Run the function `job` ("module:name", JSON values in and out) in a new process; `result()` of what comes
        back is what it returned, or raises EmulationError. `parent`: which hash seed, None: the least busy."""
        index = self._waiting.index(min(self._waiting)) if parent is None else parent
        self._waiting[index] += 1
        return self._threads[index].submit(self._run, index, job, args)

    def run(self, job: str, *args: Any) -> Any:
        return self.submit(job, *args).result()

    def _run(self, index: int, job: str, args: tuple[Any, ...]) -> Any:
        parent = self._parents[index]
        try:
            parent.stdin.write(json.dumps([job, args]).encode() + b"\n")
            parent.stdin.flush()
            answer = parent.stdout.readline()
        finally:
            self._waiting[index] -= 1
        if not answer:
            raise EmulationError("Died", self.log_tail())
        result = json.loads(answer)
        if "kind" in result:
            raise EmulationError(result["kind"], result["message"])
        return result["result"]

    def log_tail(self) -> str:
        self._log.seek(0)
        return self._log.read().decode(errors="replace")[-4000:]


def _serve() -> None:
    """Read jobs from the standard input, one a line, and write their results to what was the standard output."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for name in PRELOADED:
        importlib.import_module(name)
    for line in sys.stdin:
        job, args = json.loads(line)
        answers.write(_in_a_child(job, args) + "\n")
        answers.flush()


def _in_a_child(job: str, args: list[Any]) -> str:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        with os.fdopen(writing, "w") as pipe:
            pipe.write(_answer(job, args))
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        answer = pipe.read()
    _, status = os.waitpid(child, 0)
    return answer or json.dumps({"kind": "Died", "message": f"the run's process ended with status {status}"})


def _answer(job: str, args: list[Any]) -> str:
    module, _, name = job.partition(":")
    try:
        return json.dumps({"result": getattr(importlib.import_module(module), name)(*args)})
    except BaseException as error:
        return json.dumps({"kind": type(error).__name__, "message": f"{error}\n{traceback.format_exc()}"})


if __name__ == "__main__":
    _serve()
