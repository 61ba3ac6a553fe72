"""What a node of a graph takes on this server: lengths and pace of generation as seen, tools as forecast."""

from __future__ import annotations

from tokencake_sglang.core.forecast import Forecaster
from tokencake_sglang.core.graph import TOOL_SECONDS, Forecast, Node
from tokencake_sglang.core.spatial.means import Means

TOKEN_S = Forecast().seconds_per_token  # until a request of a graph has ended
UNKNOWN_TOKENS = Forecast().unknown_tokens
WEIGHT = 0.2  # of the newest value in a mean
KINDS_KEPT = 4096
PACE = ""


class Estimates:
    """Seconds of nodes. Tokens: the mean of what the node generated in runs before, else what the graph says, else the
    mean of its agent type. A tool: the forecast of the agent type and kind, from the estimate of the graph."""

    def __init__(self, forecaster: Forecaster) -> None:
        self._forecaster = forecaster
        self._of_node = Means(WEIGHT, KINDS_KEPT)
        self._of_type = Means(WEIGHT, KINDS_KEPT)
        self._pace = Means(WEIGHT, 1)
        self._seen = 0

    @property
    def lessons(self) -> int:
        """Grows with everything that may change an estimate."""
        return self._seen + self._forecaster.lessons

    @property
    def token_s(self) -> float:
        """Seconds a generated token, the prompt's share included."""
        mean = self._pace.of(PACE)
        return TOKEN_S if mean is None else mean

    def observe(self, node: str, agent_type: str, tokens: int, seconds: float | None) -> None:
        """A request has generated `tokens` within `seconds` from its admission (None: not known). `node` names the
        graph and the node, "" where it has no place in one."""
        self._seen += 1
        if node:
            self._of_node.observe(node, tokens)
        if agent_type:
            self._of_type.observe(agent_type, tokens)
        if tokens and seconds is not None:
            self._pace.observe(PACE, seconds / tokens)

    def call_s(self, key: str, node: Node) -> float:
        """The model's part of one run of `node`, whose name in `observe` is `key`."""
        if not node.calls_model:
            return 0.0
        tokens = self._of_node.of(key)
        if tokens is None:
            if node.kind == "llm" and node.seconds is not None:
                return float(node.seconds)
            tokens = node.tokens
        return self.tokens_s(node.agent_type, tokens)

    def tokens_s(self, agent_type: str, tokens: float | None = None) -> float:
        """Seconds of a request; `tokens` None: as many as its agent type generates."""
        if tokens is None:
            mean = self._of_type.of(agent_type) if agent_type else None
            tokens = UNKNOWN_TOKENS if mean is None else mean
        return tokens * self.token_s

    def tool_s(self, node: Node) -> float:
        """The tool's part of one run of `node`."""
        if node.kind != "tool":
            return 0.0
        estimate = node.seconds
        if estimate is None:
            estimate = sum(s for _, s in node.stages) if node.stages else TOOL_SECONDS.get(node.tool_kind)
        kind = node.tool_kind or "tool"
        return self._forecaster.predict(node.agent_type or None, kind, estimate, None, 0.0).expected_s
