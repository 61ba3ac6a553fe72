"""Real server processes for tests: started, waited for, asked, and stopped together with all their children."""

from __future__ import annotations

import atexit
import functools
import importlib.util
import json
import os
import random
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

PACKAGE_ROOT = Path(__file__).resolve().parents[2] / "python"
STRICT_CHECKS = {
    "SGLANG_ENABLE_STRICT_MEM_CHECK_DURING_IDLE": "1",
    "SGLANG_ENABLE_STRICT_MEM_CHECK_DURING_BUSY": "1",
    "SGLANG_CHECK_KV_PAGE_INVARIANTS": "1",
    "HF_HUB_OFFLINE": "1",
    # A health check answers without a request of its own, which would leave a token in the KV cache.
    "SGLANG_ENABLE_HEALTH_ENDPOINT_GENERATION": "0",
}
BASE_ARGS = ("--host", "127.0.0.1", "--dtype", "float32", "--skip-server-warmup", "--random-seed", "1")
EXTRA_ARGS = "TOKENCAKE_E2E_ARGS"  # flags for every server, for machines that need some (a GPU without flashinfer)
LOG_TAIL_LINES = 60


def hicache_flags() -> tuple[str, ...]:
    """SGLang flags for HiCache write-through on this machine, for servers without TokenCake."""
    import torch

    on_cpu = ("--hicache-io-backend", "direct", "--hicache-mem-layout", "layer_first")
    flags = ("--enable-hierarchical-cache", "--hicache-write-policy", "write_through")
    return flags if torch.cuda.is_available() else (*flags, *on_cpu)
STOP_GRACE_S = 20


@functools.cache
def demo_model_dir() -> Path:
    """A demo model, written once per test process and removed at its end."""
    from tokencake_sglang.demo_model import write_demo_model

    directory = Path(tempfile.mkdtemp(prefix="tokencake-demo-model-"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return write_demo_model(directory)


@functools.cache
def other_model_archs() -> str:
    """SGLang's model modules but Qwen2's, comma-separated: not importing them saves a second or more per server."""
    (srt,) = importlib.util.find_spec("sglang").submodule_search_locations
    names = {path.stem for path in Path(srt, "srt/models").glob("*.py")} - {"__init__", "qwen2"}
    return ",".join(sorted(names))


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


class ServerError(RuntimeError):
    """The server died or did not come up; the message ends with the tail of its log."""


class ServerProcess:
    """One server on a free port of 127.0.0.1, for use in a ``with`` statement.

    Args:
        *args: server flags after the ones in `BASE_ARGS`.
        module: ``sglang.launch_server`` or ``tokencake_sglang.launch_server``.
        model: model directory; the demo model when left out.
        env: further environment; a None removes a variable.
        stock_tree: directory holding a pristine ``sglang`` package, put before everything else on the path.
        log_path: where the log goes; a file removed after a clean stop when left out.
        start_timeout_s: seconds until /health must answer 200.
    """

    def __init__(
        self,
        *args: str,
        module: str = "sglang.launch_server",
        model: Path | None = None,
        env: Mapping[str, str | None] | None = None,
        stock_tree: Path | None = None,
        log_path: Path | None = None,
        start_timeout_s: float = 180.0,
    ) -> None:
        self.args, self.module, self.model = args, module, model
        self.extra_env, self.stock_tree = dict(env or {}), stock_tree
        self.start_timeout_s = start_timeout_s
        self._keep_log = log_path is not None
        self.log_path = log_path or Path(tempfile.mkstemp(prefix="tokencake-server-", suffix=".log")[1])
        self.port = free_port()
        self.base_url = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen | None = None

    def __enter__(self) -> ServerProcess:
        command = [sys.executable, "-m", self.module, "--model-path", str(self.model or demo_model_dir())]
        command += ["--port", str(self.port), *BASE_ARGS, *self.args, *shlex.split(os.environ.get(EXTRA_ARGS, ""))]
        if "--dp-size" not in self.args:  # where each replica needs a port of its own
            command += ["--nccl-port", str(free_port())]  # SGLang's choice is a port that a connection may take first
        with open(self.log_path, "wb") as log:
            self.process = subprocess.Popen(
                command, env=self._environment(), stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        try:
            self._wait_until_healthy()
        except BaseException:
            self._keep_log = True
            self.stop()
            raise
        return self

    def __exit__(self, exc_type, *_) -> None:
        self._keep_log |= exc_type is not None
        self.stop()

    def _environment(self) -> dict[str, str]:
        env = dict(os.environ)
        paths = [str(self.stock_tree)] if self.stock_tree else []
        paths += [str(PACKAGE_ROOT), *filter(None, [env.get("PYTHONPATH")])]
        env.update(STRICT_CHECKS, PYTHONPATH=os.pathsep.join(paths), PYTHONUNBUFFERED="1")
        env.setdefault("OMP_NUM_THREADS", "1")
        # Compiling a thousand modules anew in each of three processes would double the start-up time.
        env.pop("PYTHONDONTWRITEBYTECODE", None)
        if self.model is None:
            env["SGLANG_DISABLED_MODEL_ARCHS"] = other_model_archs()
        for name, value in self.extra_env.items():
            if value is None:
                env.pop(name, None)
            else:
                env[name] = value
        return env

    def _wait_until_healthy(self) -> None:
        deadline = time.monotonic() + self.start_timeout_s
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise ServerError(f"The server ended with status {self.process.returncode}.\n{self.log_tail()}")
            try:
                if self.get("/health", timeout_s=5)[0] == 200:
                    return
            except OSError:
                pass
            time.sleep(0.2)
        raise ServerError(f"The server was not healthy after {self.start_timeout_s:g} s.\n{self.log_tail()}")

    def stop(self) -> None:
        """End the server and every process that it started, politely first; returns when none is left.

        An interrupt lets uvicorn finish and SGLang remove its children. SIGTERM waits on a 5 s tick, and to the
        whole group it looks like a crash. What is left after `STOP_GRACE_S` is killed.
        """
        if self.process is None:
            return
        family = self.children()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(timeout=STOP_GRACE_S)
        except subprocess.TimeoutExpired:
            pass
        _, alive = psutil.wait_procs(family, timeout=5 if self.process.returncode == 0 else 0)
        for child in alive:
            child.kill()
        self._kill_group()
        self.process.wait()
        psutil.wait_procs(alive, timeout=5)
        self.process = None
        if not self._keep_log:
            self.log_path.unlink(missing_ok=True)

    def _kill_group(self) -> None:
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass

    def children(self) -> list[psutil.Process]:
        """All processes below the server: scheduler ranks, detokenizer, resource trackers."""
        try:
            return psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def log_tail(self) -> str:
        lines = [line[:2000] for line in self.log().splitlines()]
        return f"The end of {self.log_path}:\n" + "\n".join(lines[-LOG_TAIL_LINES:])

    def get(self, path: str, timeout_s: float = 60) -> tuple[int, str]:
        """Status and text of a GET; an HTTP error status is returned, not raised."""
        return self._open(urllib.request.Request(self.base_url + path), timeout_s)

    def post(self, path: str, body: object, timeout_s: float = 120,
             headers: Mapping[str, str] | None = None) -> tuple[int, str]:
        """Status and text of a POST of ``body`` as JSON (bytes are sent as they are)."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        sent = {"Content-Type": "application/json", **(headers or {})}
        request = urllib.request.Request(self.base_url + path, data, sent)
        return self._open(request, timeout_s)

    def flush_cache(self) -> None:
        """Empty the caches once the server is idle: it may still have the request whose answer the client has."""
        status, text = self.post("/flush_cache?timeout=60", {})
        assert status == 200, text

    def _open(self, request: urllib.request.Request, timeout_s: float) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(request, timeout=timeout_s) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def generate(
        self,
        prompt: str | Sequence[int],
        max_new_tokens: int = 16,
        *,
        timeout_s: float = 120,
        sampling_params: Mapping[str, object] | None = None,
        **fields: object,
    ) -> dict:
        """Greedy /generate of a text or of token ids; returns the answer with text, output_ids and meta_info.

        Raises:
            ServerError: on any status but 200, with the answer and the log's tail.
        """
        params = {"temperature": 0, "max_new_tokens": max_new_tokens, **(sampling_params or {})}
        what = {"text": prompt} if isinstance(prompt, str) else {"input_ids": list(prompt)}
        status, text = self.post("/generate", {**what, "sampling_params": params, **fields}, timeout_s)
        if status != 200:
            raise ServerError(f"/generate answered {status}: {text}\n{self.log_tail()}")
        return json.loads(text)

    def chat(self, messages: list[dict], **fields: object) -> dict:
        """Greedy /v1/chat/completions; returns the answer. Raises ServerError as `generate` does."""
        body = {"model": "demo", "messages": messages, "temperature": 0, **fields}
        status, text = self.post("/v1/chat/completions", body)
        if status != 200:
            raise ServerError(f"/v1/chat/completions answered {status}: {text}\n{self.log_tail()}")
        return json.loads(text)

    def metric(self, name: str) -> float:
        """Sum over all label sets of one Prometheus metric; 0 when it is not there yet."""
        samples = [line for line in self.get("/metrics")[1].splitlines() if line.split("{")[0].split(" ")[0] == name]
        return sum(float(sample.rsplit(" ", 1)[1]) for sample in samples)
