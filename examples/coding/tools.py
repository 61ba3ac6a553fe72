"""What the coding agents can do: write files in one folder, check them, and run pytest with a time limit."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import tokencake_sglang as tc
from common.delay import pause

OUTPUT_LINES = 30
PYTEST_LIMIT_S = 30.0
MAX_FILE_BYTES = 100_000


class WorkspaceError(RuntimeError):
    """A tool was asked for something that it must not do."""


class Workspace:
    """One application's folder. Paths are relative to it and may not leave it."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()

    def resolve(self, path: str) -> Path:
        """The full path; raises WorkspaceError if it lies outside the folder, also by way of a link."""
        full = (self.root / path).resolve()
        if full == self.root or not full.is_relative_to(self.root):
            raise WorkspaceError(f"the path {path!r} is not inside the working folder; use a relative path in it.")
        return full

    def write(self, path: str, content: str) -> str:
        full = self.resolve(path)
        size = len(content.encode())
        if size > MAX_FILE_BYTES:
            raise WorkspaceError(f"{path!r} would have {size} bytes; at most {MAX_FILE_BYTES} are allowed.")
        full.parent.mkdir(parents=True, exist_ok=True)
        full.write_text(content, encoding="utf-8")
        return f"wrote {path}, {len(content.splitlines())} lines"

    def read(self, path: str) -> str:
        full = self.resolve(path)
        if not full.is_file():
            raise WorkspaceError(f"there is no file {path!r} in the working folder.")
        return full.read_text(encoding="utf-8")

    def check(self, path: str, limit_s: float = 20.0) -> str:
        """Compile a file in a process of its own; 'ok' or the compiler's complaint."""
        full = self.resolve(path)
        code = "import sys; compile(open(sys.argv[1], encoding='utf-8').read(), sys.argv[2], 'exec')"
        status, output = run_limited([sys.executable, "-I", "-c", code, str(full), path], self.root, limit_s)
        return f"{path}: ok" if status == 0 else f"{path}: {last_lines(output, 4)}"

    def pytest(self, limit_s: float = 30.0) -> tuple[bool, str]:
        """Run the folder's tests; (all passed, what pytest printed without times and paths)."""
        command = [sys.executable, "-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider", "-p", "no:randomly",
                   "--no-header", "--rootdir", str(self.root), "-c", os.devnull, str(self.root)]
        status, output = run_limited(command, self.root, limit_s)
        if status is None:
            return False, f"the tests were stopped after {limit_s:g} s"
        return status == 0, self._steady(output)

    def _steady(self, output: str) -> str:
        """Drop what differs between equal runs, so that equal code gives equal text."""
        text = output.replace(str(self.root) + os.sep, "").replace(str(self.root), ".")
        text = re.sub(r" in [0-9.]+s\b", "", text)
        text = re.sub(r"0x[0-9a-f]{6,}", "0x0", text)
        return last_lines(text, OUTPUT_LINES)


@contextlib.contextmanager
def workspace() -> Iterator[Workspace]:
    """A fresh temporary folder, removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="coding-example-") as folder:
        yield Workspace(Path(folder))


def passed(output: str) -> bool:
    """Whether the tests of `run_tests` have all passed."""
    return output.startswith("PASSED")


def failed(name: str, output: str) -> bool:
    """Whether pytest's output names this function's test file among the failures; all count when it names none."""
    return f"test_{name}.py" in output or "test_" not in output


def last_lines(text: str, count: int) -> str:
    return "\n".join(text.strip().splitlines()[-count:])


def run_limited(command: list[str], folder: Path, limit_s: float) -> tuple[int | None, str]:
    """Run a command in a process group of its own; (status, output), status None if the limit was reached. The group is
    killed at the end in either case, so that nothing the command started stays behind."""
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "TOKENCAKE_CONFIG", "PYTEST_ADDOPTS")}
    env["PYTHONDONTWRITEBYTECODE"] = "1"
    env["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(command, cwd=folder, env=env, stdin=subprocess.DEVNULL, stdout=output,
                                   stderr=subprocess.STDOUT, start_new_session=True)
        try:
            status: int | None = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        output.seek(0)
        return status, output.read().decode(errors="replace")


@dataclass(frozen=True)
class Tools:
    write_file: tc.Tool
    check_file: tc.Tool
    read_files: tc.Tool
    run_tests: tc.Tool


def make_tools(space: Workspace, delay_s: float) -> Tools:
    """The tools of one working folder. `delay_s` stands for a remote sandbox: half for files, all for tests."""
    @tc.tool(kind="file_write", predict_time=0.05 + delay_s / 2)
    def write_file(path: str, content: str) -> str:
        pause(delay_s / 2, path)
        return space.write(path, content)

    @tc.tool(kind="check", predict_time=0.15 + delay_s / 2)
    def check_file(path: str) -> str:
        pause(delay_s / 2, path)
        return space.check(path)

    @tc.tool(kind="file_read", predict_time=0.05 + delay_s / 2)
    def read_files(paths: list[str]) -> str:
        pause(delay_s / 2, " ".join(paths))
        return "\n".join(f"# {path}\n{space.read(path)}" for path in paths)

    @tc.tool(kind="test", stages=[tc.Stage("sandbox", delay_s), tc.Stage("pytest", 1.0)])
    def run_tests(attempt: int) -> str:
        pause(delay_s, f"tests {attempt}")
        passed, output = space.pytest(PYTEST_LIMIT_S)
        return f"{'PASSED' if passed else 'FAILED'}\n{output}"

    return Tools(write_file, check_file, read_files, run_tests)
