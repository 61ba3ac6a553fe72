"""What `data/gpu_profiles.json` says of models, devices and their pairs, and what follows from it.

The same schema is the user's own: his file may add to it or replace parts of it. What follows from a model's shape
(parameters, bytes and FLOPs of a step) is computed where the file leaves it out.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokencake_sglang.core.errors import ConfigError

SHIPPED = Path(__file__).with_name("data") / "gpu_profiles.json"
SCHEMA = "gpu-profiles/1"
SECTIONS = ("models", "devices", "constants")
DEFAULT_MEM_FRACTION = 0.88
BF16_BYTES = 2
MODEL_SHAPE = ("layers", "hidden", "query_heads", "kv_heads", "head_dim", "ffn", "vocab")
DEVICE_FACTS = ("memory_bytes", "hbm_gbps", "peak_bf16_tflops", "bw_eff", "mfu", "host_link")


class ProfileError(ConfigError):
    """A device profile does not exist, or its file does not say what it has to."""


def shipped_facts() -> dict[str, Any]:
    """The shipped file as it is."""
    return json.loads(SHIPPED.read_text(encoding="utf-8"))


def merged(base: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """`base` with the models, devices, constants and profiles of `own` added; `own` wins, entry by entry."""
    result = dict(base)
    for section in SECTIONS:
        result[section] = dict(base.get(section, {}))
        for name, entry in own.get(section, {}).items():
            known = result[section].get(name)
            both = isinstance(known, dict) and isinstance(entry, dict)
            result[section][name] = {**known, **entry} if both else entry
    profiles = {entry["id"]: entry for entry in base.get("profiles", [])}
    profiles.update((_get(entry, "id", "an entry of profiles"), entry) for entry in own.get("profiles", []))
    result["profiles"] = list(profiles.values())
    return result


def profile_ids(facts: dict[str, Any]) -> list[str]:
    """The ids of the listed profiles, in order. Any other MODEL@DEVICE of known ones can be asked for as well."""
    return [entry["id"] for entry in facts["profiles"]]


def values_of(facts: dict[str, Any], profile_id: str) -> dict[str, Any]:
    """The values from which `profile.DeviceProfile` is made, with the roofline cost.

    Raises:
        ProfileError: no such profile, model or device; a fact is missing; the model does not fit the device.
    """
    entry = _entry(facts, profile_id)
    model = model_facts(_section(facts, "models", _get(entry, "model", profile_id)), entry["model"])
    device = _section(facts, "devices", _get(entry, "device", profile_id))
    for name in DEVICE_FACTS:
        _get(device, name, f"device {entry['device']}")
    bandwidth, flops = device["hbm_gbps"] * 1e9 * device["bw_eff"], device["peak_bf16_tflops"] * 1e12 * device["mfu"]
    link, constants = device["host_link"], facts["constants"]
    return {
        "id": profile_id,
        "kv_bytes_per_token": model["kv_bytes_per_token_bf16"],
        "layers": model["layers"],
        "pool_tokens": entry.get("kv_pool_tokens") or pool_tokens(model, device, constants, entry),
        "h2d_bytes_per_s": entry.get("h2d_bytes_per_s") or link["h2d_gbps"] * 1e9,
        "d2h_bytes_per_s": entry.get("d2h_bytes_per_s") or link["d2h_gbps"] * 1e9,
        "copy_latency_s": link.get("fixed_latency_s", 0.0),
        "copy_run_s": link.get("per_run_s", 0.0),
        "step_overhead_s": entry.get("step_overhead_s", constants["step_overhead_s"]),
        "cost": {
            "form": "roofline",
            "weight_bytes": model["weight_bytes_read_per_step"],
            "kv_bytes_per_token": model["kv_bytes_per_token_bf16"],
            "linear_flops": model["flops_per_token_linear"],
            "head_flops": model["flops_lm_head_per_sampled_token"],
            "attention_flops": model["attention_flops_coefficient"],
            "memory_bytes_per_s": entry.get("bw_eff_bytes_per_s") or bandwidth,
            "flops_per_s": entry.get("flops_eff_per_s") or flops,
        },
    }


def model_facts(model: dict[str, Any], name: str) -> dict[str, Any]:
    """`model` with everything that follows from its shape, for bf16 weights and KV.

    `qkv_bias` (false) and `tied_embeddings` (false) may be given beside the shape.
    """
    hidden, layers, ffn = (_get(model, key, f"model {name}") for key in ("hidden", "layers", "ffn"))
    query, kv, vocab = (_get(model, key, f"model {name}") for key in ("query_heads", "kv_heads", "vocab"))
    query_width, kv_width = query * _get(model, "head_dim", f"model {name}"), kv * model["head_dim"]
    attention = 2 * hidden * query_width + 2 * hidden * kv_width
    if model.get("qkv_bias"):
        attention += query_width + 2 * kv_width
    body = model.get("params_body") or layers * (attention + 3 * hidden * ffn + 2 * hidden) + hidden
    head = model.get("params_lm_head") or vocab * hidden
    total = body + head * (1 if model.get("tied_embeddings") else 2)
    derived = {
        "params_body": body,
        "params_lm_head": head,
        "params_total": total,
        "weight_bytes_bf16": BF16_BYTES * model.get("params_total", total),
        "weight_bytes_read_per_step": BF16_BYTES * (body + head),
        "kv_bytes_per_token_bf16": 2 * layers * kv_width * BF16_BYTES,
        "flops_per_token_linear": 2 * body,
        "flops_lm_head_per_sampled_token": 2 * head,
        "attention_flops_coefficient": 4 * layers * query_width,
    }
    return {**derived, **model}


def pool_tokens(
    model: dict[str, Any], device: dict[str, Any], constants: dict[str, Any], entry: dict[str, Any]
) -> int:
    """Tokens of the KV pool: what the memory fraction leaves beside the weights, in whole pages."""
    usable = (device["memory_bytes"] - constants["context_bytes"]) * entry.get("mem_fraction", DEFAULT_MEM_FRACTION)
    page = constants["page_tokens"]
    pages = int((usable - model["weight_bytes_bf16"]) // (model["kv_bytes_per_token_bf16"] * page))
    if pages <= 0:
        raise ProfileError(
            f"Profile {entry['id']}: the weights take {model['weight_bytes_bf16']:,} bytes and the memory fraction "
            f"leaves {usable:,.0f}; nothing is left for the KV cache. Choose a larger device or a smaller model.")
    return pages * page


def _entry(facts: dict[str, Any], profile_id: str) -> dict[str, Any]:
    for entry in facts["profiles"]:
        if entry["id"] == profile_id:
            return entry
    model, _, device = profile_id.partition("@")
    if model in facts["models"] and device in facts["devices"]:
        return {"id": profile_id, "model": model, "device": device}
    raise ProfileError(
        f"There is no device profile {profile_id!r}. Allowed: {', '.join(profile_ids(facts))}; any MODEL@DEVICE of the "
        f"models {', '.join(facts['models'])} and the devices {', '.join(facts['devices'])}; or the path of a profile "
        "file (docs/calibrate.md).")


def _section(facts: dict[str, Any], section: str, name: str) -> dict[str, Any]:
    if name not in facts[section]:
        raise ProfileError(f"{section} has no {name!r}. Allowed: {', '.join(facts[section])}, or add it to your file.")
    return facts[section][name]


def _get(values: dict[str, Any], name: str, where: str) -> Any:
    if name not in values:
        raise ProfileError(f"{where} does not say {name!r}; it says {', '.join(values) or 'nothing'}. Add it.")
    return values[name]
