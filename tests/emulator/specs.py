"""The small runs of these tests: three applications whose KV is several times the device pool."""

from __future__ import annotations

from typing import Any

HICACHE = {"enable_hierarchical_cache": True, "hicache_write_policy": "write_through"}
STOCK = {"name": "hicache", "server_args": HICACHE}
TOKENCAKE = {"name": "eager", "tokencake": {"offload_policy": "eager"}}
EARLY = {"name": "early", "tokencake": {"offload_policy": "eager", "upload_lead_s": 0.3}}
# Links of 1,500 to 5,000 tokens a second: many copies are under way when something else happens.
SLOW_LINK = "qwen2.5-14b@a100-80gb?h2d_bytes_per_s=1e9&d2h_bytes_per_s=5e8"
SLOWER_LOADS = "qwen2.5-14b@a100-80gb?h2d_bytes_per_s=3e8&d2h_bytes_per_s=5e8"


def code_writer(configuration: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A RunSpec as plain values. The pool is so small that KV leaves the device, comes back, and requests retract
    (in the normal loop)."""
    workload = {"name": "code_writer", "seed": changes.pop("seed", 1), "params": {"qps": 1.0, "applications": 3}}
    return {"workload": workload, "configuration": configuration, "pool_tokens": 25_000, "overlap": False,
            "samples": 20, **changes}
