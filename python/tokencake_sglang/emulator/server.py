"""One emulated SGLang server: the real scheduler in this process, its device, clock and channels emulated.

Seams, all of them: four methods of Scheduler that build its parts are extended (`EmulatedScheduler`); the device
module that the HiCache controller captured, the copy function of the host pool, the memory that SGLang keeps free
beside that pool, and the name `time` in SGLang's modules are replaced. A process can hold one emulated server.
"""

from __future__ import annotations

import json
import os
from array import array
from collections.abc import Callable
from typing import Any

import torch

from tokencake_sglang.core.graph import AgentGraph
from tokencake_sglang.core.graph_json import graph_id, to_json
from tokencake_sglang.emulator import time_shim
from tokencake_sglang.emulator.clock import SECOND, VirtualClock
from tokencake_sglang.emulator.copies import EmulatedCopies
from tokencake_sglang.emulator.device import EmulatedDevice
from tokencake_sglang.emulator.model import unused_architectures
from tokencake_sglang.emulator.oracle import KvOracle
from tokencake_sglang.emulator.tokens import OutputPlan

EMULATED_LAYERS = 2
MAX_IDLE_TICKS = 5_000  # ticks in a row of scheduler extensions, while nothing else is left to happen


class EmulationStuckError(RuntimeError):
    """Nothing is left to happen, but requests are waiting: the server under test has stopped making progress."""


class EmulatedServer:
    """Builds the scheduler and runs its own event loop, unmodified.

    `on_output(output)` gets every message that the scheduler sends; `on_pass(Pass)` every forward pass; `is_done()`
    says at an idle moment whether the run is over. `submit` and `send` may be called at any virtual time.
    """

    def __init__(self, profile: Any, server_args: dict[str, Any], *, oracle: bool = True) -> None:
        self.clock = VirtualClock()
        self.device = EmulatedDevice(self.clock)
        self.profile = profile
        self.layers = EMULATED_LAYERS
        self.generations: dict[str, Any] = {}
        self.oracle: KvOracle | None = None
        self.on_output: Callable[[Any], None] = lambda output: None
        self.on_pass: Callable[[Any], None] = lambda done: None
        self.on_request_added: Callable[[Any], None] = lambda req: None
        self.is_done: Callable[[], bool] = lambda: True
        self.stop_at_ns: int | None = None
        self.steps = 0
        self.stuck_rounds = 0
        self._idle_ticks = 0
        self._inbox: list[Any] = []
        self._told = 0
        self._host_step_ns = int(profile.step_overhead_s * SECOND)
        self.scheduler = self._build(server_args, oracle)

    # -- construction ---------------------------------------------------------------------------------------

    def _build(self, server_args: dict[str, Any], oracle: bool) -> Any:
        os.environ.setdefault("SGLANG_ENABLE_STRICT_MEM_CHECK_DURING_IDLE", "1")
        os.environ["SGLANG_ENABLE_WAR_BARRIER"] = "1"  # as on CUDA
        torch.set_num_threads(1)
        os.environ.setdefault("SGLANG_DISABLED_MODEL_ARCHS", ",".join(unused_architectures()))
        from sglang.srt.plugins import load_plugins

        load_plugins()
        from sglang.srt.managers import cache_controller
        from sglang.srt.managers.scheduler_extension import SchedulerExtension, register_scheduler_extension
        from sglang.srt.mem_cache.pool_host import base, mha
        from sglang.srt.runtime_context import publish
        from sglang.srt.server_args import PortArgs, ServerArgs

        from tokencake_sglang.emulator.first_costs import tell_first_costs
        from tokencake_sglang.emulator.scheduler import scheduler_class

        class Watcher(SchedulerExtension):
            def on_request_added(watcher, req: Any) -> None:  # noqa: N805
                self.on_request_added(req)

        register_scheduler_extension(lambda scheduler: Watcher())
        cache_controller.device_module = self.device
        cache_controller._timing_events_supported = lambda: True
        base.HICACHE_HOST_MEMORY_RESERVE_BYTES = 0  # 10 GiB beside a host pool that here is a hundred MiB
        args = ServerArgs(**server_args)
        publish(args, role="scheduler")
        scheduler = scheduler_class(self)(args, PortArgs.init_new(args), 0, 0, 0, 0, 0, 0, None)
        _check_pool(scheduler.max_total_num_tokens, args)
        host = getattr(scheduler.tree_cache, "token_to_kv_pool_host", None)
        if oracle:
            slots = scheduler.token_to_kv_pool_allocator.get_kvcache().k_buffer[0].shape[0]
            self.oracle = KvOracle(self.layers, slots, host.size if host else 1)
        self.copies = EmulatedCopies(self.device, self.profile, self.layers, self.oracle)
        if host is not None:
            self.copies.load_stream = scheduler.tree_cache.cache_controller.load_stream
        mha.transfer_kv_direct = self.copies.transfer
        tell_first_costs(scheduler, self.profile)
        self.time = time_shim.install(self.clock)
        return scheduler

    # -- clients --------------------------------------------------------------------------------------------

    def submit(self, rid: str, prompt: array, plan: OutputPlan, max_new_tokens: int, **fields: Any) -> None:
        """Send a request now. `fields`: more of TokenizedGenerateReqInput (priority, routing_key, agent_metadata).

        The output is `plan`; it ends at `plan.length` by EOS, or, where `max_new_tokens` equals that, by length.
        """
        from sglang.srt.managers.io_struct import TokenizedGenerateReqInput
        from sglang.srt.sampling.sampling_params import SamplingParams

        from tokencake_sglang.emulator.worker import Generation

        sampling = SamplingParams(
            max_new_tokens=max_new_tokens, temperature=0.0, ignore_eos=max_new_tokens <= plan.length)
        sampling.normalize(None)
        self.generations[rid] = Generation(plan, prompt)
        self._inbox.append(TokenizedGenerateReqInput(
            rid=rid, input_text=None, input_ids=array("q", prompt), input_embeds=None, mm_inputs=None,
            token_type_ids=None, sampling_params=sampling, return_logprob=False, logprob_start_len=-1,
            top_logprobs_num=0, token_ids_logprob=None, stream=False, **fields))

    def send(self, message: Any) -> None:
        """Send any other message now."""
        self._inbox.append(message)

    def tell(self, event: dict[str, Any]) -> None:
        """Send one control event, as POST /v1/tokencake/events would."""
        from tokencake_sglang.engine.ipc import TokenCakeControlReq
        from tokencake_sglang.server.schema import parse_event

        self._told += 1
        payload = json.dumps(parse_event(event))
        self.send(TokenCakeControlReq(control_id=f"e{self._told}", op="event", payload=payload))

    def add_graph(self, graph: AgentGraph) -> str:
        """Send a graph, as POST /v1/tokencake/graphs would, and return its id."""
        from tokencake_sglang.engine.ipc import TokenCakeControlReq

        self._told += 1
        payload = json.dumps(to_json(graph))
        self.send(TokenCakeControlReq(control_id=f"g{self._told}", op="graph", payload=payload))
        return graph_id(graph)

    def open_session(self, session_id: str) -> None:
        from sglang.srt.managers.io_struct import OpenSessionReqInput

        self.send(OpenSessionReqInput(capacity_of_str_len=1 << 30, session_id=session_id))

    def close_session(self, session_id: str) -> None:
        from sglang.srt.managers.io_struct import CloseSessionReqInput

        self.send(CloseSessionReqInput(session_id=session_id))

    # -- the run --------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Run the scheduler's event loop until `is_done` at an idle moment, or `stop_at_ns`.

        Raises:
            EmulationStuckError: requests wait, nothing runs and nothing will happen.
        """
        time_shim.refresh(self.time)
        self.scheduler.run_event_loop()

    def forward(self, worker: Any, batch: Any) -> Any:
        """A forward pass, on behalf of the model worker."""
        return worker.emulated_pass(batch)

    def charge_host_step(self) -> None:
        """The scheduler's own time for one batch, before it is launched."""
        self.clock.advance_to(self.clock.now_ns + self._host_step_ns)

    def pull(self) -> list[Any]:
        """Called at the top of each iteration of the real event loop: the one place where time may jump."""
        self.steps += 1
        scheduler = self.scheduler
        busy = scheduler.last_batch is not None or self._inbox or getattr(scheduler, "result_queue", None)
        if self.stop_at_ns is not None and self.clock.now_ns >= self.stop_at_ns:
            scheduler.gracefully_exit = True
        elif not busy:
            self._idle()
        else:
            self.stuck_rounds = self._idle_ticks = 0
        messages, self._inbox = self._inbox, []
        return messages

    def _idle(self) -> None:
        """Nothing runs. The first idle round changes nothing; from the second on time jumps to the next event."""
        self.stuck_rounds += 1
        if self.stuck_rounds < 2:
            return
        own = [t for t in (self.clock.next_wake_ns(), self.stop_at_ns) if t is not None]
        wakes = own + self._extension_wakes()
        self._idle_ticks = 0 if own else self._idle_ticks + 1
        if self.is_done():
            self.scheduler.gracefully_exit = True
        elif wakes and self._idle_ticks <= MAX_IDLE_TICKS:
            self.clock.advance_to(max(min(wakes), self.clock.now_ns))
        else:
            waiting = len(self.scheduler.waiting_queue)
            raise EmulationStuckError(
                f"The emulated server stopped at {self.clock.elapsed_s():.3f} virtual s: {waiting} requests wait,"
                " none runs, and no arrival, tool return or copy is outstanding.")

    def _extension_wakes(self) -> list[int]:
        """When scheduler extensions want to be called on an idle server (a real one's loop never stops)."""
        times = [getattr(extension, "next_wake_s", None) for extension in self.scheduler.extensions]
        return [int(t * SECOND) + 1 for t in times if t is not None]


def _check_pool(found: int, args: Any) -> None:
    """SGLang makes the pool smaller where this machine's memory is short: that would be another experiment."""
    asked = (args.max_total_tokens or 0) // args.page_size * args.page_size
    if found < asked:
        raise MemoryError(
            f"The emulated server has {found} KV slots instead of {asked}: this machine has too little free memory."
            " Use a smaller pool, or end other programs.")
