"""SGLang settings that fit the device and that the launcher chooses where the user left them open."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from tokencake_sglang.core.config import TokenCakeConfig
from tokencake_sglang.core.errors import ConfigError
from tokencake_sglang.server.refuse import BACKEND

CPU_SETTINGS = {"device": "cpu", "attention_backend": "torch_native", "sampling_backend": "pytorch",
                "grammar_backend": "outlines"}
CPU_HICACHE = {"hicache_io_backend": "direct", "hicache_mem_layout": "layer_first"}
CUDA_HICACHE = {"hicache_io_backend": "kernel", "hicache_mem_layout": "page_first"}
CUDA_CHUNKS = {"enable_mixed_chunk": True, "chunked_prefill_size": 128}
BALANCED_MOST = 1024  # tokens of a batch in which nothing decodes, where the others are balanced
LAYOUT_OF_DIRECT = "page_first_direct"


def choose(device: str, given: Mapping[str, Any], enabled: bool) -> dict[str, Any]:
    """ServerArgs values to add for `device` ("cuda" or "cpu"); nothing that the user gave himself is in it.

    With TokenCake off only what SGLang needs to run on this device at all is chosen.
    """
    chosen: dict[str, Any] = dict(CPU_SETTINGS) if device == "cpu" else {}
    if enabled:
        chosen.update(radix_cache_backend=BACKEND, enable_hierarchical_cache=True, hicache_write_policy="write_through")
    if device == "cpu" and (enabled or given.get("enable_hierarchical_cache")):
        chosen.update(CPU_HICACHE)
    elif enabled:
        chosen.update(CUDA_HICACHE)
        if given.get("hicache_io_backend") == "direct":
            chosen["hicache_mem_layout"] = LAYOUT_OF_DIRECT
        if given.get("hicache_mem_layout") == LAYOUT_OF_DIRECT:
            chosen["hicache_io_backend"] = "direct"
        if not CUDA_CHUNKS.keys() & given.keys():
            chosen.update(CUDA_CHUNKS)
    return {name: value for name, value in chosen.items() if name not in given}


def settle_chunks(chosen: Mapping[str, Any], config: TokenCakeConfig) -> tuple[dict[str, Any], TokenCakeConfig]:
    """`chosen` and the settings, with balanced chunks where the chunks were chosen here and the user did not ask for
    others."""
    is_ours = "chunked_prefill_size" in chosen
    if config.chunks == "auto":
        config = replace(config, chunks="balanced" if is_ours else "fixed")
    if is_ours and config.chunks == "balanced":
        return {**chosen, "chunked_prefill_size": BALANCED_MOST}, config
    return dict(chosen), config


def device_of(given: Mapping[str, Any], accelerator: bool) -> str:
    """"cuda" or "cpu": what the user asked for, else what there is. Other devices are left to `refuse.check`."""
    asked = given.get("device")
    if asked == "cpu" and accelerator:
        raise ConfigError("--device cpu is given but this machine has an accelerator, where the torch CPU platform"
                          " stays off. Leave --device out, or hide the accelerator with CUDA_VISIBLE_DEVICES=''.")
    if asked == "cuda" and not accelerator:
        raise ConfigError("--device cuda is given but torch finds no accelerator here. Leave --device out to serve on"
                          " the CPU, or install a driver.")
    return asked or ("cuda" if accelerator else "cpu")


def as_flags(values: Mapping[str, Any]) -> list[str]:
    """ServerArgs values as command-line words; a true value becomes the flag alone."""
    words: list[str] = []
    for name, value in values.items():
        words.append("--" + name.replace("_", "-"))
        if value is not True:
            words.append(str(value))
    return words


def check_plugins_variable(environ: Mapping[str, str], needed: Collection[str]) -> None:
    """Raise ConfigError when SGLANG_PLUGINS, SGLang's list of plugins to load, leaves ours out."""
    allowed = {word.strip() for word in environ.get("SGLANG_PLUGINS", "").split(",") if word.strip()}
    for name in needed:
        if allowed and name not in allowed:
            raise ConfigError(f"SGLANG_PLUGINS={environ['SGLANG_PLUGINS']} leaves out the plugin {name!r}, which is"
                              f" needed here. Add {name} to it, or unset it.")
