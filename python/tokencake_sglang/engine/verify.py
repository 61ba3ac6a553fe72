"""Start-up checks that every seam is attached. SGLang only logs a plugin that fails; these stop the server."""

from __future__ import annotations

from typing import Any

from tokencake_sglang.core.errors import TokenCakeError
from tokencake_sglang.engine.cache import TokenCakeHiRadixCache

MEND = "Run `python -m tokencake_sglang.patching apply` (and `check`), then start again."
CACHE_SEAMS = ("on_node_inserted", "on_node_split", "on_node_removed")


def verify_cache(cache: Any) -> None:
    """Raises unless the scheduler uses our cache and SGLang's cache has the notifications it rests on."""
    from sglang.srt.mem_cache.radix_cache import RadixCache

    if not isinstance(cache, TokenCakeHiRadixCache):
        raise TokenCakeError(
            f"TokenCake is enabled but the scheduler's cache is {type(cache).__name__}. It needs"
            " --radix-cache-backend tokencake with --enable-hierarchical-cache and no wrapper around it."
            " Start with `python -m tokencake_sglang.launch_server --enable-tokencake`.")
    missing = [name for name in CACHE_SEAMS if not hasattr(RadixCache, name)]
    if missing:
        raise TokenCakeError(f"SGLang's RadixCache does not have {', '.join(missing)}: it is not patched. {MEND}")


def verify_scheduler(scheduler: Any, *message_types: type) -> None:
    """Raises unless requests carry metadata and the scheduler knows our messages."""
    from sglang.srt.managers.io_struct import TokenizedGenerateReqInput
    from sglang.srt.managers.scheduler_components.request_receiver import SchedulerRequestReceiver

    if "agent_metadata" not in TokenizedGenerateReqInput.__struct_fields__:
        raise TokenCakeError(f"SGLang's requests do not carry agent_metadata: it is not patched. {MEND}")
    if "extensions" not in SchedulerRequestReceiver.__dataclass_fields__:
        raise TokenCakeError(f"SGLang's request receiver has no extensions: it is not patched. {MEND}")
    unknown = [t.__name__ for t in message_types if t not in scheduler._request_dispatcher._mapping]
    if unknown:
        raise TokenCakeError(f"the scheduler did not take the messages {', '.join(unknown)}. {MEND}")
