"""SGLang's defaults that depend on the GPU: the emulator takes those of the emulated one."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tokencake_sglang.emulator.profile import load_profile
from tokencake_sglang.emulator.server_defaults import chunk_of_memory, chunked_prefill_size

GIB = 1 << 30


@pytest.mark.parametrize(("memory_gib", "chunk"), [(16, 2048), (24, 2048), (48, 4096), (80, 8192), (141, 8192),
                                                   (180, 16384)])
def test_larger_devices_get_larger_chunks(memory_gib, chunk):
    assert chunk_of_memory(memory_gib * GIB) == chunk


def test_the_device_of_the_profile_decides():
    assert chunked_prefill_size(load_profile("llama-3.1-8b@a10g-24gb")) == 2048
    assert chunked_prefill_size(load_profile("qwen2.5-14b@h200?h2d_bytes_per_s=25e9")) == 8192


def test_the_memory_of_a_users_device_is_read_off_weights_and_pool():
    small = replace(load_profile("llama-3.1-8b@a10g-24gb"), id="llama-3.1-8b@mine")
    large = replace(load_profile("qwen2.5-14b@a100-80gb"), id="mine")
    assert (chunked_prefill_size(small), chunked_prefill_size(large)) == (2048, 8192)
