"""What the launcher and the offline Engine share: readiness, SGLang's plugins, the device, the notice.

SGLang and torch are imported inside functions, because the environment has to be complete before they are.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from tokencake_sglang.core.config import TokenCakeConfig
from tokencake_sglang.core.errors import TokenCakeError
from tokencake_sglang.server import deployment, refuse
from tokencake_sglang.version import SGLANG_VERSION, __version__

ENV_CONFIG = "TOKENCAKE_CONFIG"
ENV_RECORD = "TOKENCAKE_RECORD"
OFF = "off"


def has_accelerator() -> bool:
    """Whether torch sees a device other than the CPU (the same test as the torch CPU platform makes)."""
    import torch

    return torch.cuda.is_available() or torch.accelerator.is_available()


def require_ready() -> None:
    """Raise TokenCakeError unless the right SGLang is installed and completely patched."""
    from tokencake_sglang.patching import require_patched

    require_patched()


def load_plugins(config: TokenCakeConfig | None, trace: str | None = None) -> None:
    """Put the settings into the environment, load SGLang's plugins, and make sure that ours attached.

    `trace` is the absolute path of the trace to record, if any.
    """
    deployment.check_plugins_variable(os.environ, ["tokencake"])
    os.environ[ENV_CONFIG] = OFF if config is None else config.to_json()
    os.environ.pop(ENV_RECORD, None)
    if trace is not None:
        os.environ[ENV_RECORD] = trace
    from sglang.srt.mem_cache.registry import registered_radix_cache_backends
    from sglang.srt.plugins import load_plugins as load

    from tokencake_sglang.server.install import verify_http

    load()
    verify_http(enabled=config is not None)
    if config is not None and refuse.BACKEND not in registered_radix_cache_backends():
        raise TokenCakeError("TokenCake's cache was not registered with SGLang. Either its plugin failed, and the log"
                             " above says why, or this process has created an engine without TokenCake before: SGLang"
                             " loads plugins once. Run `tokencake doctor`, or use a new process.")
    if trace is not None:
        from tokencake_sglang.engine import recorder

        if recorder.registered_path != trace:
            raise TokenCakeError("TokenCake's recorder was not registered with SGLang; the log above says why. Run"
                                 " `tokencake doctor`.")


def prepare(given: Mapping[str, Any], config: TokenCakeConfig | None,
            ) -> tuple[str, dict[str, Any], TokenCakeConfig | None]:
    """The device ("cuda" or "cpu"), the ServerArgs values chosen for it, and the settings with what goes with them,
    which processes that start from now on have. None: TokenCake is off.

    `given` holds the ServerArgs values that the user gave himself.
    """
    enabled = config is not None
    if enabled:
        refuse.check_attribute("device", given.get("device"))
    device = deployment.device_of(given, has_accelerator())
    if device == "cpu":
        deployment.check_plugins_variable(os.environ, ["tokencake_cpu"])
    chosen = deployment.choose(device, given, enabled)
    if config is not None:
        chosen, config = deployment.settle_chunks(chosen, config)
        os.environ[ENV_CONFIG] = config.to_json()
    return device, chosen, config


def notice(config: TokenCakeConfig | None, device: str, chosen: Mapping[str, Any], url: str | None,
           trace: str | None = None) -> str:
    """The block that says what is on."""
    flags = " ".join(deployment.as_flags(chosen)) or "none"
    head = f"TokenCake {__version__} on SGLang {SGLANG_VERSION}, device {device}: "
    recorded = [f"  recording lengths and times of requests to {trace}"] if trace else []
    if config is None:
        off = [f"{head}OFF (stock serving; --enable-tokencake turns it on)", f"  SGLang flags chosen: {flags}"]
        return "\n".join(off + recorded)
    default = asdict(TokenCakeConfig())
    lines = [f"{head}ON"]
    lines += [f"  {name}: {value!r}{'' if value == default[name] else f'  (default {default[name]!r})'}"
              for name, value in asdict(config).items()]
    lines.append(f"  SGLang flags chosen: {flags}")
    if url:
        lines.append(f"  control API: POST {url}/v1/tokencake/events and /actions, GET {url}/v1/tokencake/state")
    return "\n".join(lines + recorded)
