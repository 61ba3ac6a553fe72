"""`agent_hints` in the body: the schema proposed for SGLang (its pull request 24993), which Mooncake has as well.

A workflow id there names one run, and an agent id one agent of it. `step_index` is not read: whether it counts from 0
or from 1 is not said.
"""

from __future__ import annotations

from tokencake_sglang.server.dialects.convert import milliseconds
from tokencake_sglang.server.dialects.dialect import Dialect, Rule, at
from tokencake_sglang.server.dialects.openai import END_USER

DIALECTS = (
    Dialect("agent_hints", (
        Rule("agent_id", at("agent_hints.agent_id"), within=(END_USER, (at("agent_hints.workflow_id"),))),
        Rule("graph_id", at("agent_hints.workflow_id")),
        Rule("node_id", at("agent_hints.step_id")),
        Rule("tool_kind", at("agent_hints.tool_name")),
        Rule("expected_tool_s", at("agent_hints.expected_tool_duration_ms"), milliseconds),
        Rule("cache_ttl_s", at("agent_hints.cache_ttl_ms"), milliseconds),
    ), needles=("agent_hints",)),
)
