"""The model worker of the emulated server: a forward pass costs what the profile says and returns planned tokens.

Imported only after SGLang's plugins are loaded, because a plugin may replace the classes derived from here.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from sglang.srt.managers.tp_worker import TpModelWorker
from sglang.srt.managers.utils import GenerationBatchResult

from tokencake_sglang.emulator.clock import SECOND
from tokencake_sglang.emulator.device import EmulatedDevice, VirtualEvent, VirtualStream
from tokencake_sglang.emulator.oracle import TokenChain
from tokencake_sglang.emulator.tokens import OutputPlan

DECODE_CHECK_EVERY = 32  # decode passes between two full checks of a request's KV; the first is always checked


@dataclass
class Generation:
    """What the worker knows of one request: its planned output and, with the oracle, its fingerprints."""

    plan: OutputPlan
    prompt: array
    chain: TokenChain | None = None
    decodes: int = 0

    def prints(self, count: int) -> np.ndarray:
        """Fingerprints of the first `count` tokens of prompt and output."""
        if self.chain is None:
            self.chain = TokenChain(self.prompt)
        while len(self.chain.prints) < count:
            index = len(self.chain.prints) - len(self.prompt)
            upto = max(count, len(self.prompt) + self.plan.length)
            self.chain.grow(array("q", (self.plan.token(i) for i in range(index, upto - len(self.prompt)))))
        return self.chain.prints[:count]


@dataclass
class Pass:
    """One forward pass as it happened, for observers. Times are virtual nanoseconds."""

    begin_ns: int
    end_ns: int
    duration_ns: int  # without waiting for loads
    rids: list[str]
    new_tokens: list[int]
    prefix_tokens: list[int]
    decoding: set[str] = field(default_factory=set)


class EmulatedWorker(TpModelWorker):
    """`emulation` (set by the scheduler before construction): device, profile, oracle, generations, on_pass."""

    emulation: Any = None

    def forward_batch_generation(self, batch: Any, *args: Any, **kwargs: Any) -> GenerationBatchResult:
        return self.emulation.forward(self, batch)

    def emulated_pass(self, batch: Any) -> GenerationBatchResult:
        """Charge the pass, schedule what it reads and writes, and return the planned tokens."""
        em = self.emulation
        em.charge_host_step()
        self.set_hicache_consumer(batch.hicache_consumer_index)
        done = self._passed(batch)
        stream = em.device.current_stream()
        layer_ready = self._layers_ready(em.device, em.layers, stream)
        done.end_ns = _pipelined_end(done.begin_ns, done.duration_ns, layer_ready, em.profile.layers)
        stream.free_at_ns = done.end_ns
        stream.busy_ns += done.duration_ns
        if em.oracle is not None:
            self._schedule_contents(em, batch, done, layer_ready)
        if batch.forward_mode.is_decode():  # as a decode graph does once it has its own copy of the shared inputs
            self.model_runner.war_fastpath_read_done_event = VirtualEvent(em.device, done_at_ns=done.begin_ns)
        em.device.clock.at(done.end_ns, _ended)
        em.on_pass(done)
        tokens = [
            em.generations[req.rid].plan.token(max(0, prefix + new - len(req.origin_input_ids)))  # chunks: ignored
            for req, prefix, new in zip(batch.reqs, done.prefix_tokens, done.new_tokens, strict=True)]
        if not self.enable_overlap:
            em.device.clock.advance_to(done.end_ns)  # where the ordinary loop blocks on the result
        return GenerationBatchResult(
            next_token_ids=torch.tensor(tokens, dtype=torch.int64), can_run_cuda_graph=batch.forward_mode.is_decode())

    def _passed(self, batch: Any) -> Pass:
        """Lengths and time of the pass, before any wait for loads."""
        rids = [req.rid for req in batch.reqs]
        if batch.forward_mode.is_decode():
            new, decoding = [1] * len(rids), set(rids)
            prefix = [length - 1 for length in batch.seq_lens_cpu.tolist()]
        else:
            new, prefix = list(batch.extend_lens), list(batch.prefix_lens)
            decoding = {req.rid for req in batch.decoding_reqs or ()} if batch.forward_mode.is_mixed() else set()
        profile = self.emulation.profile
        chunks = [(n, p) for rid, n, p in zip(rids, new, prefix, strict=True) if rid not in decoding]
        context = sum(n + p for rid, n, p in zip(rids, new, prefix, strict=True) if rid in decoding)
        if not decoding:
            seconds = profile.prefill_s(chunks)
        elif not chunks:
            seconds = profile.decode_s(len(decoding), context)
        else:
            seconds = profile.mixed_s(chunks, len(decoding), context)
        begin = self.emulation.device.current_stream().start_ns()
        return Pass(begin, begin, int(seconds * SECOND), rids, new, prefix, decoding)

    def _layers_ready(self, device: EmulatedDevice, layers: int, stream: VirtualStream) -> list[int]:
        """When each emulated layer's KV has landed, as SGLang's own wait (KVCache.get_key_buffer) would find it."""
        counter = self.hicache_layer_transfer_counter
        if counter is None:
            return [0] * layers
        ready = []
        for layer in range(layers):
            probe = VirtualStream(device)
            with device.stream(probe):
                counter.wait_until(layer)
            ready.append(probe.free_at_ns)
        return ready

    def _schedule_contents(self, em: Any, batch: Any, done: Pass, layer_ready: list[int]) -> None:
        """Check what the pass reads when it reads it, and write what it computes when it ends."""
        rows = self.model_runner.req_to_token_pool.req_to_token
        written_slots, written, read_slots, read = [], [], [], []
        for req, new, prefix in zip(batch.reqs, done.new_tokens, done.prefix_tokens, strict=True):
            generation = em.generations[req.rid]
            prints = generation.prints(prefix + new)
            slots = rows[req.req_pool_idx, :prefix + new].numpy()
            written_slots.append(slots[prefix:])
            written.append(prints[prefix:])
            is_decode = req.rid in done.decoding
            generation.decodes = generation.decodes + 1 if is_decode else 0
            if prefix and (not is_decode or generation.decodes % DECODE_CHECK_EVERY == 1):
                read_slots.append(slots[:prefix])
                read.append(prints[:prefix])
        slots, prints = np.concatenate(written_slots).copy(), np.concatenate(written)
        clock, oracle = em.device.clock, em.oracle
        if read:
            wanted_slots, wanted = np.concatenate(read_slots).copy(), np.concatenate(read)
            reader = f"pass over {', '.join(done.rids[:4])}"
            for layer, ready in enumerate(layer_ready):
                when = max(ready, done.begin_ns + done.duration_ns * layer // len(layer_ready))
                clock.at(when, lambda layer=layer: oracle.check(layer, wanted_slots, wanted, reader), wakes=False)
        clock.at(done.end_ns, lambda: oracle.write(slots, prints), wakes=False)


def _pipelined_end(begin: int, duration: int, layer_ready: list[int], layers: int) -> int:
    """End of a pass whose layer k may start once its KV has landed.

    `layer_ready`: the emulated layers' landing times, evenly spaced over one load; the modelled model has `layers`.
    A load that is linear in time delays most at its first or at its last layer.
    """
    last = layer_ready[-1]
    if last <= begin:
        return begin + duration
    spacing = (last - layer_ready[0]) / max(1, len(layer_ready) - 1)
    first = last - spacing * len(layer_ready) * (layers - 1) / layers
    return int(max(begin + duration, first + duration, last + duration / layers))


def _ended() -> None:
    """Wakes an idle server at the end of a pass."""
