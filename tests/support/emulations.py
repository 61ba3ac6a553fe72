"""Functions for tests, each called in a process of its own that has imported SGLang already (`emulator.zygote`).

SGLang keeps global state, so a process can hold one emulated server.
"""

from __future__ import annotations

import importlib
import json
import os
import tempfile
import traceback
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tokencake_sglang.emulator.zygote import PRELOADED, Zygote

ROOT = Path(__file__).resolve().parents[2]


class EmulationError(RuntimeError):
    """A run failed; `kind` is the name of the exception and the message has its text and traceback."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(f"{kind}: {message}")
        self.kind = kind


class Emulations:
    """Zygotes, one for each of `hash_seeds` (of Python's hashes), each with one run at a time. For a `with` statement.
    """

    def __init__(self, *hash_seeds: int) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="tokencake-emulations-")
        paths = [str(ROOT / "python"), str(ROOT), os.environ.get("PYTHONPATH", "")]
        self._zygotes = [
            Zygote(f"{__name__}:answer", PRELOADED,
                   {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "PYTHONHASHSEED": str(seed)})
            for seed in hash_seeds]
        self._threads = [ThreadPoolExecutor(1) for _ in hash_seeds]
        self._waiting = [0] * len(hash_seeds)
        self._submitted = 0

    def __enter__(self) -> Emulations:
        return self

    def __exit__(self, *exc: Any) -> None:
        for threads in self._threads:
            threads.shutdown(cancel_futures=True)
        for zygote in self._zygotes:
            zygote.close()
        self._folder.cleanup()

    def submit(self, job: str, *args: Any, parent: int | None = None) -> Future:
        """Call the function `job` ("module:name", JSON values in and out) in a new process; `result()` of what comes
        back is what it returned, or raises EmulationError. `parent`: which hash seed, None: the least busy."""
        index = self._waiting.index(min(self._waiting)) if parent is None else parent
        self._waiting[index] += 1
        self._submitted += 1
        files = Path(self._folder.name, f"{self._submitted}.in"), Path(self._folder.name, f"{self._submitted}.out")
        files[0].write_text(json.dumps([job, args]))
        return self._threads[index].submit(self._run, index, *files)

    def run(self, job: str, *args: Any) -> Any:
        return self.submit(job, *args).result()

    def _run(self, index: int, asked: Path, answered: Path) -> Any:
        try:
            process = self._zygotes[index].start([str(asked), str(answered)])
            said = process.stderr.read()
            status = process.wait()
        finally:
            self._waiting[index] -= 1
        if status:
            raise EmulationError("Died", f"{said[-4000:]}\nthe run's process ended with status {status}")
        result = json.loads(answered.read_text())
        if "kind" in result:
            raise EmulationError(result["kind"], result["message"])
        return result["result"]


def answer(files: list[str]) -> None:
    """In the run's process: read what is asked from the first file, write what comes of it into the second."""
    asked, answered = map(Path, files)
    job, args = json.loads(asked.read_text())
    module, _, name = job.partition(":")
    try:
        said = json.dumps({"result": getattr(importlib.import_module(module), name)(*args)})
    except BaseException as error:
        said = json.dumps({"kind": type(error).__name__, "message": f"{error}\n{traceback.format_exc()}"})
    answered.write_text(said)
