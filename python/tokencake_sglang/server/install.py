"""What the plugin calls in every process so that the HTTP process serves the control API. Imports SGLang lazily."""

from __future__ import annotations

from tokencake_sglang.core.config import TokenCakeConfig


def install_http(config: TokenCakeConfig | None) -> None:
    """Register the HTTP side's hooks; harmless in processes without an HTTP server.

    `config` None means the server was started by our launcher without --enable-tokencake: the routes exist and answer
    503, and requests are left as they are.
    """
    from tokencake_sglang.server import gateway

    gateway.register_hooks(config)


def verify_http(enabled: bool) -> None:
    """Raise TokenCakeError unless the hooks are in place; to be called after SGLang's load_plugins().

    `enabled`: TokenCake is on, so that requests carry metadata.
    """
    from tokencake_sglang.server import gateway

    gateway.verify_hooks(enabled)
