"""The times of a real scheduler's steps and KV copies, measured in its own process, as lines of JSON.

`run_scheduler_process` stands in for SGLang's function of that name. Before its first request the scheduler copies
KV of its own pools back and forth through its own HiCacheController; then every forward pass is timed from the moment
when the device has nothing else to do until its result is there.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from statistics import median
from typing import Any, TextIO

ENV_PATH = "TOKENCAKE_STEP_LOG"
COPY_TOKENS = (64, 256, 1024, 4096, 16384)
COPY_RUNS = (1, 4, 16)
COPY_REPEATS = 5
POOL_SHARE = 3  # a copy takes at most one third of the pool


def run_scheduler_process(*args: Any, **kwargs: Any) -> None:
    """SGLang's `run_scheduler_process`, writing to the file that `TOKENCAKE_STEP_LOG` names."""
    from sglang.srt.managers import scheduler

    install(scheduler.Scheduler, open(os.environ[ENV_PATH], "a", buffering=1, encoding="utf-8"))
    scheduler.run_scheduler_process(*args, **kwargs)


def install(scheduler_class: type, log: TextIO) -> None:
    """Measure when a scheduler enters its loop, and each of its steps from then on (tensor-parallel rank 0 only)."""
    enter_loop = scheduler_class.run_event_loop

    def run_event_loop(scheduler: Any) -> None:
        if scheduler.ps.tp_rank == 0:
            write(log, facts_of(scheduler))
            for line in copies_of(scheduler):
                write(log, line)
            worker = scheduler.model_worker
            worker.forward_batch_generation = timed(worker.forward_batch_generation, log)
        enter_loop(scheduler)

    scheduler_class.run_event_loop = run_event_loop


def write(log: TextIO, line: dict[str, Any]) -> None:
    log.write(json.dumps(line) + "\n")


def synchronize() -> None:
    """Wait until the device has done all that it was asked for."""
    import torch

    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


def timed(forward: Callable[..., Any], log: TextIO) -> Callable[..., Any]:
    """`forward` with a line per step: what it computed, its time, and when the host came and went."""

    def timed_forward(batch: Any, *args: Any, **kwargs: Any) -> Any:
        entered = time.perf_counter()
        line = {"kind": "step", "entered": entered, **composition(batch)}
        synchronize()
        start = time.perf_counter()
        result = forward(batch, *args, **kwargs)
        synchronize()
        line["seconds"] = time.perf_counter() - start
        line["left"] = time.perf_counter()
        write(log, line)
        return result

    return timed_forward


def composition(batch: Any) -> dict[str, Any]:
    """`chunks` of a prefill, `batch` and `context` of a decode step; neither for a step of both."""
    mode = batch.forward_mode
    if mode.is_decode():
        return {"batch": len(batch.reqs), "context": int(batch.seq_lens_cpu.sum())}
    if mode.is_extend() and not mode.is_mixed():
        return {"chunks": [list(pair) for pair in zip(batch.extend_lens, batch.prefix_lens, strict=True)]}
    return {}


def facts_of(scheduler: Any) -> dict[str, Any]:
    import torch

    pool = scheduler.token_to_kv_pool_allocator.get_kvcache()
    sizes = pool.get_kv_size_bytes()  # K and V, or one number
    total = sum(sizes) if isinstance(sizes, tuple) else sizes
    config = scheduler.model_config
    return {
        "kind": "facts",
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else scheduler.device,
        "kv_bytes_per_token": round(total / (pool.size + pool.page_size)),
        "layers": config.num_hidden_layers,
        "pool_tokens": scheduler.max_total_num_tokens,
        "max_chunk": scheduler.chunked_prefill_size or scheduler.max_prefill_tokens,
        "context_tokens": config.context_len,
        "vocab": config.vocab_size,
    }


def copies_of(scheduler: Any) -> list[dict[str, Any]]:
    """Times of copies through the scheduler's HiCacheController; none without a host tier."""
    controller = getattr(scheduler.tree_cache, "cache_controller", None)
    if controller is None:
        return []
    lines = []
    for tokens in COPY_TOKENS:
        room = min(controller.mem_pool_device_allocator.available_size(), controller.mem_pool_host.available_size())
        if tokens * 2 > room / POOL_SHARE:
            break
        for runs in COPY_RUNS:
            if tokens % (runs * controller.page_size) == 0:
                lines += copy_lines(controller, tokens, runs)
    return lines


def copy_lines(controller: Any, tokens: int, runs: int) -> list[dict[str, Any]]:
    """The median time of backing `tokens` slots in `runs` runs up, and of loading them into such slots."""
    import torch

    allocator = controller.mem_pool_device_allocator
    slots = allocator.alloc(2 * tokens)
    pieces = slots.view(2 * runs, tokens // runs)
    chosen = torch.cat([pieces[2 * i] for i in range(runs)])  # every other piece, so each is a run of its own
    times: dict[str, list[float]] = {"d2h": [], "h2d": []}
    for _ in range(COPY_REPEATS + 1):
        synchronize()
        start = time.perf_counter()
        host = controller.write(chosen)
        synchronize()
        times["d2h"].append(time.perf_counter() - start)
        start = time.perf_counter()
        load_into(controller, host, chosen)
        synchronize()
        times["h2d"].append(time.perf_counter() - start)
        controller.mem_pool_host.free(host)
        controller.ack_write_queue.clear()
        controller.ack_load_queue.clear()
    allocator.free(slots)
    return [{"kind": "copy", "direction": direction, "tokens": tokens, "runs": runs, "seconds": median(found[1:])}
            for direction, found in times.items()]


def load_into(controller: Any, host: Any, device: Any) -> None:
    """`controller.load` and `start_loading`, but into slots that are held already."""
    from sglang.srt.managers.cache_controller import CacheOperation

    controller.load_queue.append(CacheOperation(host, device, -1))
    controller.start_loading()
