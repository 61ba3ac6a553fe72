"""Defaults that SGLang takes from the GPU it finds; the emulator's CPU would get others.

The rest of what the scheduler uses (max_prefill_tokens 16384, schedule_conservativeness 1.0, page_size 1, and
max_running_requests from the pool and the context length) is chosen alike on CUDA and the CPU.
"""

from __future__ import annotations

from typing import Any

from tokencake_sglang.emulator.device_facts import DEFAULT_MEM_FRACTION, shipped_facts

MIB = 1 << 20
GIB_IN_MIB = 1024
LARGEST_CHUNK = 16384
# srt/server_args.py, ServerArgs._handle_gpu_memory_settings: device memory below (GiB) -> --chunked-prefill-size
CHUNK_BELOW_GIB = ((20, 2048), (35, 2048), (60, 4096), (90, 8192), (160, 8192))
UNKNOWN_DEVICE_CHUNK = 8192


def chunk_of_memory(memory_bytes: float) -> int:
    """--chunked-prefill-size that SGLang 0.5.17 chooses on a GPU with so much memory."""
    for below_gib, chunk in CHUNK_BELOW_GIB:
        if memory_bytes / MIB < below_gib * GIB_IN_MIB:
            return chunk
    return LARGEST_CHUNK


def chunked_prefill_size(profile: Any) -> int:
    """The same for the device of a DeviceProfile.

    Its memory is that of the shipped device in its id, "MODEL@DEVICE". Of any other device it is what weights and
    KV pool take at SGLang's usual memory fraction; where the profile does not know its weights (a calibrated one),
    the answer is UNKNOWN_DEVICE_CHUNK.
    """
    name = profile.id.partition("?")[0].partition("@")[2]
    device = shipped_facts()["devices"].get(name)
    if device is not None:
        return chunk_of_memory(device["memory_bytes"])
    weights = getattr(profile.cost, "weight_bytes", None)
    if weights is None:
        return UNKNOWN_DEVICE_CHUNK
    return chunk_of_memory((weights + profile.pool_tokens * profile.kv_bytes_per_token) / DEFAULT_MEM_FRACTION)
