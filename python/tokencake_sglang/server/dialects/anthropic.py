"""Fields of Anthropic's Messages API: cache breakpoints, and the session that Claude Code puts into `metadata.user_id`.

Claude Code writes `user_<hash>_account_<id>_session_<id>`, and since 2.1.78 the JSON text of an object with session_id.
Any other user id is an end user, who is no agent.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from tokencake_sglang.server.dialects.convert import MAX_TEXT, cache_control
from tokencake_sglang.server.dialects.dialect import Dialect, Rule, at, lookup

_SESSION = re.compile(r"user_.*_session_([A-Za-z0-9_-]+)", re.ASCII | re.DOTALL)
_MAX_USER_ID = 4 * MAX_TEXT


def _claude_session(user_id: Any) -> Any:
    """The session in a user id of Claude Code, or None."""
    if not isinstance(user_id, str) or len(user_id) > _MAX_USER_ID:
        return None
    match = _SESSION.fullmatch(user_id)
    if match is not None:
        return match[1]
    try:
        return lookup(json.loads(user_id), ("session_id",))
    except (ValueError, RecursionError):
        return None


def _section(body: Mapping[str, Any]) -> dict[str, Any]:
    return {"session": _claude_session(lookup(body, at("metadata.user_id"))), "body": body}


def _longest_ttl(body: Any) -> float | None:
    """The longest time in seconds that a breakpoint of the request asks for."""
    found = [cache_control(block["cache_control"]) for block in _blocks(body) if "cache_control" in block]
    return max((ttl for ttl in found if ttl is not None), default=None)


def _blocks(body: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The request itself, its tools, and the content blocks of system and messages."""
    contents = [body.get("tools"), body.get("system")]
    messages = body.get("messages")
    for message in messages if isinstance(messages, list) else ():
        contents.append(lookup(message, ("content",)))
    yield dict(body)
    for content in contents:
        yield from (block for block in content if isinstance(block, dict)) if isinstance(content, list) else ()


CACHE = Dialect("anthropic_cache", (Rule("cache_ttl_s", at("body"), _longest_ttl),), section=_section,
                paths=("/v1/messages",))
USER_ID = Dialect("anthropic_user", (Rule("agent_id", at("session")),), section=_section, needles=("user_id",))
