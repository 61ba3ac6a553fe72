"""Fields of SGLang's and OpenAI's request bodies.

A session or conversation id names an agent. A cache key names prompts that begin alike, which many agents and users may
share, so it is an app and never an agent. An end user is neither: names that a client makes up are taken within him.
"""

from __future__ import annotations

from tokencake_sglang.server.dialects.convert import milliseconds, seconds
from tokencake_sglang.server.dialects.dialect import Dialect, Rule, at

END_USER = (at("user"), at("safety_identifier"), at("metadata.user_id"))

SESSION = Dialect("session", (
    Rule("agent_id", at("session_id"), within=(END_USER,)),
    Rule("agent_id", at("conversation_id"), within=(END_USER,)),
), needles=("session_id", "conversation_id"))

PROMPT_CACHE = Dialect("prompt_cache", (
    Rule("app_id", at("prompt_cache_key")),
    Rule("cache_ttl_s", at("prompt_cache_retention"), seconds),
), needles=("prompt_cache_key",))

METADATA = Dialect("metadata", (
    Rule("agent_id", at("metadata.agent_id"), within=(END_USER, (at("metadata.workflow_id"),))),
    Rule("graph_id", at("metadata.workflow_id")),
    Rule("tool_kind", at("metadata.tool_name")),
    Rule("expected_tool_s", at("metadata.expected_tool_duration_ms"), milliseconds),
), needles=("agent_id",))
