"""Distributions as the data files write them: a number, or an object with a `kind`.

| kind | fields | drawn |
|---|---|---|
| constant | value | the value |
| lognormal | p50, sigma | p50 exp(sigma z) |
| bounded_pareto | L, H, alpha | between L and H with tail index alpha; 0 means log-uniform |
| normal_clipped, normal | mean, std | normal, at least 0 unless `min` says otherwise |
| uniform | low, high | evenly from low to high |
| exponential | mean | |
| gamma | shape, scale, reflect_at | gamma; with reflect_at r: abs(r - gamma) |
| mixture, mixture4 | bins | one of the bins' models by weight; a bin is {weight, model} or [L, H, weight, alpha] |
| choice | values, weights | one of the values; an object without kind that has `values` is a choice |

Every kind may have p_zero (share of exact zeros), min, max and cap (the draw is clipped). A field may end in `_s`.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from functools import cache
from typing import Any

from tokencake_sglang.emulator.workloads.files import read_json
from tokencake_sglang.emulator.workloads.forecast import standard_normal
from tokencake_sglang.emulator.workloads.parameters import Parameter

KINDS = ("constant", "lognormal", "bounded_pareto", "normal_clipped", "normal", "uniform", "exponential", "gamma",
         "mixture", "mixture4", "choice")
ALLOWED = f"a number, an object with a kind ({', '.join(KINDS)}), or a name from tool_latency.json (docs/workloads.md)"
MEAN_DRAWS = 4000
TRIES = 200

_SHORT = {"kind": "gamma", "shape": 0.5, "scale": 4.0}
_LONG = {**_SHORT, "reflect_at": 20.0}
SYNTHETIC = {  # the file gives these three in words
    "short": _SHORT, "long": _LONG,
    "bimodal": {"kind": "mixture", "bins": [{"weight": 0.5, "model": _SHORT}, {"weight": 0.5, "model": _LONG}]}}


def parameter(default: Any, meaning: str) -> Parameter:
    return Parameter(default, meaning, ALLOWED + (" or None" if default is None else ""),
                     lambda value: (value is None and default is None) or accepts(value))


def accepts(model: Any) -> bool:
    """Whether `sample` can draw from it, and draws nothing below 0: tried, so that every bin of a mixture counts."""
    rng = random.Random("accepts")
    try:
        model = resolve(model)
        return all(sample(model, rng) >= 0 for _ in range(TRIES))
    except (ValueError, KeyError, TypeError, ArithmeticError):
        return False


def resolve(model: Any) -> Any:
    """A model as `sample` takes it: a string is a name such as "tracelab.all_calls" or "infercept_synthetic.short"."""
    return named(model) if isinstance(model, str) else model


def named(name: str) -> Any:
    """The model of one entry of the shipped tool_latency.json, "GROUP.ENTRY". ValueError lists what there is."""
    catalogue = _catalogue()
    if name not in catalogue:
        raise ValueError(f"no tool duration {name!r} in tool_latency.json; there are {', '.join(catalogue)}")
    return catalogue[name]


@cache
def _catalogue() -> dict[str, Any]:
    values = read_json("tool_latency.json", None, "tool-latency/1")
    found = {
        f"{group}.{entry}": figures["model"]
        for group, entries in values.items() if isinstance(entries, dict)
        for entry, figures in entries.items() if isinstance(figures, dict) and "model" in figures}
    normal, uniform = (values["infercept_synthetic"]["distributions_s"][kind] for kind in ("normal", "uniform"))
    synthetic = {
        "normal": {"kind": "normal_clipped", "mean": normal[0], "std": normal[1]},
        "uniform": {"kind": "uniform", "low": uniform[0], "high": uniform[1]}, **SYNTHETIC}
    return found | {f"infercept_synthetic.{kind}": model for kind, model in synthetic.items()}


def sample(model: Any, rng: random.Random) -> float:
    """One draw. ValueError for an unknown kind; KeyError where a field is missing."""
    if isinstance(model, (int, float)) and not isinstance(model, bool):
        return float(model)
    if not isinstance(model, Mapping):
        raise ValueError(f"{model!r} is no distribution; it must be {ALLOWED}")
    uniform = rng.random()
    if uniform < model.get("p_zero", 0.0):
        return 0.0
    if model.get("p_zero"):
        uniform = rng.random()
    kind = model.get("kind", "choice" if "values" in model else "mixture" if "bins" in model else None)
    value = _mixed(model, uniform, rng) if kind in ("mixture", "mixture4") else _drawn(kind, model, uniform, rng)
    return _clipped(value, model)


def mean(model: Any) -> float:
    """The mean of clipped draws, from a fixed set of them."""
    rng = random.Random("mean")
    return sum(sample(model, rng) for _ in range(MEAN_DRAWS)) / MEAN_DRAWS


def _field(model: Mapping[str, Any], name: str) -> Any:
    return model[name] if name in model else model[f"{name}_s"]


def _clipped(value: float, model: Mapping[str, Any]) -> float:
    for name in ("max", "max_s", "cap", "cap_s", "benchmark_cap_s"):
        if name in model:
            value = min(value, model[name])
    for name in ("min", "min_s"):
        if name in model:
            value = max(value, model[name])
    return float(value)


def _mixed(model: Mapping[str, Any], uniform: float, rng: random.Random) -> float:
    bins = model["bins"]
    weights = [part["weight"] if isinstance(part, Mapping) else part[2] for part in bins]
    chosen = _chosen(bins, weights, uniform)
    if not isinstance(chosen, Mapping):
        chosen = {"model": {"kind": "bounded_pareto", "L": chosen[0], "H": chosen[1], "alpha": chosen[3]}}
    return sample(chosen["model"], rng)


def _chosen(values: Any, weights: Any, uniform: float) -> Any:
    left = uniform * sum(weights)
    for value, weight in zip(values, weights, strict=True):
        left -= weight
        if left < 0:
            return value
    return values[-1]


def _drawn(kind: str | None, model: Mapping[str, Any], uniform: float, rng: random.Random) -> float:
    if kind == "constant":
        return _field(model, "value")
    if kind == "choice":
        return _chosen(model["values"], model["weights"], uniform)
    if kind == "lognormal":
        return _field(model, "p50") * math.exp(model["sigma"] * standard_normal(uniform))
    if kind == "bounded_pareto":
        return _bounded_pareto(model["L"], model["H"], model["alpha"], uniform)
    if kind in ("normal", "normal_clipped"):
        value = _field(model, "mean") + _field(model, "std") * standard_normal(uniform)
        return value if "min" in model or "min_s" in model else max(0.0, value)
    if kind == "uniform":
        low, high = _field(model, "low"), _field(model, "high")
        return low + (high - low) * uniform
    if kind == "exponential":
        return -_field(model, "mean") * math.log(1.0 - uniform)
    if kind == "gamma":
        value = rng.gammavariate(model["shape"], model["scale"])
        return abs(model["reflect_at"] - value) if "reflect_at" in model else value
    raise ValueError(f"no distribution kind {kind!r}; there are {', '.join(KINDS)}")


def _bounded_pareto(low: float, high: float, alpha: float, uniform: float) -> float:
    if not 0 < low < high:
        raise ValueError(f"bounded_pareto has L {low!r} and H {high!r}; it needs 0 < L < H")
    if alpha == 0:
        return low * (high / low) ** uniform
    return low * (1.0 - uniform * (1.0 - (low / high) ** alpha)) ** (-1.0 / alpha)
