"""Starts a server for an example, waits until it answers, and ends it with everything it started."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

# Tools return between half and one and a half times their prediction: ready early enough for most of them.
UPLOAD_LEAD_S = "0.75"
# Each server's own flags. `tokencake` moves KV at every tool call, wanted or not, so that there is something to see.
MODES: dict[str, tuple[str, ...]] = {
    "tokencake": ("--enable-tokencake", "--tokencake-offload-policy", "eager",
                  "--tokencake-upload-lead-s", UPLOAD_LEAD_S),
    "tokencake-default": ("--enable-tokencake",),
    "stock-hicache": (),
    "stock-hicache-lpm": ("--schedule-policy", "lpm"),
    "stock": (),
}
START_LIMIT_S = 300.0
END_LIMIT_S = 20.0


class ServerError(RuntimeError):
    """The server did not start; the message ends with the last lines of its log."""


@dataclass(frozen=True)
class ServerOptions:
    """How to start the server; the two pool sizes are tokens."""

    model_path: str
    load_format: str = "dummy"
    max_total_tokens: int = 8000
    page_size: int = 1
    hicache_ratio: float = 4.0
    max_running_requests: int = 16
    seed: int = 1
    on_cpu: bool = True
    stock_tree: str | None = None
    extra: tuple[str, ...] = ()

    def command(self, mode: str, port: int) -> list[str]:
        module = "sglang.launch_server" if is_stock(mode) else "tokencake_sglang.launch_server"
        flags = ["--model-path", self.model_path, "--load-format", self.load_format, "--host", "127.0.0.1",
                 "--port", str(port), "--max-total-tokens", str(self.max_total_tokens),
                 "--page-size", str(self.page_size), "--max-running-requests", str(self.max_running_requests),
                 "--random-seed", str(self.seed), "--enable-metrics", "--enable-cache-report", "--log-level", "warning"]
        if self.on_cpu:
            flags += ["--dtype", "float32", "--grammar-backend", "outlines"]
        if mode != "stock":
            flags += ["--enable-hierarchical-cache", "--hicache-ratio", str(self.hicache_ratio),
                      "--hicache-write-policy", "write_through"]
            if self.on_cpu:
                flags += ["--hicache-io-backend", "direct", "--hicache-mem-layout", "layer_first"]
        return [sys.executable, "-m", module, *flags, *MODES[mode], *self.extra]

    def environment(self, mode: str) -> dict[str, str]:
        """The stock modes take SGLang from `stock_tree` when one is given, and no setting of TokenCake."""
        env = {k: v for k, v in os.environ.items() if k != "TOKENCAKE_CONFIG"}
        if is_stock(mode) and self.stock_tree:
            env["PYTHONPATH"] = os.pathsep.join(filter(None, [self.stock_tree, env.get("PYTHONPATH")]))
        return env


def is_stock(mode: str) -> bool:
    return mode.startswith("stock")


class Server:
    """A running server process group; use as a context manager. `url` answers once `start` has returned."""

    def __init__(self, options: ServerOptions, mode: str, log_path: Path) -> None:
        if mode not in MODES:
            raise ValueError(f"server mode {mode!r} is unknown; allowed: {', '.join(MODES)}.")
        self.options, self.mode, self.log_path = options, mode, log_path
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start and wait until the server generates; raises ServerError."""
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        command = self.options.command(self.mode, self.port)
        if "--dp-size" not in command:  # where each replica needs a port of its own
            command += ["--nccl-port", str(free_port())]  # SGLang's choice is a port that a connection may take first
        with open(self.log_path, "wb") as log:
            self._process = subprocess.Popen(
                command, env=self.options.environment(self.mode),
                stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True)
        try:
            self._wait()
        except BaseException:
            self.stop()
            raise

    def _wait(self) -> None:
        deadline = time.monotonic() + START_LIMIT_S
        while not answers(self.url + "/health_generate"):
            if self._process is not None and self._process.poll() is not None:
                raise ServerError(self._failure(f"ended with status {self._process.returncode} while starting"))
            if time.monotonic() > deadline:
                raise ServerError(self._failure(f"did not answer within {START_LIMIT_S:.0f} s"))
            time.sleep(0.5)

    def _failure(self, what: str) -> str:
        tail = "\n".join(self.log_path.read_text(errors="replace").splitlines()[-25:])
        return f"the {self.mode} server {what}. Its log is {self.log_path}; the last lines are:\n{tail}"

    def stop(self) -> None:
        """End the whole process group: ask first, then kill. Does nothing the second time."""
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
            if not wait_group_gone(process, END_LIMIT_S):
                os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait_group_gone(process: subprocess.Popen[bytes], limit_s: float) -> bool:
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        process.poll()
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=20) as answer:
            return answer.status == 200
    except (urllib.error.URLError, OSError):
        return False


def free_port() -> int:
    """A free port below the ranges from which outgoing connections take theirs: a server needs it seconds later."""
    for port in random.sample(range(15000, 28000), 100):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise OSError("no port from 15000 to 27999 is free on 127.0.0.1")
