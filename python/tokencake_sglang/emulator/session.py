"""Puts server, clients and observers together and runs them."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from typing import Any

from tokencake_sglang.emulator import bounds
from tokencake_sglang.emulator.clients import CallRun, Clients
from tokencake_sglang.emulator.clock import SECOND, START_NS
from tokencake_sglang.emulator.cost_meter import CostMeter
from tokencake_sglang.emulator.observe import Watch
from tokencake_sglang.emulator.program import Workload
from tokencake_sglang.emulator.result import result_document
from tokencake_sglang.emulator.samples import KvSamples
from tokencake_sglang.emulator.spec import RunSpec
from tokencake_sglang.emulator.transport import AnswerReader

PROGRESS_EVERY_S = 0.5


class EventLog:
    """Every event of clients, device and cache as one JSON array a line; the hash is the run's fingerprint."""

    def __init__(self, path: str) -> None:
        self._file = open(path, "w", encoding="utf-8") if path else None
        self._hash = hashlib.sha256()

    def write(self, time_ns: int, *event: Any) -> None:
        line = json.dumps([time_ns - START_NS, *event], separators=(",", ":")) + "\n"
        self._hash.update(line.encode())
        if self._file:
            self._file.write(line)

    def close(self) -> str:
        if self._file:
            self._file.close()
        return self._hash.hexdigest()


class Session:
    """One run of `workload` on `server`. `progress`, if given, hears from it about twice a second."""

    def __init__(self, server: Any, workload: Workload, spec: RunSpec,
                 progress: Callable[[dict[str, Any]], None] | None = None) -> None:
        self.server, self.spec, self.workload = server, spec, workload
        self.events = EventLog(spec.event_log)
        self.clients = Clients(server, workload, spec.configuration, self._log)
        self.samples = KvSamples(server, spec.samples)
        self.watch = Watch(self.clients.by_rid, self._log)
        self.watch.attach(server)
        bounds.install(server, self.clients, spec.configuration.bound)
        server.on_output = AnswerReader(self.clients.answered)
        server.is_done = self.clients.is_done
        self.clients.on_submit = self.watch.submitted
        self.clients.on_finish = self._finished
        self.clients.on_tool_end = lambda call: self.samples.stalled.pop(call.agent_id, None)
        self.meter = CostMeter(START_NS + round(spec.measure_from_s * SECOND))
        self.meter.attach(server)
        if workload.horizon_s is not None:
            server.stop_at_ns = START_NS + round(workload.horizon_s * SECOND)
        self._progress, self._progress_at = progress, 0.0

    def run(self) -> dict[str, Any]:
        """Run to the end and return the result document."""
        self.clients.start()
        self.samples.start()
        if self._progress is not None:
            self._watch_progress()
        wall, cpu = time.perf_counter(), time.process_time()
        self.server.run()
        real = {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}
        real |= self.meter.report()
        self.watch.close()
        return result_document(self, real, self.events.close())

    def _log(self, *event: Any) -> None:
        self.events.write(self.server.clock.now_ns, *event)

    def _finished(self, call: CallRun) -> None:
        self.watch.finished(call)
        if call.call.tool is not None:
            self.samples.stalled[call.agent_id] = call

    def _watch_progress(self) -> None:
        """Look at the real clock after every pass."""
        on_pass = self.server.on_pass

        def passed(done: Any) -> None:
            on_pass(done)
            now = time.perf_counter()
            if now >= self._progress_at:
                self._progress_at = now + PROGRESS_EVERY_S
                self._progress({
                    "virtual_s": self.server.clock.elapsed_s(), "calls_done": self.clients.calls_done,
                    "apps": len(self.clients.runs), "apps_done": len(self.clients.runs) - self.clients.open_programs})

        self.server.on_pass = passed
