"""Where an agent's KV is when its tool comes back, and how long the first token of its next answer then takes."""

from __future__ import annotations

from array import array
from dataclasses import asdict, dataclass
from typing import Any

from tokencake_sglang.emulator.clients import CallRun
from tokencake_sglang.emulator.tree_path import kv_of, path_of

LONG_STALL_S = 2.0  # what is shorter is left out of readiness
SMALL_TOKENS = 64  # of KV that was computed before, fewer cannot be told


@dataclass(frozen=True)
class AtReturn:
    """Tokens of what the next call of an agent reads again, at the moment when its client sends it.

    `device`: there to read. `loading`: a copy back is under way. `host`: on the host only. `lost`: computed before and
    on no tier. `uploaded`: of those on the device, brought back by uploads during the stall.
    """

    device_tokens: int
    loading_tokens: int
    host_tokens: int
    lost_tokens: int
    uploaded_tokens: int

    @property
    def missing_tokens(self) -> int:
        return self.loading_tokens + self.host_tokens + self.lost_tokens

    @property
    def is_ready(self) -> bool:
        return self.missing_tokens < SMALL_TOKENS

    @property
    def was_away(self) -> bool:
        """Whether there was anything to bring back."""
        return not self.is_ready or self.uploaded_tokens >= SMALL_TOKENS

    def to_dict(self) -> dict[str, int]:
        return asdict(self)


def waited_s(call: CallRun) -> float | None:
    """How long the longest tool before `call` took; None: it comes after no tool."""
    parents = [call.program.calls[name].call.tool for name in call.call.after]
    return max((tool.duration_s for tool in parents if tool is not None), default=None)


def at_return(server: Any, prompt: array, known: int, uploaded: int) -> AtReturn:
    """`known`: tokens at the start of the prompt that were computed before."""
    device = loading = host = 0
    for node, shared in path_of(server.scheduler.tree_cache, prompt[:len(prompt) - 1]):
        kv = kv_of(node)
        if kv.value is not None:
            filling = server.copies.loading(kv.value[:shared])
            device, loading = device + shared - filling, loading + filling
        elif getattr(kv, "host_value", None) is not None:
            host += shared
    lost = known - device - loading - host
    return AtReturn(device, loading, host, lost if lost >= SMALL_TOKENS else 0, uploaded)


def summary(calls: list[dict[str, Any]]) -> dict[str, float | None]:
    """`calls` as the result document has them. First tokens: of every call that came back from a tool, from the
    client's request on. Stalls: those longer than LONG_STALL_S."""
    from tokencake_sglang.emulator.result import quantile

    back = [call for call in calls if call["after_tool_s"]]
    first = [call["first_token_s"] - call["submitted_s"] for call in back if call["first_token_s"] is not None]
    seen = [AtReturn(**call["at_return"]) for call in back if call["after_tool_s"] > LONG_STALL_S]
    away = [found for found in seen if found.was_away]
    ready = [found for found in away if found.is_ready]
    return {
        "turns": len(first), "first_token_mean_s": sum(first) / len(first) if first else None,
        "first_token_p50_s": quantile(first, 0.5), "first_token_p95_s": quantile(first, 0.95),
        "stalls": len(seen), "away": len(away), "ready": len(ready),
        "ready_share": len(ready) / len(away) if away else None,
        "loading": sum(found.loading_tokens >= SMALL_TOKENS for found in away),
        "lost": sum(found.lost_tokens > 0 for found in away),
    }
