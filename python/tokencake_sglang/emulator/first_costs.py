"""What a server knows of its copies before its first request, on the emulated device.

The emulated KV pool holds a few bytes of a token, and copies at the start take no time there: what the server would
measure has to come from the profile, else it learns from a default that is off by a factor of hundreds.
"""

from __future__ import annotations

from typing import Any

from tokencake_sglang.core.cost_learner import CostLearner
from tokencake_sglang.emulator.profile import DeviceProfile
from tokencake_sglang.engine.measure import FIRST_COPY_BYTES, FIRST_COPY_TOKENS


def tell_first_costs(scheduler: Any, profile: DeviceProfile) -> None:
    """Give TokenCake's measure the size of a token's KV and the copies that it makes at the start (CostMeasure)."""
    largest = min(FIRST_COPY_TOKENS, FIRST_COPY_BYTES // profile.kv_bytes_per_token)
    for extension in scheduler.extensions:
        if getattr(extension, "measure", None) is None:
            continue
        learner = CostLearner(profile.kv_bytes_per_token)
        for tokens in sorted({largest // share for share in (16, 4, 1)} - {0}):
            learner.copy("offload", tokens, 1, profile.copy_s(tokens, 1, "d2h"))
            learner.copy("upload", tokens, 1, profile.copy_s(tokens, 1, "h2d"))
        extension.measure.learner = learner
