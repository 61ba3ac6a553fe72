"""`nvext` in the body: NVIDIA Dynamo's extensions and those that NeMo Agent Toolkit adds.

A session is one agent's chain of requests; in the older form it is a run, and the agents in it are trajectories.
A prefix id names prompts that begin alike, not an agent.
"""

from __future__ import annotations

from tokencake_sglang.server.dialects.convert import cache_control, count, higher_first, is_close, seconds, truth
from tokencake_sglang.server.dialects.dialect import Dialect, Rule, at

_CONTEXT = "nvext.agent_context."
_RUN = ((at(_CONTEXT + "session_id"), at(_CONTEXT + "workflow_id")),)
_TRAJECTORY, _PROGRAM = at(_CONTEXT + "trajectory_id"), at(_CONTEXT + "program_id")

DIALECTS = (
    Dialect("nvext", (
        Rule("agent_id", _TRAJECTORY, within=_RUN),
        Rule("agent_id", _PROGRAM, within=_RUN),
        Rule("agent_id", at(_CONTEXT + "session_id")),
        Rule("agent_id", at(_CONTEXT + "workflow_id")),
        Rule("agent_id", at("nvext.session_control.session_id")),
        Rule("parent_agent_id", at(_CONTEXT + "parent_trajectory_id"), within=_RUN),
        Rule("parent_agent_id", at(_CONTEXT + "parent_program_id"), within=_RUN),
        Rule("parent_agent_id", at(_CONTEXT + "parent_session_id")),
        Rule("parent_agent_id", at(_CONTEXT + "parent_workflow_id")),
        *(Rule("graph_id", at(_CONTEXT + name), needs=needs)
          for name in ("session_id", "workflow_id") for needs in (_TRAJECTORY, _PROGRAM)),
        Rule("app_id", at(_CONTEXT + "session_type_id")),
        Rule("app_id", at(_CONTEXT + "workflow_type_id")),
        Rule("app_id", at("nvext.agent_hints.prefix_id")),
        Rule("priority", at("nvext.agent_hints.priority"), higher_first),
        Rule("priority", at("nvext.agent_hints.latency_sensitivity"), higher_first),
        Rule("expected_output_tokens", at("nvext.agent_hints.osl"), count),
        Rule("cache_ttl_s", at("nvext.cache_control"), cache_control),
        Rule("cache_ttl_s", at("nvext.session_control.timeout"), seconds),
        Rule("final", at(_CONTEXT + "trajectory_final"), truth),
        Rule("final", at(_CONTEXT + "session_final"), truth),
        Rule("final", at("nvext.session_control.action"), is_close),
    ), needles=("nvext",)),
)
