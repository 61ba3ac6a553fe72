"""What clients of vLLM send: `vllm_xargs` (its router's `agentic_context`, Continuum's job) and `agent_hint`.

Objects may come as JSON text, because vLLM takes plain values only. A priority is vLLM's: lower is sooner. Of
`agent_hint`, `kv_priority` and `lease_until` are not read: how long to keep KV is decided here, and whose clock the
lease means is not said.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tokencake_sglang.server.dialects.convert import duration_text, identifier_or_number, lower_first, truth
from tokencake_sglang.server.dialects.dialect import Dialect, Rule, at, lookup

MAX_OBJECT_TEXT = 64 * 1024


def _section(body: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "context": _object(lookup(body, at("vllm_xargs.agentic_context"))),
        "xargs": lookup(body, at("vllm_xargs")),
        "hint": _object(lookup(body, at("kv_transfer_params.agent_hint"))),
    }


def _object(value: Any) -> Any:
    """The object itself, or what its JSON text holds."""
    if not isinstance(value, str) or len(value) > MAX_OBJECT_TEXT:
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return None


DIALECTS = (
    Dialect("vllm", (
        Rule("agent_id", at("context.program_id"), identifier_or_number),
        Rule("agent_id", at("xargs.job_id"), identifier_or_number),
        Rule("agent_id", at("hint.trajectory_id"), identifier_or_number),
        Rule("parent_agent_id", at("context.parent_program_id"), identifier_or_number),
        Rule("parent_agent_id", at("context.parent_agent_id"), identifier_or_number),
        Rule("agent_type", at("context.agent_role")),
        Rule("priority", at("context.priority"), lower_first),
        Rule("expected_tool_s", at("context.expected_resume"), duration_text),
        Rule("tool_kind", at("xargs.this_func_call")),
        Rule("last_step", at("xargs.is_last_step"), truth),
        Rule("final", at("xargs.is_last_step"), truth),
    ), section=_section, needles=("vllm_xargs", "agent_hint")),
)
