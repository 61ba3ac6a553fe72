"""How long a device takes for a step and for a copy: the cost model of the emulator.

Two forms of cost. `RooflineCost` follows from a model's shape and a device's figures (`data/gpu_profiles.json`).
`FittedCost` holds coefficients that `tokencake calibrate` measured on a server. Times are seconds, sizes bytes,
lengths tokens. None of them holds the host's time per step: that is `DeviceProfile.step_overhead_s`, which the
emulator charges to the host, so that the overlap loop can hide it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from tokencake_sglang.emulator import device_facts
from tokencake_sglang.emulator.device_facts import ProfileError

SCHEMA = "tokencake-profile/1"
MAX_PREFILL_TOKENS = 8192
Chunks = Sequence[tuple[int, int]]  # (new tokens, tokens already in the KV cache) of each request of a prefill


@dataclass(frozen=True)
class RooflineCost:
    """A step takes as long as the slower of two: reading weights and KV from memory, or computing.

    Every token costs `linear_flops`; attention costs `attention_flops` for each pair of a new token and one before
    it; every sampled token costs `head_flops`. A step reads `weight_bytes` once, and for each decoding request the
    KV of its context. `memory_bytes_per_s` and `flops_per_s` are effective rates.
    """

    weight_bytes: float
    kv_bytes_per_token: float
    linear_flops: float
    head_flops: float
    attention_flops: float
    memory_bytes_per_s: float
    flops_per_s: float

    def step_s(self, chunks: Chunks, batch: int, context: int) -> float:
        flops = batch * (self.linear_flops + self.head_flops)
        for new, prefix in chunks:
            flops += new * self.linear_flops + self.head_flops + self.attention_flops * new * (prefix + new / 2)
        read = self.weight_bytes + context * self.kv_bytes_per_token
        return max(read / self.memory_bytes_per_s, flops / self.flops_per_s)


@dataclass(frozen=True)
class FittedCost:
    """Sums of measured coefficients, all in seconds and none below zero.

    A prefill step takes `prefill_step` and, for each request, `prefill_request` + new * `new` + prefix * `prefix` +
    new * prefix * `new_prefix` + new^2 * `new_new` + prefix^2 * `prefix_prefix`, but at least `prefill_floor`. A
    decode step takes `decode_step` + batch * `decode_request` + context * `decode_context`. A mixed step takes both
    sums, with the smaller of the two constants left out.
    """

    prefill_step: float = 0.0
    prefill_request: float = 0.0
    new: float = 0.0
    prefix: float = 0.0
    new_prefix: float = 0.0
    new_new: float = 0.0
    prefix_prefix: float = 0.0
    prefill_floor: float = 0.0
    decode_step: float = 0.0
    decode_request: float = 0.0
    decode_context: float = 0.0

    def step_s(self, chunks: Chunks, batch: int, context: int) -> float:
        constant = max(self.prefill_step if chunks else 0.0, self.decode_step if batch else 0.0)
        work = batch * self.decode_request + context * self.decode_context
        for new, prefix in chunks:
            work += self.prefill_request + new * (self.new + prefix * self.new_prefix + new * self.new_new)
            work += prefix * (self.prefix + prefix * self.prefix_prefix)
        return max(constant + work, self.prefill_floor if chunks else 0.0)


COSTS = {"roofline": RooflineCost, "fitted": FittedCost}


@dataclass(frozen=True)
class DeviceProfile:
    """One model on one device.

    `pool_tokens`: KV slots of the device. `copy_latency_s` is paid once for a copy, `copy_run_s` for each of its
    contiguous runs of slots. `step_overhead_s`: the host's own time for each scheduler step; it is in no other
    figure.

    Raises:
        ProfileError: a value is not a number of its range.
    """

    id: str
    kv_bytes_per_token: int
    layers: int
    pool_tokens: int
    h2d_bytes_per_s: float
    d2h_bytes_per_s: float
    copy_latency_s: float
    step_overhead_s: float
    cost: RooflineCost | FittedCost
    copy_run_s: float = 0.0

    def __post_init__(self) -> None:
        positive = ("kv_bytes_per_token", "layers", "pool_tokens", "h2d_bytes_per_s", "d2h_bytes_per_s")
        _check(self, self.id, positive)
        _check(self.cost, self.id, ("memory_bytes_per_s", "flops_per_s"))

    def prefill_s(self, chunks: Chunks) -> float:
        """Device time of one prefill step; `chunks` holds (new, prefix) tokens of each request. Empty: 0."""
        return self.cost.step_s(chunks, 0, 0) if chunks else 0.0

    def decode_s(self, batch: int, total_context: int) -> float:
        """Device time of one decode step of `batch` requests whose contexts sum up to `total_context` tokens."""
        return self.cost.step_s((), batch, total_context) if batch else 0.0

    def mixed_s(self, chunks: Chunks, decode_batch: int, decode_context: int) -> float:
        """Device time of a step that prefills `chunks` and decodes `decode_batch` requests; weights are read once."""
        if not chunks and not decode_batch:
            return 0.0
        return self.cost.step_s(chunks, decode_batch, decode_context)

    def copy_s(self, tokens: int, runs: int, direction: str) -> float:
        """Time of one copy of the KV of `tokens` tokens in `runs` contiguous runs, "h2d" or "d2h". No token: 0."""
        if direction not in ("h2d", "d2h"):
            raise ValueError(f"direction is {direction!r}; allowed: 'h2d', 'd2h'.")
        if not tokens:
            return 0.0
        rate = self.h2d_bytes_per_s if direction == "h2d" else self.d2h_bytes_per_s
        return self.copy_latency_s + runs * self.copy_run_s + tokens * self.kv_bytes_per_token / rate

    def recompute_s(self, new: int, prefix: int, chunk: int = MAX_PREFILL_TOKENS) -> float:
        """Device time of computing `new` tokens after `prefix` cached ones, in chunks of at most `chunk` tokens."""
        starts = range(0, new, chunk)
        return sum(self.prefill_s([(min(chunk, new - start), prefix + start)]) for start in starts)

    def to_dict(self) -> dict[str, Any]:
        """Plain values; `from_dict` and `load_profile` read them."""
        form = next(name for name, kind in COSTS.items() if isinstance(self.cost, kind))
        return {"schema": SCHEMA, **asdict(self), "cost": {"form": form, **asdict(self.cost)}}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DeviceProfile:
        """The profile that `to_dict` wrote. Raises ProfileError naming what is missing or unknown."""
        where = f"profile {values.get('id', 'without an id')}"
        cost = dict(_of(values, "cost", where))
        form = cost.pop("form", None)
        if form not in COSTS:
            raise ProfileError(f"{where}: cost.form is {form!r}; allowed: {', '.join(COSTS)}.")
        own = {name: value for name, value in values.items() if name not in ("schema", "cost", "calibration")}
        return cls(cost=_made(COSTS[form], cost, f"{where}, cost"), **_fitting(cls, own, where))


def load_profile(id_or_path: str, overrides: Mapping[str, float] | None = None) -> DeviceProfile:
    """A shipped profile by its id, or the one in a user's file.

    Args:
        id_or_path: "MODEL@DEVICE" of known ones, or the path of a JSON file: one that `tokencake calibrate` wrote,
            or one in the schema of the shipped file, whose models, devices and profiles are added to the shipped
            ones ("FILE#ID" names the profile if the file has not exactly one). "?NAME=VALUE&NAME=VALUE" at the end
            sets numbers, for sweeps: "qwen2.5-14b@h200?h2d_bytes_per_s=25e9".
        overrides: the same as a dict; wins. Allowed are the numeric fields of DeviceProfile and of its cost.

    Raises:
        ProfileError: no such profile, file or field, or a value out of its range.
    """
    name, _, suffix = id_or_path.partition("?")
    profile = _from_file(name) if name.partition("#")[0].endswith(".json") else None
    if profile is None:
        profile = DeviceProfile.from_dict(device_facts.values_of(device_facts.shipped_facts(), name))
    changes = {**_parsed(suffix), **(overrides or {})}
    if not changes:
        return profile
    own = {f.name for f in fields(profile)} - {"id", "cost"}
    inner = {f.name for f in fields(profile.cost)}
    for unknown in sorted(set(changes) - own - inner):
        raise ProfileError(f"{unknown!r} cannot be set on profile {name}. Allowed: {', '.join(sorted(own | inner))}.")
    cost = replace(profile.cost, **{key: value for key, value in changes.items() if key in inner})
    label = "&".join(f"{key}={value:g}" for key, value in changes.items())
    outer = {key: value for key, value in changes.items() if key in own}
    return replace(profile, id=f"{profile.id}?{label}", cost=cost, **outer)


def _from_file(name: str) -> DeviceProfile:
    path, _, wanted = name.partition("#")
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ProfileError(f"The profile file {path} cannot be read: {error}. Give the path of a JSON file.") from None
    schema = values.get("schema") if isinstance(values, dict) else None
    if schema == SCHEMA:
        return DeviceProfile.from_dict(values)
    if schema != device_facts.SCHEMA:
        raise ProfileError(f"{path} has the schema {schema!r}; allowed: {SCHEMA!r}, {device_facts.SCHEMA!r}.")
    ids = [entry.get("id") for entry in values.get("profiles", [])]
    if not wanted and len(ids) != 1:
        raise ProfileError(f"{path} has {len(ids)} profiles ({', '.join(map(str, ids))}). Say which: {path}#ID.")
    facts = device_facts.merged(device_facts.shipped_facts(), values)
    return DeviceProfile.from_dict(device_facts.values_of(facts, wanted or ids[0]))


def _parsed(suffix: str) -> dict[str, float]:
    changes = {}
    for part in filter(None, suffix.split("&")):
        name, _, text = part.partition("=")
        try:
            number = float(text)
            changes[name] = int(number) if number.is_integer() else number
        except ValueError:
            raise ProfileError(f"{part!r} is not NAME=NUMBER.") from None
    return changes


def _of(values: Mapping[str, Any], name: str, where: str) -> Any:
    if name not in values:
        raise ProfileError(f"{where} does not say {name!r}. Add it.")
    return values[name]


def _fitting(kind: type, values: dict[str, Any], where: str) -> dict[str, Any]:
    """`values`, checked to be arguments of the dataclass `kind`."""
    allowed = [f.name for f in fields(kind)]
    for unknown in sorted(set(values) - set(allowed)):
        raise ProfileError(f"{where} has an unknown entry {unknown!r}; allowed: {', '.join(allowed)}.")
    for f in fields(kind):
        if f.name != "cost" and f.default is f.default_factory:  # both are MISSING: no default
            _of(values, f.name, where)
    return values


def _made(kind: type, values: dict[str, Any], where: str) -> Any:
    return kind(**_fitting(kind, values, where))


def _check(values: Any, where: str, positive: Sequence[str]) -> None:
    for f in fields(values):
        value = getattr(values, f.name)
        if f.name in ("id", "cost"):
            continue
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        if not is_number or value < 0 or (value == 0 and f.name in positive):
            bound = "above 0" if f.name in positive else "0 or more"
            raise ProfileError(f"Profile {where}: {f.name} is {value!r}; allowed: numbers {bound}.")
