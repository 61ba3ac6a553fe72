"""The resolver: for every field the first dialect that gives it, in order of precedence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from tokencake_sglang.core.hints import HINT_FIELDS
from tokencake_sglang.core.types import IDENTITY_FIELDS
from tokencake_sglang.server.dialects import agent_hints, anthropic, headers, native, nvext, openai, vllm
from tokencake_sglang.server.dialects.dialect import Dialect

DIALECTS: tuple[Dialect, ...] = (
    *native.DIALECTS, *agent_hints.DIALECTS, *nvext.DIALECTS, *vllm.DIALECTS, *headers.DIALECTS,
    openai.SESSION, openai.PROMPT_CACHE, anthropic.CACHE, openai.METADATA, anthropic.USER_ID)
HEADER_NAMES = frozenset(name for dialect in DIALECTS for name in dialect.header_names)
NEEDLES = tuple(needle for dialect in DIALECTS for needle in dialect.needles)


@dataclass(frozen=True)
class Resolved:
    """What a request says of its agent. Times are seconds; a field that nothing gives is None (or False).

    `identity`: those of the identity fields that were given. `parent_agent_id` names an agent in the same dialect as
    `agent_id`. `priority` is 0 to 99, higher is sooner. `final`: the agent ends with this request; `last_step`: the
    program says that it is its last. `sources`: the dialect that gave each field, an identity field by its own name.
    """

    identity: Mapping[str, str] = field(default_factory=dict, hash=False)
    parent_agent_id: str | None = None
    priority: int | None = None
    expected_tool_s: float | None = None
    tool_kind: str | None = None
    expected_output_tokens: int | None = None
    cache_ttl_s: float | None = None
    final: bool = False
    last_step: bool = False
    sources: Mapping[str, str] = field(default_factory=dict, hash=False)

    @property
    def agent_id(self) -> str | None:
        return self.identity.get("agent_id")

    def of_conversation(self, agent_id: str) -> Resolved:
        """The same of an agent that the request itself does not name."""
        return replace(self, identity={**self.identity, "agent_id": agent_id})

    def metadata(self) -> dict[str, str] | None:
        """The identity as a native object would give it, and what else goes with the request to the scheduler, as
        texts; None when no agent is named.

        What other stacks call an app is a kind of application, or a cache key that many share: there the program is
        the workflow or session that the agent works in, else the agent that it works for, else the agent."""
        given = dict(self.identity)
        key = given.get("agent_id") or given.get("lifecycle_id")
        if key is None:
            return None
        is_native = self.sources.get("agent_id", self.sources.get("lifecycle_id")) == native.NAME
        if self.parent_agent_id is not None:
            given["parent_agent_id"] = self.parent_agent_id
        if not is_native and not given.keys().isdisjoint(("app_id", "graph_id", "parent_agent_id")):
            given["program_id"] = given.get("graph_id") or self.parent_agent_id or key
        hints = {name: getattr(self, name) for name in HINT_FIELDS}
        return given | {name: str(value) for name, value in hints.items() if value is not None}


def resolve(path: str, headers: Mapping[str, str], body: Any) -> Resolved:
    """What a request to the route `path` says; header names are in lower case, `body` is its parsed JSON.

    Never raises: a field that is unknown, of another type or out of range counts as not given.
    """
    values = body if isinstance(body, dict) else {}
    found: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for dialect in DIALECTS:
        if dialect.paths and path not in dialect.paths:
            continue
        section = dialect.section(headers if dialect.of_headers else values)
        for rule in dialect.rules:
            if rule.field in found or (rule.field == "parent_agent_id" and sources.get("agent_id") != dialect.name):
                continue
            value = rule.value(section)
            if value is not None:
                found[rule.field], sources[rule.field] = value, dialect.name
    if found.get("parent_agent_id", "") == found.get("agent_id"):
        found.pop("parent_agent_id", None)
        sources.pop("parent_agent_id", None)
    identity = {name: found.pop(name) for name in IDENTITY_FIELDS if name in found}
    return Resolved(identity, **found, sources=sources)
