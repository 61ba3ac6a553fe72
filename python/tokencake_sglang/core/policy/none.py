"""No moves at all: identities and stalls are recorded, the cache behaves as SGLang's."""

from __future__ import annotations

from tokencake_sglang.core.config import TokenCakeConfig
from tokencake_sglang.core.plan import Decision
from tokencake_sglang.core.types import AgentView, PoolView


class NonePolicy:
    reads_waiting = reads_demand = False

    def __init__(self, config: TokenCakeConfig) -> None:
        pass

    def decide(self, now: float, agent: AgentView, pool: PoolView) -> Decision:
        return Decision(None, "policy 'none' moves nothing")
