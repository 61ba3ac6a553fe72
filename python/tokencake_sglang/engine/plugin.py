"""Entry point `sglang.srt.plugins`: attaches TokenCake in every SGLang process, or does nothing.

`TOKENCAKE_CONFIG` (set by the launcher, inherited by SGLang's processes) holds the settings as JSON; unset
means that nothing is touched; "off" means that only the control routes exist, and answer 503. `TOKENCAKE_RECORD` beside
it, in either case, names the trace to which requests are recorded.
"""

from __future__ import annotations

import os
from typing import Any

CONFIG_ENV = "TOKENCAKE_CONFIG"
RECORD_ENV = "TOKENCAKE_RECORD"
OFF = "off"
BACKEND = "tokencake"


def register() -> None:
    text = os.environ.get(CONFIG_ENV)
    if not text:
        return
    from tokencake_sglang.core.config import TokenCakeConfig
    from tokencake_sglang.server.install import install_http

    if text == OFF:
        install_http(None)
        _register_recorder()
        return
    config = TokenCakeConfig.from_json(text)
    from tokencake_sglang.engine.ipc import register_ipc_types

    register_ipc_types()
    _register_backend(config)
    _register_extension(config)
    _register_recorder()
    install_http(config)


def _register_backend(config: Any) -> None:
    from sglang.srt.mem_cache.registry import register_radix_cache_backend

    def build(ctx: Any) -> Any:
        from tokencake_sglang.engine.cache import TokenCakeHiRadixCache
        from tokencake_sglang.server.refuse import check_model

        check_model(ctx)
        cache = TokenCakeHiRadixCache(ctx.params, ctx.server_args, config)
        ctx.tp_worker.register_hicache_layer_transfer_counter(cache.cache_controller.layer_done_counter)
        return cache

    register_radix_cache_backend(BACKEND, build)


def _register_extension(config: Any) -> None:
    from sglang.srt.managers.scheduler_extension import register_scheduler_extension

    def build(scheduler: Any) -> Any:
        from tokencake_sglang.engine.extension import TokenCakeExtension

        return TokenCakeExtension(scheduler, config)

    register_scheduler_extension(build)


def _register_recorder() -> None:
    path = os.environ.get(RECORD_ENV)
    if path:
        from tokencake_sglang.engine import recorder

        recorder.register(path)
