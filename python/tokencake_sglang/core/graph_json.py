"""A plan as JSON: what a client sends, the same form back, and an id that follows from what the plan says.

Every refusal is a GraphError whose sentence says what was asked, what was found, what is allowed and what to do.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import fields
from typing import Any

from tokencake_sglang.core.errors import GraphError
from tokencake_sglang.core.graph import NODE_KINDS, OBJECTIVES, AgentGraph, CompiledGraph, Node
from tokencake_sglang.core.wire import MAX_STAGES, MAX_TEXT, STAGE_KEYS, known_fields, show

GRAPH_KEYS = ("nodes", "edges", "entries")
NODE_KEYS = tuple(f.name for f in fields(Node))
TEXTS = ("agent", "agent_type", "role", "tool_kind")
MAX_NODES = 512
MAX_EDGES = 4096
MAX_TOKENS = 2**31 - 1
MAX_SECONDS = 86400.0
MAX_COUNT = 1e6


def parse_graph(obj: Any) -> AgentGraph:
    """The plan that decoded JSON describes; `compile` still has to check that it is one. A null counts as not given."""
    values = _object(obj, "the graph", GRAPH_KEYS)
    nodes = _list(values.get("nodes"), "nodes", MAX_NODES, "objects with the fields of a node")
    edges = _list(values.get("edges"), "edges", MAX_EDGES, "pairs of names of nodes")
    entries = _list(values.get("entries"), "entries", MAX_NODES, "names of nodes")
    return AgentGraph(
        tuple(_node(item, f"nodes[{number}]") for number, item in enumerate(nodes)),
        tuple(_edge(item, f"edges[{number}]") for number, item in enumerate(edges)),
        tuple(_text(item, f"entries[{number}]", least=1) for number, item in enumerate(entries)))


def to_json(graph: AgentGraph) -> dict[str, Any]:
    """The plan in the order of its declaration, without what is as by default; `parse_graph` takes it back."""
    return {
        "nodes": [_node_json(node) for node in graph.nodes],
        "edges": [list(edge) for edge in graph.edges],
        "entries": list(graph.entries)}


def graph_id(graph: AgentGraph) -> str:
    """SHA-256 of what the plan says, as 64 hexadecimal digits: the order of nodes, edges and entries does not matter,
    nor does it whether the entries that it has anyway are named."""
    said = {
        "nodes": sorted((_node_json(node) for node in graph.nodes), key=lambda node: node["name"]),
        "edges": sorted(graph.edges),
        "entries": sorted(set(graph.start_nodes()))}
    text = json.dumps(said, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def plan_json(name: str, compiled: CompiledGraph) -> dict[str, Any]:
    """A plan with what follows from it, as `GET /v1/tokencake/graphs/ID` shows it; times are seconds."""
    return {
        "graph_id": name, **to_json(compiled.graph), "critical_path": list(compiled.critical_path),
        "expected_s": compiled.expected_s, "depth": compiled.depth_longest,
        "facts": {node: {
            "depth": facts.depth_longest, "remaining_depth": facts.remaining_depth, "expected_s": facts.expected_s,
            "start_s": facts.start_s, "slack_s": facts.slack_s, "critical": facts.critical}
            for node, facts in compiled.facts.items()}}


def _node(obj: Any, what: str) -> Node:
    values = _object(obj, what, NODE_KEYS)
    if "name" not in values:
        raise GraphError(f"{what} has no name; allowed: a string of 1 to {MAX_TEXT} printable characters. Add it.")
    found: dict[str, Any] = {"name": _text(values["name"], f"{what}.name", least=1)}
    for key in TEXTS:
        if key in values:
            found[key] = _text(values[key], f"{what}.{key}")
    for key, allowed in (("kind", NODE_KINDS), ("objective", OBJECTIVES)):
        if key in values:
            if values[key] not in allowed:
                raise GraphError(f"{what}.{key} is {show(values[key])}; allowed: {', '.join(allowed)}. Correct it,"
                                 f" or leave it out for {allowed[0]}.")
            found[key] = values[key]
    for key, most in (("tokens", MAX_TOKENS), ("seconds", MAX_SECONDS), ("count", MAX_COUNT)):
        if key in values:
            found[key] = _number(values[key], f"{what}.{key}", most, whole=key == "tokens")
    if "stages" in values:
        stages = _list(values["stages"], f"{what}.stages", MAX_STAGES, f"objects with {' and '.join(STAGE_KEYS)}")
        found["stages"] = tuple(_stage(item, f"{what}.stages[{number}]") for number, item in enumerate(stages))
    return Node(**found)


def _node_json(node: Node) -> dict[str, Any]:
    said: dict[str, Any] = {"name": node.name, "kind": node.kind}
    said |= {key: getattr(node, key) for key in TEXTS if getattr(node, key)}
    if node.objective != "latency":
        said["objective"] = node.objective
    if node.tokens is not None:
        said["tokens"] = int(node.tokens)
    if node.seconds is not None:
        said["seconds"] = float(node.seconds)
    if node.count != 1:
        said["count"] = float(node.count)
    if node.stages:
        said["stages"] = [{"name": name, "estimated_s": float(seconds)} for name, seconds in node.stages]
    return said


def _edge(obj: Any, what: str) -> tuple[str, str]:
    if not isinstance(obj, (list, tuple)) or len(obj) != 2:
        raise GraphError(f"{what} is {show(obj)}; allowed: a list of two names, the second node waits for the first."
                         " Correct it.")
    return _text(obj[0], f"{what}[0]", least=1), _text(obj[1], f"{what}[1]", least=1)


def _stage(obj: Any, what: str) -> tuple[str, float]:
    values = _object(obj, what, STAGE_KEYS)
    for key in STAGE_KEYS:
        if key not in values:
            raise GraphError(f"{what} has no {key}; allowed: an object with {' and '.join(STAGE_KEYS)}. Add it.")
    name = _text(values["name"], f"{what}.name", least=1)
    return name, _number(values["estimated_s"], f"{what}.estimated_s", MAX_SECONDS)


def _object(obj: Any, what: str, allowed: tuple[str, ...]) -> dict[str, Any]:
    return known_fields(obj, what, allowed, GraphError)


def _list(value: Any, what: str, most: int, of: str) -> list[Any]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise GraphError(f"{what} is {show(value)}; allowed: a list of {of}. Correct it.")
    if len(value) > most:
        raise GraphError(f"{what} has {len(value)} items; allowed: at most {most}. Describe the application with fewer:"
                         " a step that repeats is one node with a count.")
    return value


def _text(value: Any, what: str, least: int = 0) -> str:
    if not isinstance(value, str) or not least <= len(value) <= MAX_TEXT or not value.isprintable():
        raise GraphError(f"{what} is {show(value)}; allowed: a string of {least} to {MAX_TEXT} printable characters."
                         " Correct it.")
    return value


def _number(value: Any, what: str, most: float, whole: bool = False) -> float:
    fits = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= most
    if not fits or (whole and value != int(value)):
        kind = "whole number" if whole else "number"
        raise GraphError(f"{what} is {show(value)}; allowed: a {kind} from 0 to {most:g}. Correct it, or leave it out"
                         " if it is not known.")
    return int(value) if whole else float(value)
