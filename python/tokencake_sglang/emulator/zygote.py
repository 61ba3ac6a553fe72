"""Runs as processes: forked from one that has imported SGLang already, or each started anew.

Importing SGLang takes longer than many a run. The zygote, one process, imports it and then only waits: it runs nothing
itself, so what a run changes (environment, SGLang's global state, hooks of its plugins) ends with the run. All runs of
one zygote have its hash seed; results must not depend on it.

Zygote and client speak over one socket that keeps the borders of messages (SOCK_SEQPACKET). A request is the JSON list
of a run's arguments, with two file descriptors: where its standard error goes, and where the zygote tells its fate: its
process id, and its status when it has ended, each with a newline.
"""

from __future__ import annotations

import gc
import importlib
import io
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

RUN_TARGET = "tokencake_sglang.emulator.run:main"
PRELOADED = (
    "sglang.srt.plugins", "sglang.srt.models.qwen2", "sglang.srt.mem_cache.hiradix_cache",
    "tokencake_sglang.emulator.scheduler", "tokencake_sglang.emulator.server", "tokencake_sglang.emulator.session")
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # runs share the cores; more threads only hinder
MAX_REQUEST_BYTES = 1 << 17
MAX_FATE_BYTES = 64
READY = b"ready"
END_GRACE_S = 5.0
ENDED_BY_SIGNAL = (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)


class ZygoteError(RuntimeError):
    """The zygote did not come up; the message is what it wrote."""


class Process(Protocol):
    """What is used of a run's process: a subprocess.Popen with `stderr` as text, or a Forked."""

    stderr: Any

    def poll(self) -> int | None: ...
    def wait(self, timeout: float | None = None) -> int: ...
    def terminate(self) -> None: ...
    def kill(self) -> None: ...


class Processes(Protocol):
    """A source of processes, for use in a `with` statement. `start` may raise OSError or ZygoteError."""

    def __enter__(self) -> Processes: ...
    def __exit__(self, *exc: object) -> None: ...
    def start(self, arguments: Sequence[str]) -> Process: ...


def run_processes() -> Processes:
    """Forked ones on Linux. Elsewhere forking is missing, or not safe once frameworks are loaded."""
    return Zygote() if sys.platform == "linux" else FreshProcesses((sys.executable, "-m", RUN_TARGET.split(":")[0]))


class FreshProcesses:
    """Each run is `command` and its arguments, started anew."""

    def __init__(self, command: Sequence[str]) -> None:
        self._command = command

    def __enter__(self) -> FreshProcesses:
        return self

    def __exit__(self, *exc: object) -> None: ...

    def start(self, arguments: Sequence[str]) -> subprocess.Popen:
        return subprocess.Popen(
            [*self._command, *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            env={**ONE_THREAD, **os.environ}, text=True, encoding="utf-8", errors="replace")


class Zygote:
    """Each run is a call of `target` ("module:function") in a process forked from one that has imported `preload`.

    The function gets the list of the run's arguments; what it returns is the exit status (None: 0). `env` is added to
    the environment of this process.
    """

    def __init__(self, target: str = RUN_TARGET, preload: Sequence[str] = PRELOADED,
                 env: Mapping[str, str] | None = None) -> None:
        self._arguments = [target, *preload]
        self._env = {**ONE_THREAD, **os.environ, **(env or {})}
        self._process: subprocess.Popen | None = None

    def __enter__(self) -> Zygote:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def start(self, arguments: Sequence[str]) -> Forked:
        """Fork a run, from a new zygote when there is none or it has died.

        Raises:
            ZygoteError: a zygote ended before it was ready.
            OSError: the zygote died meanwhile.
            ValueError: the arguments are too long.
        """
        request = json.dumps(list(arguments)).encode()
        if len(request) > MAX_REQUEST_BYTES:
            raise ValueError(f"The arguments of a run have {len(request)} bytes as JSON; allowed: {MAX_REQUEST_BYTES}."
                             " Hand long values over in a file.")
        if self._process is None or self._process.poll() is not None:
            self.close()
            self._begin()
        stderr, to_stderr = _pipe()
        fate, to_fate = _pipe()
        with to_stderr, to_fate:
            socket.send_fds(self._channel, [request], [to_stderr.fileno(), to_fate.fileno()])
        return Forked(fate, stderr)

    def _begin(self) -> None:
        """Start the zygote and wait until it has imported everything."""
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs, tempfile.TemporaryFile() as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(theirs.fileno()), *self._arguments], env=self._env,
                pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=log)
            theirs.close()
            if self._channel.recv(len(READY)) != READY:
                status = self._process.wait()
                log.seek(0)
                said = log.read().decode(errors="replace")
                raise ZygoteError(f"{said}the process that runs are forked from ended with status {status}")

    def close(self) -> None:
        """Ends the zygote and all runs that it has started."""
        if self._process is None:
            return
        self._channel.close()
        self._process.terminate()
        try:
            self._process.wait(END_GRACE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None


def _pipe() -> tuple[io.FileIO, io.FileIO]:
    reading, writing = os.pipe()
    return io.FileIO(reading, "r"), io.FileIO(writing, "w")


class Forked:
    """A run forked by a zygote. `fate`, `stderr`: the reading ends of its pipes."""

    def __init__(self, fate: io.FileIO, stderr: io.FileIO) -> None:
        self._fate = fate
        said = fate.read(MAX_FATE_BYTES).split()
        if not said:
            raise OSError("the process that runs are forked from died before it forked this one")
        self.pid, self.returncode = int(said[0]), int(said[1]) if len(said) > 1 else None
        self.stderr = io.TextIOWrapper(io.BufferedReader(stderr), encoding="utf-8", errors="replace")

    def poll(self) -> int | None:
        if self.returncode is None and self._has_news(0):
            self._learn()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Raises subprocess.TimeoutExpired, as a Popen does."""
        if self.returncode is None:
            if not self._has_news(timeout):
                raise subprocess.TimeoutExpired(f"run {self.pid}", timeout)
            self._learn()
        return self.returncode

    def terminate(self) -> None:
        if self.poll() is None:
            self._send(signal.SIGTERM)

    def kill(self) -> None:
        if self.poll() is None:
            self._send(signal.SIGKILL)

    def _has_news(self, timeout: float | None) -> bool:
        return bool(select.select([self._fate], [], [], timeout)[0])

    def _learn(self) -> None:
        said = self._fate.read(MAX_FATE_BYTES)
        self._fate.close()
        if not said:  # the zygote is dead, and nobody would learn how this run ends
            self._send(signal.SIGKILL)
        self.returncode = int(said) if said else -signal.SIGKILL

    def _send(self, number: int) -> None:
        try:
            os.kill(self.pid, number)
        except ProcessLookupError:
            pass  # it has ended just now


class _Server:
    """The zygote's side: forks what it is asked for, tells how it ended, and ends all when its client has gone."""

    def __init__(self, channel: socket.socket, target: str) -> None:
        self._channel, self._target = channel, target
        self._fates: dict[int, int] = {}  # by pid: where its fate is told
        self._woken, self._wake = os.pipe()  # the numbers of signals

    def serve(self) -> None:
        os.set_blocking(self._wake, False)
        for number in ENDED_BY_SIGNAL:  # SIGINT of a terminal goes to all; the client decides what it ends
            signal.signal(number, lambda *_: None)
        signal.set_wakeup_fd(self._wake)
        self._channel.send(READY)
        while True:
            ready, _, _ = select.select([self._channel, self._woken], [], [])
            if self._woken in ready:
                numbers = os.read(self._woken, 4096)
                self._reap()
                if signal.SIGTERM in numbers:
                    break
            if self._channel in ready:
                request, descriptors, _, _ = socket.recv_fds(self._channel, MAX_REQUEST_BYTES, 2)
                if not request:
                    break
                self._fork(json.loads(request), *descriptors)
        for pid in self._fates:
            os.kill(pid, signal.SIGTERM)

    def _reap(self) -> None:
        for pid in list(self._fates):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                self._tell(pid, os.waitstatus_to_exitcode(status))
                os.close(self._fates.pop(pid))

    def _tell(self, pid: int, number: int) -> None:
        try:
            os.write(self._fates[pid], b"%d\n" % number)
        except BrokenPipeError:
            pass  # the client has lost interest in this run

    def _fork(self, arguments: list[str], stderr: int, fate: int) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, ENDED_BY_SIGNAL)  # none for the child while it looks like this process
        pid = os.fork()
        if pid == 0:
            self._become_the_run(arguments, stderr, fate)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDED_BY_SIGNAL)
        os.close(stderr)
        self._fates[pid] = fate
        self._tell(pid, pid)

    def _become_the_run(self, arguments: list[str], stderr: int, fate: int) -> None:
        """In the child: never returns."""
        status = 1
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            for number in (signal.SIGTERM, signal.SIGCHLD):
                signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDED_BY_SIGNAL)
            self._channel.close()
            os.dup2(stderr, 2)
            for descriptor in (stderr, fate, self._woken, self._wake, *self._fates.values()):
                os.close(descriptor)
            module, _, name = self._target.partition(":")
            status = getattr(importlib.import_module(module), name)(arguments) or 0
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException:
            traceback.print_exc()
        finally:
            for stream in (sys.stdout, sys.stderr):
                _flush(stream)
            os._exit(status)


def _flush(stream: io.TextIOBase) -> None:
    try:
        stream.flush()
    except OSError:
        pass  # nobody reads it


def main(argv: Sequence[str]) -> None:
    """`CHANNEL TARGET MODULE...`: the descriptor of the socket, what a run calls, what to import before."""
    channel, target, *preload = argv
    for module in preload:
        importlib.import_module(module)
    gc.collect()
    gc.freeze()  # the runs share what was imported: their collections leave it alone, so its pages are not copied
    _Server(socket.socket(fileno=int(channel)), target).serve()
    os._exit(0)  # it holds nothing, and a clean end takes seconds


if __name__ == "__main__":
    main(sys.argv[1:])
