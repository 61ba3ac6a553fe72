"""Policies: pure functions of (now, agent, pool). One file each; `make_policy` names them."""

from __future__ import annotations

from tokencake_sglang.core.config import TokenCakeConfig
from tokencake_sglang.core.plan import Policy
from tokencake_sglang.core.policy.cost import CostPolicy
from tokencake_sglang.core.policy.eager import EagerPolicy
from tokencake_sglang.core.policy.none import NonePolicy
from tokencake_sglang.core.policy.paper import PaperPolicy
from tokencake_sglang.core.policy.score import ScorePolicy


def make_policy(config: TokenCakeConfig) -> Policy:
    """The policy that `config.offload_policy` names (validated by the config)."""
    policies = {
        "cost": CostPolicy, "eager": EagerPolicy, "none": NonePolicy, "paper": PaperPolicy, "score": ScorePolicy}
    return policies[config.offload_policy](config)
