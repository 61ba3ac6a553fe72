"""What the server's /openapi.json says of our routes: schemas, examples and codes, beside those of SGLang's own.

Bodies are checked by server/schema.py, server/actions.py and core/graph_json.py, whose names and bounds are used here;
a test sends the examples through those checks.
"""

from __future__ import annotations

from typing import Any

from tokencake_sglang.core.actions import OUTCOMES as ACTION_OUTCOMES
from tokencake_sglang.core.graph import NODE_KINDS, OBJECTIVES
from tokencake_sglang.core.graph_json import MAX_COUNT, MAX_EDGES, MAX_NODES, MAX_SECONDS, MAX_TOKENS
from tokencake_sglang.server.actions import MAX_ACTIONS, TARGETS, TYPES
from tokencake_sglang.server.schema import (
    EVENT_KEYS,
    IDENTITY_KEYS,
    MAX_DURATION_S,
    MAX_STAGES,
    MAX_TEXT,
    OUTCOMES,
)

Schema = dict[str, Any]
REFUSALS = {
    400: ("schema", "The body or a parameter is malformed."),
    401: ("unauthorized", "The server has an API key and the request's is missing or wrong."),
    404: ("unknown_agent", "No request of this agent has been seen, or it was forgotten."),
    409: ("conflict", "The event contradicts what came before it."),
    429: ("busy", "Too many control calls wait for the scheduler. Comes with Retry-After."),
    503: ("disabled", "The server runs without --enable-tokencake."),
    504: ("timeout", "The scheduler did not answer in time. Comes with Retry-After."),
}
EVENT_RESULTS = ("applied", "duplicate", "late_finish")


def _object(properties: Schema, required: tuple[str, ...] = (), more: bool = False, **rest: Any) -> Schema:
    needed = {"required": list(required)} if required else {}
    return {"type": "object", "properties": properties, "additionalProperties": more, **needed, **rest}


def _text(description: str = "A text of printable characters.") -> Schema:
    return {"type": "string", "minLength": 1, "maxLength": MAX_TEXT, "description": description}


def _number(most: float, description: str = "A number.") -> Schema:
    return {"type": "number", "minimum": 0, "maximum": most, "description": description}


def _one_of(values: Any, default: str | None = None) -> Schema:
    return {"type": "string", "enum": list(values), **({} if default is None else {"default": default})}


_SECONDS = _number(MAX_DURATION_S, "Seconds.")
_STAGES = {"type": "array", "maxItems": MAX_STAGES,
           "items": _object({"name": _text(), "estimated_s": _SECONDS}, ("name", "estimated_s"))}
_FIELDS: Schema = {
    "agent_id": _text("The agent."), "lifecycle_id": _text("One call of an agent to the model."),
    "kind": {**_text("What kind of tool it is."), "default": "tool"}, "estimated_duration_s": _SECONDS,
    "estimated_p90_s": _SECONDS, "call_id": _text("The tool call."), "stages": _STAGES,
    "stage": _text("The stage that is over."), "outcome": _one_of(OUTCOMES, "ok"),
}
_NAMED = [{"required": [key]} for key in IDENTITY_KEYS]
EVENT = {"oneOf": [
    _object({"event": {"const": name}, **{key: _FIELDS[key] for key in (*IDENTITY_KEYS, *keys)}},
            ("event", "stage") if name == "stage_finished" else ("event",), title=name, anyOf=_NAMED)
    for name, keys in EVENT_KEYS.items()]}
EVENT_EXAMPLES = {
    "a tool begins": {"event": "stall_started", "agent_id": "run7.planner", "kind": "search", "call_id": "c1",
                      "estimated_duration_s": 2.5},
    "a stage of it is over": {"event": "stage_finished", "agent_id": "run7.planner", "call_id": "c1",
                              "stage": "network"},
    "the tool is back": {"event": "stall_finished", "agent_id": "run7.planner", "call_id": "c1", "outcome": "ok"},
    "the agent has ended": {"event": "agent_finished", "agent_id": "run7.planner"},
    "the run has ended": {"event": "program_finished", "agent_id": "run7.planner"},
}
ENVELOPE = _object({
    "protocol_version": {"type": "string", "default": "0.1"}, "message_id": {"type": "string"},
    "actions": {"type": "array", "minItems": 1, "maxItems": MAX_ACTIONS, "items": _object({
        "action_id": {"type": "string"}, "action_type": _one_of(TYPES),
        "action_version": {"type": "string", "default": "1"},
        "payload": _object({
            **{name: _text("The agent.") for name in TARGETS},
            **{source: {"description": f"Of {name}: {argument.allowed}."} for name, (_, arguments) in TYPES.items()
               for argument in arguments for source, _ in argument.sources}}, more=True)},
        ("action_type", "payload"), more=True)}}, ("actions",), more=True)
ENVELOPE_EXAMPLES = {
    "keep and move KV": {"protocol_version": "0.1", "message_id": "m7", "actions": [
        {"action_id": "a1", "action_type": "kv.retain", "action_version": "1",
         "payload": {"agent_id": "run7.planner", "ttl_seconds": 120}},
        {"action_id": "a2", "action_type": "kv.demote", "action_version": "1",
         "payload": {"agent_id": "run7.critic"}}]},
    "say when an agent comes back": {"actions": [
        {"action_type": "signal.resume_estimate", "payload": {"agent_id": "run7.planner", "resume_in_s": 4}}]},
}
_NODE = _object({
    "name": _text(), "kind": _one_of(NODE_KINDS, NODE_KINDS[0]), "agent": _text(), "agent_type": _text(),
    "role": _text(), "objective": _one_of(OBJECTIVES, OBJECTIVES[0]), "tool_kind": _text(), "stages": _STAGES,
    "tokens": {"type": "integer", "minimum": 0, "maximum": MAX_TOKENS}, "seconds": _number(MAX_SECONDS),
    "count": _number(MAX_COUNT)}, ("name",))
GRAPH = _object({
    "nodes": {"type": "array", "minItems": 1, "maxItems": MAX_NODES, "items": _NODE},
    "edges": {"type": "array", "maxItems": MAX_EDGES, "items": {
        "type": "array", "items": _text(), "minItems": 2, "maxItems": 2}},
    "entries": {"type": "array", "maxItems": MAX_NODES, "items": _text()}}, ("nodes",))
GRAPH_EXAMPLES = {"plan, search, write": {
    "nodes": [{"name": "plan", "tokens": 200, "agent_type": "planner"},
              {"name": "search", "kind": "tool", "tool_kind": "search", "seconds": 4},
              {"name": "write", "tokens": 800}],
    "edges": [["plan", "search"], ["search", "write"]]}}

ERROR = _object({"error": _object(
    {"code": {"type": "integer"}, "reason": {"type": "string"}, "message": {"type": "string"}},
    ("code", "reason", "message"))}, ("error",))
_REPLY = _object({"status": _one_of(EVENT_RESULTS), "message": {"type": "string"}}, ("status", "message"))
_GRAPH_REPLY = _object({"status": _one_of(EVENT_RESULTS[:2]), "message": {"type": "string"}, "graph_id": {
    "type": "string"}}, ("status", "message", "graph_id"), more=True)
_OUTCOMES = _object({"message_id": {"type": "string"}, "outcomes": {"type": "array", "items": _object({
    "action_id": {"type": "string"}, "action_type": {"type": "string"}, "outcome": _one_of(ACTION_OUTCOMES),
    "message": {"type": "string"}, "tokens": {"type": "integer"}, "until": {"type": "number"}},
    ("action_id", "action_type", "outcome", "message"))}}, ("message_id", "outcomes"))
_STATE = _object({
    "enabled": {"const": True}, "now": {"type": "number"}, "agents": {"type": "array", "items": {"type": "object"}},
    "counters": {"type": "object", "additionalProperties": {"type": "integer"}},
    "stalls": {"type": "array", "items": {"type": "object"}}}, ("enabled", "now", "agents", "counters"), more=True)


def _json(schema: Schema, description: str, **rest: Any) -> Schema:
    return {"description": description, "content": {"application/json": {"schema": schema, **rest}}}


def _route(answer: Schema, description: str, codes: tuple[int, ...], body: Schema | None = None,
           examples: dict[str, Any] | None = None, parameters: tuple[Schema, ...] = (),
           **reasons: tuple[str, str]) -> Schema:
    """Arguments for a route's decorator. `reasons`: other words and descriptions of codes, as c404=(reason, text)."""
    responses: dict[int | str, Schema] = {200: _json(answer, description)}
    for code in codes:
        reason, text = reasons.get(f"c{code}", REFUSALS[code])
        example = {"error": {"code": code, "reason": reason, "message": text}}
        responses[code] = _json(ERROR, f"{reason}: {text}", example=example)
    extra: Schema = {"parameters": list(parameters)} if parameters else {}
    if body is not None:
        shown = {name: {"value": value} for name, value in (examples or {}).items()}
        extra["requestBody"] = {"required": True, "content": {"application/json": {"schema": body, "examples": shown}}}
    return {"responses": responses, "openapi_extra": extra}


def _limit(name: str, default: int, most: int) -> Schema:
    return {"name": name, "in": "query", "required": False, "description": f"How many {name} are listed at most.",
            "schema": {"type": "integer", "minimum": 0, "maximum": most, "default": default}}


EVENTS_ROUTE = _route(_REPLY, "The event has been taken.", (400, 401, 404, 409, 429, 503, 504), EVENT, EVENT_EXAMPLES)
ACTIONS_ROUTE = _route(_OUTCOMES, "The outcome of each action, in order.", (400, 401, 429, 503, 504), ENVELOPE,
                       ENVELOPE_EXAMPLES)
GRAPHS_ROUTE = _route(_GRAPH_REPLY, "The graph is known.", (400, 401, 429, 503, 504), GRAPH, GRAPH_EXAMPLES,
                      c400=("graph", "The body is malformed (reason schema), or it is no graph that holds."))
GRAPH_ROUTE = _route(
    {"type": "object"}, "The graph, its critical path and the facts of each node.", (401, 404, 429, 503, 504),
    parameters=({"name": "graph_id", "in": "path", "required": True, "schema": {"type": "string"}},),
    c404=("unknown_graph", "No graph has this id, or it was forgotten."))


def state_route(agents: tuple[int, int], stalls: tuple[int, int]) -> Schema:
    """Of GET state; each limit is its default and the most that is allowed."""
    return _route(_STATE, "The live state.", (400, 401, 429, 503, 504),
                  parameters=(_limit("agents", *agents), _limit("stalls", *stalls)))
