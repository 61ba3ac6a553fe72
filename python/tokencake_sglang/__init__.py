"""TokenCake on SGLang. `import tokencake_sglang as tc` gives the frontend; sglang is loaded on first use of it."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from tokencake_sglang.version import __version__

_HOMES = {
    "AgentGraph": "frontend.graph",
    "AgentStopped": "frontend.batch",
    "BatchInterrupted": "frontend.batch",
    "Engine": "offline",
    "Forecast": "core.graph",
    "GraphError": "core.errors",
    "Node": "core.graph",
    "Stage": "frontend.tool",
    "Tool": "frontend.tool",
    "ToolError": "frontend.tool",
    "ToolTimeout": "frontend.tool",
    "stage_done": "frontend.tool",
    "tool": "frontend.tool",
    "app": "frontend.identity",
    "AgentFunction": "frontend.agents",
    "Endpoint": "frontend.endpoint",
    "derive": "frontend.derive",
    "agent": "frontend.agents",
    "barrier": "frontend.flow",
    "branch": "frontend.flow",
    "call": "frontend.calls",
    "loop": "frontend.flow",
    "value": "frontend.calls",
}
_MODULES = {"nodes": "frontend.nodes"}
__all__ = [*_HOMES, *_MODULES, "__version__"]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"{__name__}.{_MODULES[name]}")
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {sorted(__all__)}")
    value = getattr(import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

