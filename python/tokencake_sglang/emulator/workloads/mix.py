"""Several workloads in one run: `parts` is a list of {"name", "seed", "params", "label", "tenant"}; name is needed.

Programs and their own texts are renamed LABEL/..., so that two parts of one workload are different programs (a
label defaults to the name, with a number from the second on). Texts that all programs share stay shared. Lanes of the
parts are kept apart. The run ends at `horizon_s`, or else at the last of the parts' horizons if all have one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from tokencake_sglang.emulator.program import Part, Program, Text, Workload
from tokencake_sglang.emulator.spec import WorkloadSpec
from tokencake_sglang.emulator.workloads.parameters import Parameter, number

FIELDS = {"name", "seed", "params", "label", "tenant"}


def _is_part(part: Any) -> bool:
    return isinstance(part, dict) and set(part) <= FIELDS and isinstance(part.get("name"), str) \
        and isinstance(part.get("params", {}), dict) \
        and all(isinstance(part.get(name, ""), str) for name in ("label", "tenant"))


def parameters() -> dict[str, Parameter]:
    return {
        "parts": Parameter([], "the workloads, each {name, seed, params, label, tenant}",
                           "a list of objects with name and, if wanted, seed, params, label and tenant",
                           lambda value: isinstance(value, list) and all(map(_is_part, value)) and bool(value)),
        "horizon_s": number(None, "end of the run (None: the parts')", above=True),
    }


def build(one: Callable[[WorkloadSpec], Workload], seed: str, values: Mapping[str, Any]) -> Workload:
    """Builds the parts with `one` and merges them by time of arrival."""
    entries: list[tuple[float, Program]] = []
    horizons: list[float | None] = []
    labels: set[str] = set()
    lanes = 0
    for index, part in enumerate(values["parts"]):
        label = part.get("label") or part["name"]
        label = label if label not in labels else f"{label}-{index}"
        if label in labels:
            raise ValueError(f"workload mix: two parts have the label {label!r}; labels must differ")
        labels.add(label)
        workload = one(WorkloadSpec(part["name"], part.get("seed", f"{seed}/{index}"), part.get("params", {})))
        horizons.append(workload.horizon_s)
        starts: dict[int | None, float] = {}
        for program in workload.programs:
            start = program.arrival_s if program.lane is None else starts.get(program.lane, 0.0) + program.arrival_s
            starts[program.lane] = start
            tenant = part.get("tenant", program.tenant)
            entries.append((start, replace(_renamed(program, label, lanes), tenant=tenant)))
        lanes += 1 + max((program.lane for program in workload.programs if program.lane is not None), default=-1)
    programs = tuple(program for _, program in sorted(entries, key=lambda entry: entry[0]))
    known = [horizon for horizon in horizons if horizon is not None]
    latest = max(known) if len(known) == len(horizons) else None
    return Workload("mix", programs, values["horizon_s"] or latest)


def _renamed(program: Program, label: str, first_lane: int) -> Program:
    own = f"{program.app_id}/"

    def part(old: Part) -> Part:
        return Text(f"{label}/{old.key}", old.tokens) if isinstance(old, Text) and old.key.startswith(own) else old

    calls = tuple(
        replace(call, prompt=tuple(map(part, call.prompt))) for call in program.calls)
    lane = None if program.lane is None else program.lane + first_lane
    return replace(program, app_id=f"{label}/{program.app_id}", calls=calls, lane=lane)
