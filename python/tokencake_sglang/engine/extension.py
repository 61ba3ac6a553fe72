"""The scheduler's side of TokenCake: time and events in, one controller step per iteration, answers out."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from typing import Any

from sglang.srt.managers.scheduler_extension import SchedulerExtension
from sglang.utils import TypeBasedDispatcher

from tokencake_sglang.core.actions import ClientActions
from tokencake_sglang.core.config import TokenCakeConfig
from tokencake_sglang.core.controller import Controller
from tokencake_sglang.core.costs import Costs
from tokencake_sglang.core.hints import RequestHints
from tokencake_sglang.core.spatial.places import QueuePlaces
from tokencake_sglang.core.types import CALLS_JOINED_BY, ENDS_CALLS, AgentIdentity
from tokencake_sglang.engine.beside import Beside
from tokencake_sglang.engine.cache import TokenCakeHiRadixCache
from tokencake_sglang.engine.chunks import BalancedChunks
from tokencake_sglang.engine.copy_fence import fence_copies
from tokencake_sglang.engine.decision_log import DecisionLog
from tokencake_sglang.engine.history import start_history
from tokencake_sglang.engine.ipc import TokenCakeControlReq, TokenCakeControlReqOutput, TokenCakeTickReq
from tokencake_sglang.engine.measure import CostMeasure
from tokencake_sglang.engine.metrics import Metrics
from tokencake_sglang.engine.moves import WAITING_VIEWED, KvMover
from tokencake_sglang.engine.parking import Parking
from tokencake_sglang.engine.queue import ProgramQueue
from tokencake_sglang.engine.requests import on_device, runs_any
from tokencake_sglang.engine.state import state_report
from tokencake_sglang.engine.verify import verify_cache, verify_scheduler

CLOCK_AGE_S = 0.1  # while a request runs, the time that all ranks know is no older than this, or than one step


class TokenCakeExtension(SchedulerExtension):
    def __init__(self, scheduler: Any, config: TokenCakeConfig) -> None:
        verify_cache(scheduler.tree_cache)
        self.scheduler = scheduler
        self.dp_rank = scheduler.ps.dp_rank or 0
        self.config = config = of_replica(config, self.dp_rank)
        self.cache: TokenCakeHiRadixCache = scheduler.tree_cache
        if scheduler.enable_overlap:
            fence_copies(self.cache.cache_controller, scheduler.forward_stream, self.cache.freed_under_pass)
        self.mover = KvMover(self.cache, scheduler)
        self.controller = Controller(config, self.mover)
        self.actions = ClientActions(self.controller)
        if self.controller.policy.reads_waiting:
            self.mover.waiting_viewed = WAITING_VIEWED
        self.cache.worth.now = lambda: self.controller.now
        self.cache.worth.costs = lambda: self.mover.costs
        self.cache.held_nodes = lambda: [
            req.last_node for req in on_device(scheduler)
            if not req.finished() and req.last_node is not None]  # one that was just retracted holds none
        self.metrics = self._build_metrics()
        self.history = start_history(config, self.controller.forecaster, scheduler.ps.tp_rank)
        self.measure: CostMeasure | None = None
        if scheduler.ps.tp_rank == 0:
            self.measure = CostMeasure(self.cache, getattr(scheduler, "model_worker", None))
            self.measure.measure_copies()
        self.cache.on_step = self._on_step
        self.cache.on_request_ended = self.controller.request_ended
        self.cache.on_end_left = self.controller.kv_left
        self.queue = ProgramQueue(scheduler, self.cache, self.controller) if config.order == "program" else None
        self.places = QueuePlaces()  # of a queue that SGLang orders
        if self.queue is None:
            self.controller.queue_wait_s = self._queue_wait_s
        else:
            self.mover.would_hold_back = self.queue.would_hold_back
            self.mover.growth.ends = self.queue.output_ends
        self.cache.on_request_finished = self._on_request_finished
        self.chunks: BalancedChunks | None = None
        if config.chunks == "balanced" and scheduler.is_mixed_chunk:
            self.chunks = BalancedChunks(lambda: self.mover.costs)
        self.beside = Beside(scheduler, self.cache, self.mover.would_hold_back, self.mover.growth)
        self.parking = Parking(scheduler, self.cache, self.limit_chunk)
        self.cache.on_reset = self._on_reset
        self.cache.on_backups_landed = self._try_admission_again
        if config.decision_log:
            self.controller.observe = DecisionLog(config.decision_log, scheduler.ps.tp_rank)
        self._last_tick = 0.0
        scheduler._request_dispatcher += TypeBasedDispatcher([
            (TokenCakeTickReq, self._on_tick),
            (TokenCakeControlReq, self._on_control),
        ])
        verify_scheduler(scheduler, TokenCakeControlReq, TokenCakeTickReq)

    # -- seams ----------------------------------------------------------------------------------------------

    def extend_received(self, recv_reqs: list[Any]) -> list[Any]:
        """Rank 0: put the time before the messages of this step when there are any, when an agent is due, or when the
        last one has grown old while a request runs (its end is no message, and counts from the time that is known)."""
        now, wake = time.monotonic(), self.next_wake_s
        is_due = wake is not None and now >= wake
        if not recv_reqs and not is_due and (now - self._last_tick < CLOCK_AGE_S or not runs_any(self.scheduler)):
            return recv_reqs
        self._last_tick = now
        costs = self.measure.news(now) if self.measure is not None else []
        return [TokenCakeTickReq(now=now, costs=costs), *recv_reqs]

    @property
    def next_wake_s(self) -> float | None:
        """When (rank 0's monotonic clock, seconds) a tick is wanted for the sake of a due agent; None: not at all."""
        wake = self.controller.next_wake
        return None if wake is None else max(wake, self._last_tick + self.config.tick_interval_s)

    def on_request_added(self, req: Any) -> None:
        identity = AgentIdentity.from_metadata(req.agent_metadata)
        hints = RequestHints.from_metadata(req.agent_metadata)
        if self.queue is not None:
            self.queue.request_added(req, identity, hints)
        else:
            self.places.joined(self.controller.now, req.rid)
        if identity is not None:
            ends = req.agent_metadata.get(ENDS_CALLS)
            ends_calls = None if ends is None else ends.split(CALLS_JOINED_BY)
            self.controller.request_added(identity, req.rid, ends_calls, hints)

    def order_waiting_queue(self, waiting_queue: list[Any]) -> None:
        if self.queue is not None:
            self.queue.order(waiting_queue)
        else:
            self.places.ordered(self.controller.now, (req.rid for req in waiting_queue))

    def holds_back(self, req: Any) -> bool:
        return self.beside.passes_over(req) or (self.queue is not None and self.queue.holds_back(req))

    def parks_chunk(self, req: Any, running_batch: Any) -> bool:
        return self.parking.must_wait(req, running_batch)

    def running_growth(self, reqs: list[Any], tokens: float) -> float:
        return self.mover.growth.of_running(reqs, tokens)

    def new_request_growth(self, req: Any, admitted: list[Any], tokens: float) -> float:
        return self.mover.growth.of_new(req, admitted, tokens)

    def limit_chunk(self, chunk_tokens: int | None, chunked_req: Any, waiting_queue: list[Any],
                    running_batch: Any) -> int | None:
        if self.chunks is None:
            return chunk_tokens
        beside = self.beside.choose(chunk_tokens, chunked_req, waiting_queue, running_batch.reqs)
        return self.chunks.limit(chunk_tokens, chunked_req, waiting_queue, running_batch, beside)

    def tokens_beside_chunk(self, req: Any) -> int:
        return self.beside.tokens

    def on_requests_admitted(self, reqs: list[Any]) -> None:
        self.beside.admitted(reqs)
        if self.queue is not None:
            self.queue.admitted(reqs)
        else:
            for req in reqs:
                self.places.admitted(self.controller.now, req.rid)
        for req in reqs:
            self.controller.runs.request_admitted(self.controller.now, req.rid)

    def _queue_wait_s(self, key: str) -> float:
        agent = self.controller.agents.get(key)
        return 0.0 if agent is None else self.places.wait_s(agent.rids)

    def _on_request_finished(self, req: Any) -> None:
        if self.queue is not None:
            self.queue.request_ended(req)
        self.controller.runs.request_ended(self.controller.now, req.rid, len(req.output_ids))

    def _on_step(self) -> None:
        if self.measure is not None:
            self.measure.collect()
        self.controller.step()
        if self.history is not None:
            self.history.poll()
        if self.metrics is not None:
            self.metrics.update(time.monotonic())

    def _on_tick(self, tick: TokenCakeTickReq) -> None:
        if tick.costs:
            self.mover.costs = Costs.from_tuple(tick.costs)
        self.controller.tick(tick.now)
        if self.queue is not None:
            self._try_admission_again()

    def _on_control(self, req: TokenCakeControlReq) -> TokenCakeControlReqOutput | None:
        """The answer; none to a call that is another replica's."""
        if req.dp_rank not in (-1, self.dp_rank):
            return None
        payload = json.loads(req.payload)
        if req.op == "state":
            status, body = 200, state_report(self, payload.get("agents", 100), payload.get("stalls", 0))
        elif req.op == "actions":
            status, body = 200, {"outcomes": [self.actions.apply(action) for action in payload["actions"]]}
        elif req.op == "graph":
            status, body = self.controller.runs.graphs.post(payload)
        elif req.op == "show_graph":
            status, body = self.controller.runs.graphs.show(payload["graph_id"])
        elif req.op == "save":
            if self.history is not None:
                self.history.flush()
            status, body = 200, reply_body(200, "applied", "What was learnt is in the history file.")
        else:
            reply = self.controller.event(payload)
            status, body = reply.status, reply_body(reply.status, reply.result, reply.message)
        return TokenCakeControlReqOutput(
            http_worker_ipc=req.http_worker_ipc, control_id=req.control_id, status=status, body=json.dumps(body),
            dp_rank=self.dp_rank)

    def _build_metrics(self) -> Metrics | None:
        """On rank 0 of a server with --enable-metrics, with the labels of SGLang's own metrics; else None."""
        collector = getattr(self.scheduler, "metrics_collector", None)
        if collector is None or self.scheduler.ps.tp_rank != 0:
            return None
        return Metrics(self.controller, self.mover.measure_pool, collector.labels)

    def _try_admission_again(self) -> None:
        """SGLang tries no admission after a failed one until a request ends. It may succeed before: memory of the
        request that ended last was locked by its backup, and the room that SGLang keeps for the decoding requests
        (its new-token ratio) shrinks with every step. SGLang itself tries in each step where it may preempt."""
        self.scheduler.running_batch.batch_is_full = False

    def _on_reset(self) -> None:
        self.mover.reset()
        self.controller.reset()


def of_replica(config: TokenCakeConfig, dp_rank: int) -> TokenCakeConfig:
    """Settings with files of its own for each data-parallel replica but the first."""
    if not dp_rank:
        return config
    files = {name: f"{path}.dp{dp_rank}" for name in ("history", "decision_log") if (path := getattr(config, name))}
    return replace(config, **files)


def reply_body(status: int, result: str, message: str) -> dict[str, Any]:
    if status == 200:
        return {"status": result, "message": message}
    return {"error": {"code": status, "reason": result, "message": message}}
