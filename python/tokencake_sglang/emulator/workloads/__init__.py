"""Workloads by name: `build(WorkloadSpec) -> Workload`. Standard library only; docs/workloads.md has the list.

The same spec gives an equal workload in every process: all draws come from `random.Random` seeded with strings.
Keys of texts that belong to one program start with its `app_id` and a slash; all other keys are shared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from tokencake_sglang.emulator.program import Workload
from tokencake_sglang.emulator.spec import WorkloadSpec
from tokencake_sglang.emulator.workloads import chat, coding_sessions, crowd, dag, mix, mooncake, tool_turns, tracelab
from tokencake_sglang.emulator.workloads.parameters import Parameter, resolve
from tokencake_sglang.emulator.workloads.summary import describe

__all__ = ["build", "describe", "names", "parameters"]


@dataclass(frozen=True)
class Builder:
    """`build(seed, values)`: `seed` is a string, `values` holds every parameter."""

    parameters: Mapping[str, Parameter]
    build: Callable[[str, Mapping[str, Any]], Workload]


BUILDERS: dict[str, Builder] = {
    "code_writer": Builder(dag.parameters("append_tools128"), partial(dag.build, "code_writer")),
    "deep_research": Builder(dag.parameters("artifact"), partial(dag.build, "deep_research")),
    "dag": Builder(dag.parameters(None), partial(dag.build, "dag")),
    "coding_sessions": Builder(coding_sessions.parameters(), coding_sessions.build),
    "mooncake": Builder(mooncake.parameters(), mooncake.build),
    "tracelab": Builder(tracelab.parameters(), tracelab.build),
    "chat": Builder(chat.parameters(), chat.build),
    "tool_turns": Builder(tool_turns.parameters(), tool_turns.build),
    "crowd": Builder(crowd.parameters(), crowd.build),
    "mix": Builder(mix.parameters(), lambda seed, values: mix.build(build, seed, values)),
}


def names() -> tuple[str, ...]:
    return tuple(BUILDERS)


def parameters(name: str) -> Mapping[str, Parameter]:
    """The parameters of one workload. ValueError if there is no such workload."""
    return _builder(name).parameters


def build(spec: WorkloadSpec) -> Workload:
    """The programs of a spec. ValueError: no such workload or parameter, a wrong value, or a bad trace line."""
    builder = _builder(spec.name)
    values = resolve(spec.name, builder.parameters, spec.params)
    return builder.build(f"{spec.name}/{spec.seed}", values)


def _builder(name: str) -> Builder:
    if name not in BUILDERS:
        raise ValueError(f"no workload {name!r}; there are {', '.join(BUILDERS)}")
    return BUILDERS[name]
