"""Watches the scheduler and records its requests. Works on stock cache and scheduling too, and changes nothing."""

from __future__ import annotations

import json
import logging
import time
from array import array
from itertools import islice
from typing import Any

from sglang.srt.constants import HEALTH_CHECK_RID_PREFIX
from sglang.srt.managers.scheduler_extension import SchedulerExtension, register_scheduler_extension

from tokencake_sglang.core.recording import Recording
from tokencake_sglang.core.types import PREFILL, AgentIdentity
from tokencake_sglang.engine.ipc import TokenCakeControlReq
from tokencake_sglang.engine.requests import held
from tokencake_sglang.engine.trace_file import TraceFile

logger = logging.getLogger(__name__)

POLLED_PER_STEP = 1024
SWEEP_INTERVAL_S = 5.0

registered_path: str | None = None  # what this process records to, once `register` has run


def register(path: str) -> None:
    """Record every scheduler of this machine's rank 0 to `path`."""
    global registered_path

    def build(scheduler: Any) -> SchedulerExtension:
        ps = scheduler.ps
        return Recorder(scheduler, path) if ps.tp_rank == ps.pp_rank == 0 else SchedulerExtension()

    register_scheduler_extension(build)
    registered_path = path


class Recorder(SchedulerExtension):
    """SGLang tells when a request joins the queue; whether it has finished is looked up once per step.

    Whatever goes wrong in here ends the recording and not the server.
    """

    def __init__(self, scheduler: Any, path: str) -> None:
        self.scheduler = scheduler
        self.recording = Recording(TraceFile(path))
        self.failed = False
        self._live: dict[str, Any] = {}
        self._next_poll = 0
        self._swept_at = 0.0
        self._missing: set[str] = set()

    # -- seams ----------------------------------------------------------------------------------------------

    def extend_received(self, recv_reqs: list[Any]) -> list[Any]:
        if not self.failed and (self._live or recv_reqs):
            try:
                self._step(time.monotonic(), recv_reqs)
            except Exception:
                self._give_up()
        return recv_reqs

    def on_request_added(self, req: Any) -> None:
        if not self.failed:
            try:
                self._added(time.monotonic(), req)
            except Exception:
                self._give_up()

    def _give_up(self) -> None:
        logger.exception("The recording has ended because of an error of its own; the server goes on.")
        self.failed = True
        self._live.clear()

    # -- requests -------------------------------------------------------------------------------------------

    def _step(self, now: float, messages: list[Any]) -> None:
        self._poll(now)
        if self._live and now - self._swept_at >= SWEEP_INTERVAL_S:
            self._swept_at = now
            self._sweep()
        for message in messages:
            if isinstance(message, TokenCakeControlReq) and message.op == "event":
                event = json.loads(message.payload)
                if event["event"] != "stage_finished":  # a trace has whole waits
                    self.recording.event(now, event)

    def _added(self, now: float, req: Any) -> None:
        refused = req.to_finish is not None  # SGLang answers it with an error; its prompt has been replaced
        if refused or req.rid.startswith(HEALTH_CHECK_RID_PREFIX) or req.input_embeds is not None:
            return
        if (req.agent_metadata or {}).get("purpose") == PREFILL:
            return  # the start of a prompt that is still to come
        known = self._live.get(req.rid)
        if known is req:
            return  # it was retracted
        if known is not None:
            self._ended(now, known)
        self._live[req.rid] = req
        identity = AgentIdentity.from_metadata(req.agent_metadata)
        kind = (req.agent_metadata or {}).get("agent_type")
        space = (req.lora_id, req.extra_key)
        self.recording.added(now, req.rid, array("q", req.origin_input_ids), identity, space, kind)

    def _poll(self, now: float) -> None:
        """Finished requests, looking at boundedly many."""
        count = len(self._live)
        start = self._next_poll if count > POLLED_PER_STEP and self._next_poll < count else 0
        ended = [req for req in islice(self._live.values(), start, start + POLLED_PER_STEP) if req.finished()]
        self._next_poll = start + POLLED_PER_STEP - len(ended)
        for req in ended:
            self._ended(now, req)

    def _ended(self, now: float, req: Any) -> None:
        del self._live[req.rid]
        self.recording.finished(now, req.rid, req.output_ids_through_stop, req.cached_tokens)

    def _sweep(self) -> None:
        """Requests aborted in the queue are dropped without a word: forget those that were nowhere twice."""
        present = {req.rid for req in held(self.scheduler)}
        missing = {rid for rid in self._live if rid not in present}
        for rid in missing & self._missing:
            del self._live[rid]
            self.recording.vanished(rid)
        self._missing = missing
