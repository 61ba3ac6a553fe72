"""Headers that name a session: NVIDIA Dynamo's, and those that coding agents and gateways send by themselves.

Claude Code and Codex share a session between the main agent and its sub-agents and name the sub-agent beside it.
`x-session-token` is not read: it is a credential with some servers and the name of a replica with others.
"""

from __future__ import annotations

from tokencake_sglang.server.dialects.convert import truth
from tokencake_sglang.server.dialects.dialect import Dialect, Rule

_DYNAMO, _TRAJECTORY = ("x-dynamo-session-id",), ("x-dynamo-trajectory-id",)
_CLAUDE, _CLAUDE_AGENT = ("x-claude-code-session-id",), ("x-claude-code-agent-id",)

DIALECTS = (
    Dialect("dynamo", (
        Rule("agent_id", _TRAJECTORY, within=((_DYNAMO,),)),
        Rule("agent_id", _DYNAMO),
        Rule("parent_agent_id", ("x-dynamo-parent-trajectory-id",), within=((_DYNAMO,),)),
        Rule("parent_agent_id", ("x-dynamo-parent-session-id",)),
        Rule("graph_id", _DYNAMO, needs=_TRAJECTORY),
        Rule("final", ("x-dynamo-session-final",), truth),
        Rule("final", ("x-dynamo-trajectory-final",), truth),
    ), of_headers=True),
    Dialect("claude-code", (
        Rule("agent_id", _CLAUDE_AGENT, within=((_CLAUDE,),)),
        Rule("agent_id", _CLAUDE),
        Rule("parent_agent_id", ("x-claude-code-parent-agent-id",), within=((_CLAUDE,),)),
        Rule("parent_agent_id", _CLAUDE, needs=_CLAUDE_AGENT),
        Rule("graph_id", _CLAUDE),
        Rule("agent_type", ("x-claude-code-agent-type",)),
    ), of_headers=True),
    Dialect("codex", (
        Rule("agent_id", ("thread-id",)),
        Rule("agent_id", ("session-id",)),
        Rule("agent_id", ("session_id",)),
        Rule("parent_agent_id", ("x-codex-parent-thread-id",)),
        Rule("graph_id", ("session-id",)),
        Rule("graph_id", ("session_id",)),
        Rule("agent_type", ("x-openai-subagent",)),
    ), of_headers=True),
    Dialect("opencode", (
        Rule("agent_id", ("x-session-id",)),
        Rule("parent_agent_id", ("x-parent-session-id",)),
    ), of_headers=True),
    Dialect("gateway", (
        Rule("agent_id", ("x-litellm-session-id",)),
        Rule("agent_id", ("x-session-affinity",)),
        Rule("app_id", ("x-gateway-inference-fairness-id",)),
    ), of_headers=True),
)
