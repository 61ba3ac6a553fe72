"""What a client tells the server about a tool's duration, and how wrong that is."""

from __future__ import annotations

import math
import random
from statistics import NormalDist
from typing import Any

from tokencake_sglang.emulator.workloads.parameters import Parameter

NAMES = ("exact", "mean", "default", "none")
ALLOWED = (
    'one of "exact", "mean", "default", "none", or an object with one of: "factor" (a number above 0), '
    '"lognormal_sigma" (a number of at least 0), "uniform_factor" or "loguniform_factor" ([low, high] with '
    '0 < low <= high)')


def parameter(default: str, meaning: str = "what clients tell about a tool's duration beforehand") -> Parameter:
    return Parameter(default, meaning, ALLOWED, accepts)


def accepts(knob: Any) -> bool:
    if isinstance(knob, str):
        return knob in NAMES
    if not isinstance(knob, dict) or len(knob) != 1:
        return False
    (name, value), = knob.items()
    if name in ("uniform_factor", "loguniform_factor"):
        return isinstance(value, (list, tuple)) and len(value) == 2 and all(map(_number, value)) \
            and 0 < value[0] <= value[1]
    if name == "factor":
        return _number(value) and value > 0
    return name == "lognormal_sigma" and _number(value) and value >= 0


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def forecast_s(
    knob: Any, duration_s: float, rng: random.Random, *, mean_s: float | None = None, default_s: float | None = None
) -> float | None:
    """The forecast for a tool that takes `duration_s`; None means the client says nothing.

    "exact": the duration. "mean": the mean of the tool's kind, "default": the default of its kind (both: nothing
    where the workload knows none). "factor" f: f times the duration. "lognormal_sigma" s: the duration times
    exp(s z), z standard normal, so the median is right. "uniform_factor" [a, b]: the duration times a factor drawn
    evenly from a to b; "loguniform_factor" [a, b]: whose logarithm is drawn evenly. One number is drawn from `rng`
    whatever the knob says, so that it moves no other draw.
    """
    uniform = rng.random()
    if isinstance(knob, str):
        return {"exact": duration_s, "mean": mean_s, "default": default_s, "none": None}[knob]
    if "factor" in knob:
        return duration_s * knob["factor"]
    if "uniform_factor" in knob:
        low, high = knob["uniform_factor"]
        return duration_s * (low + (high - low) * uniform)
    if "loguniform_factor" in knob:
        low, high = knob["loguniform_factor"]
        return duration_s * low * (high / low) ** uniform
    return duration_s * math.exp(knob["lognormal_sigma"] * standard_normal(uniform))


def standard_normal(uniform: float) -> float:
    """The standard normal quantile of `uniform`, a number in [0, 1)."""
    return NormalDist().inv_cdf(max(uniform, 1e-12))
