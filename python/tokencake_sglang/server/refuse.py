"""Combinations that TokenCake cannot serve: the table, and the check that stops a start with one clear line.

Reasons rest on SGLang 0.5.17; each entry names the ServerArgs attribute that it reads.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tokencake_sglang.core.errors import ConfigError

BACKEND = "tokencake"


@dataclass(frozen=True)
class Refusal:
    """One refused setting: `attribute` of ServerArgs must be one of `allowed`."""

    attribute: str
    flag: str
    allowed: tuple[Any, ...]
    reason: str
    remedy: str


def _off(attribute: str, reason: str, flag: str | None = None, remedy: str | None = None) -> Refusal:
    flag = flag or "--" + attribute.replace("_", "-")
    return Refusal(attribute, flag, (False, None), reason, remedy or f"Leave {flag} out.")


def _one(attribute: str, reason: str, flag: str | None = None) -> Refusal:
    flag = flag or "--" + attribute.replace("_", "-")
    return Refusal(attribute, flag, (1,), reason, f"Use {flag} 1.")


_HTTP = "Leave it out; --grpc-port beside HTTP is fine."

REFUSALS: tuple[Refusal, ...] = (
    _one("pp_size", "moves are not kept in step across pipeline stages"),
    _one("nnodes", "only servers on one machine are verified"),
    _one("dcp_size", "the host pool of decode context parallelism counts tokens differently"),
    _one("attn_cp_size", "moves are not kept in step across attention context-parallel ranks"),
    _one("tokenizer_worker_num", "events of one agent would travel through several processes and lose their order"),
    _off("enable_dp_attention", "its ranks hold different requests, so they could not reach the same decisions"),
    _off("enable_pdmux", "its event loop does not run the steps that fold events"),
    _off("sleep_on_idle", "an idle scheduler that sleeps starts timed uploads up to a second late"),
    _off("speculative_algorithm", "draft tokens change the keys of the radix cache"),
    _off("dllm_algorithm", "diffusion models do not use the radix cache in the way that moves need"),
    _off("disable_radix_cache", "agents' KV is kept in the radix cache"),
    Refusal("radix_cache_backend", "--radix-cache-backend", (None, BACKEND), "TokenCake is itself the radix cache",
            f"Leave it out or use '{BACKEND}'."),
    _off("enable_lmcache", "it replaces the cache that TokenCake extends"),
    _off("enable_flexkv", "it replaces the cache that TokenCake extends"),
    _off("enable_hisparse", "it replaces the host tier that agents' KV moves to"),
    _off("enable_unified_memory", "it does not work with the host tier that agents' KV moves to"),
    _off("enable_session_radix_cache", "it needs the unified radix tree, whose nodes TokenCake does not track"),
    _off("enable_streaming_session", "it wraps the cache and holds KV outside it"),
    Refusal("hicache_write_policy", "--hicache-write-policy", ("write_through", "write_through_selective"),
            "write_back copies KV only when it is evicted, and then blocks the step: an offload would stall the server",
            "Use write_through, the default."),
    _off("hicache_storage_backend", "a third tier below host memory is not verified yet"),
    Refusal("disaggregation_mode", "--disaggregation-mode", ("null",),
            "prefill and decode servers hand KV to each other outside the cache that TokenCake tracks",
            "Leave it out."),
    _off("is_embedding", "embedding models generate nothing, so no agent waits and comes back", remedy=(
        "Serve a generation model, or start without --enable-tokencake.")),
    _off("encoder_only", "an encoder server has no KV cache"),
    _off("use_ray", "plugins are not loaded in Ray actors"),
    _off("smg_grpc_mode", "the control API is served over HTTP", remedy=_HTTP),
    _off("grpc_mode", "the control API is served over HTTP", remedy=_HTTP),
    Refusal("device", "--device", (None, "cuda", "cpu"), "only CUDA and the torch CPU platform are supported",
            "Use cuda or cpu, or leave it out."),
)

_BY_ATTRIBUTE = {item.attribute: item for item in REFUSALS}

ENVIRONMENT: tuple[tuple[str, str], ...] = (
    ("SGLANG_RUST_SERVER", "its HTTP side is not Python, so requests and events cannot be read there"),
    ("SGLANG_ENABLE_UNIFIED_RADIX_TREE", "TokenCake does not track the nodes of the unified radix tree"),
    ("SGLANG_EXPERIMENTAL_CPP_RADIX_TREE", "TokenCake does not track the nodes of the C++ radix tree"),
)

MODEL_KINDS: tuple[tuple[str, str, str], ...] = (
    ("is_hybrid_swa", "sliding-window attention", "part of its KV leaves the device by itself, in pools of their own"),
    ("is_hybrid_ssm", "state-space (Mamba) layers", "its state cannot be cut at a token, so it is not moved as KV is"),
    ("is_dsa", "DeepSeek sparse attention", "its index is kept in the unified radix tree only"),
)


def check(server_args: Any, environ: Mapping[str, str] | None = None) -> None:
    """Raise ConfigError with one line when `server_args` (ServerArgs, or parsed flags) cannot be served."""
    for item in REFUSALS:
        check_attribute(item.attribute, getattr(server_args, item.attribute))
    environ = os.environ if environ is None else environ
    for name, reason in ENVIRONMENT:
        if environ.get(name, "").lower() in ("1", "true", "yes", "y"):
            raise ConfigError(f"TokenCake cannot be used with {name}={environ[name]}: {reason}. Unset {name}.")


def check_attribute(attribute: str, value: Any) -> None:
    """The same for one attribute of the table."""
    item = _BY_ATTRIBUTE[attribute]
    if value not in item.allowed:
        found = item.flag if value is True else f"{item.flag} {value}"
        raise ConfigError(f"TokenCake cannot be used with {found}: {item.reason}. {item.remedy}")


def check_model(ctx: Any) -> None:
    """Raise ConfigError for a model whose cache TokenCake cannot extend; `ctx` is SGLang's TreeCacheBuildContext.

    Only the scheduler knows the kind of model, when it builds the cache, so the cache factory calls this.
    """
    for attribute, name, reason in MODEL_KINDS:
        if getattr(ctx, attribute):
            raise ConfigError(f"TokenCake cannot be used with this model, which has {name}: {reason}."
                              " Serve it without --enable-tokencake.")
    if ctx.disable_radix_cache:
        raise ConfigError("TokenCake cannot be used here: SGLang turned the radix cache off for this model or these"
                          " flags, and agents' KV is kept in it. Serve without --enable-tokencake.")
