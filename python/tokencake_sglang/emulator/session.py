"""Puts server, clients and observers together, runs them and makes the result document."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from typing import Any

from tokencake_sglang.emulator.clients import Answer, CallRun, Clients
from tokencake_sglang.emulator.clock import SECOND, START_NS
from tokencake_sglang.emulator.program import Workload
from tokencake_sglang.emulator.spec import RunSpec
from tokencake_sglang.emulator.transport import AnswerReader

PROGRESS_EVERY_S = 0.5


class EventLog:
    """Every event of clients and device as one JSON array a line; the hash is the run's fingerprint."""

    def __init__(self, path: str) -> None:
        self._file = open(path, "w", encoding="utf-8") if path else None
        self._hash = hashlib.sha256()
        self.events = 0

    def write(self, time_ns: int, *event: Any) -> None:
        line = json.dumps([time_ns - START_NS, *event], separators=(",", ":")) + "\n"
        self._hash.update(line.encode())
        self.events += 1
        if self._file:
            self._file.write(line)

    def close(self) -> str:
        if self._file:
            self._file.close()
        return self._hash.hexdigest()


class Session:
    def __init__(self, server: Any, workload: Workload, spec: RunSpec,
                 progress: Callable[[dict[str, Any]], None] | None = None) -> None:
        self.server, self.spec, self.workload = server, spec, workload
        self.log = EventLog(spec.event_log)
        clock = server.clock
        self.clients = Clients(server, workload, spec.configuration, lambda *event: self.log.write(clock.now_ns, *event))
        server.on_output = AnswerReader(self._answered)
        server.is_done = self.clients.is_done
        if workload.horizon_s is not None:
            server.stop_at_ns = START_NS + round(workload.horizon_s * SECOND)
        self._progress, self._progress_at = progress, 0.0

    def run(self) -> dict[str, Any]:
        raise AssertionError
