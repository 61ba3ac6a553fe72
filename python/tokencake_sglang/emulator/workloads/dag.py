"""Multi-agent applications given as a graph: `code_writer`, `deep_research`, or a file of the same format (`dag`).

A node of the file is one LLM call, followed by a tool where it has one; local nodes make no call and vanish, their
children then depend on their parents. A prompt is the parents' conversation with what the edges pass on, and the
node's role text after it (before it in profiles with `role first`). At a join what the parents have in common comes
once, then what each adds in `join_order`.

Who sends a call: a call carries on the agent of its first parent if it is the first child to do so, and otherwise
starts an agent of its own, as a client would that lets one conversation run on and copies it for the rest. So the
calls of an agent follow one another along the graph, its prompts grow by appending in append profiles, and KV beyond
what other agents share is dead when the agent ends: at a join only the first parent's text is a prefix, the others'
is computed again.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tokencake_sglang.core.graph import AgentGraph, Node
from tokencake_sglang.emulator.program import Call, Output, Part, Program, Text, ToolCall, Workload
from tokencake_sglang.emulator.workloads import arrivals, forecast
from tokencake_sglang.emulator.workloads.files import read_json
from tokencake_sglang.emulator.workloads.parameters import Parameter, choice, number, path, whole
from tokencake_sglang.emulator.workloads.traces import MAX_NEW_TOKENS, max_new_tokens

SCHEMA = "agent-dag/1"
ROLE_FIRST = {("code_writer", "artifact")}  # the file says so in words (`prompt_rule`); others: "role_first": true


def parameters(profile: str | None) -> dict[str, Parameter]:
    known = {
        "path": path("a graph file of the same format, instead of the shipped one"),
        "profile": Parameter(profile, "prompt rule and output budgets, a profile of the file (None: its first)",
                             "a profile's name", lambda value: value is None or isinstance(value, str)),
        "applications": whole(30, "how many applications arrive"),
        "context_tokens": whole(None, "initial context (None: the observed mean of the file)", low=16),
        "tool_noise": choice("exact", "noise of tool durations", "exact", "gaussian", "uniform"),
        "tool_noise_scale": number(0.0, "its scale, as a share of the mean"),
        "tool_factor": number(1.0, "all tool durations times this"),
        "forecast": forecast.parameter("mean"),
        "max_new_tokens": whole(None, MAX_NEW_TOKENS),
        "horizon_s": number(None, "end of the run", above=True),
    }
    return known | arrivals.parameters(qps=1.0)


def build(shipped: str, seed: str, values: Mapping[str, Any]) -> Workload:
    """Applications of one graph. `shipped`: name of a shipped graph, or "dag" for the file at `path`."""
    if shipped == "dag" and values["path"] is None:
        raise ValueError("workload dag: path is None, it must be the path of a graph file (docs/workloads.md)")
    graph = Graph.read(f"{shipped}.json", values["path"], values["profile"])
    times, plan = arrivals.arrivals(values["applications"], seed, values), _plan(graph, values)
    programs = tuple(
        Program(app_id, _calls(graph, app_id, f"{seed}/{index}", values), time.arrival_s, time.lane, plan)
        for index, time in enumerate(times) for app_id in [f"{graph.name}-{index:03d}"])
    return Workload(graph.name, programs, values["horizon_s"])


@dataclass(frozen=True)
class Graph:
    """One graph in one profile. `parents`: of each node that calls, those that call, in join order, with what the
    edge passes on."""

    name: str
    role_first: bool
    budget: str
    append: str
    header_tokens: int
    context_tokens: int
    nodes: dict[str, dict[str, Any]]
    parents: dict[str, list[tuple[str, tuple[str, ...]]]]

    @classmethod
    def read(cls, shipped: str, path: str | None, profile: str | None) -> Graph:
        """ValueError if the file is not a graph, or has no such profile."""
        values = read_json(shipped, path, SCHEMA)
        try:
            return cls._from_values(values, profile)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path or shipped}: {error!r} while reading the graph; docs/workloads.md names the "
                             "fields it needs") from error

    @classmethod
    def _from_values(cls, values: dict[str, Any], profile: str | None) -> Graph:
        profiles = values["profiles"]
        profile = profile or next(iter(profiles))
        if profile not in profiles:
            raise ValueError(f"{values['name']}: no profile {profile!r}; it has {', '.join(profiles)}")
        derived = profiles[profile].get("derive_from", "").split()  # "NAME with the BUDGET token budgets"
        append = derived[0] if derived else profile
        budget = derived[3] if derived else profile
        nodes = {node["id"]: node for node in values["nodes"]}
        context = values["initial_context"]
        order, parents = _contracted(nodes, values["edges"], append)
        return cls(
            name=values["name"], budget=budget, append=append,
            role_first=profiles[profile].get("role_first", (values["name"], profile) in ROLE_FIRST),
            header_tokens=context["cross_application_shared_prefix_tokens"],
            context_tokens=context["observed_mean_tokens"],
            nodes={name: nodes[name] for name in order}, parents=parents)

    def agents(self) -> dict[str, str]:
        """The agent of each node, named after the node that starts it."""
        agents: dict[str, str] = {}
        taken: set[str] = set()
        for name in self.nodes:
            first = self.parents[name][0][0] if self.parents[name] else None
            if first is None or first in taken:
                agents[name] = name
            else:
                agents[name] = agents[first]
                taken.add(first)
        return agents


def _contracted(nodes: Mapping[str, Any], edges: list[dict[str, Any]], append: str) -> tuple[list[str], dict]:
    """Calling nodes, parents first, and the parents of each without the local nodes between."""
    incoming: dict[str, list[dict[str, Any]]] = {name: [] for name in nodes}
    for edge in edges:
        incoming[edge["src"]], incoming[edge["dst"]].append(edge)
    order: list[str] = []
    left = list(nodes)
    while left:
        ready = [name for name in left if all(edge["src"] in order for edge in incoming[name])]
        if not ready:
            raise ValueError(f"the graph has a cycle through {', '.join(left)}; it must have none")
        order.append(ready[0])
        left.remove(ready[0])
    parents: dict[str, list[tuple[str, tuple[str, ...]]]] = {}
    for name in order:
        found: dict[str, tuple[str, ...]] = {}
        for edge in sorted(incoming[name], key=lambda edge: edge["join_order"]):
            if nodes[edge["src"]]["llm_call"]:
                found[edge["src"]] = tuple(edge["append"][append])
            else:
                found.update((parent, passed) for parent, passed in parents[edge["src"]] if parent not in found)
        parents[name] = list(found.items())
    order = [name for name in order if nodes[name]["llm_call"]]
    return order, {name: parents[name] for name in order}


Chunk = tuple[str, Part]  # the node and kind a part comes from: equal texts of two nodes are two chunks


def _prompts(graph: Graph, app_id: str, context_tokens: int) -> dict[str, list[Chunk]]:
    header = Text(f"{graph.name}/header", graph.header_tokens)
    context = Text(f"{app_id}/context", context_tokens - graph.header_tokens)
    start: list[Chunk] = [("header", header), ("context", context)]
    prompts: dict[str, list[Chunk]] = {}
    for name, node in graph.nodes.items():
        passed_on = [_passed_on(graph, app_id, prompts[parent], parent, what) for parent, what in graph.parents[name]]
        inherited = _joined(passed_on) if passed_on else start
        own = node["own_prompt_tokens"]
        role = [(f"{name}/role", Text(f"{graph.name}/role/{node['agent_type']}/{own}", own))]
        prompts[name] = role + inherited if graph.role_first else inherited + role
    return prompts


def _passed_on(graph: Graph, app_id: str, prompt: list[Chunk], parent: str, what: tuple[str, ...]) -> list[Chunk]:
    chunks = list(prompt)
    if "llm_output" in what:
        chunks.append((f"{parent}/output", Output(parent)))
    if "tool_result" in what:
        tokens = graph.nodes[parent]["tool"]["result_tokens"]
        chunks.append((f"{parent}/result", Text(f"{app_id}/{parent}/result", tokens)))
    return chunks


def _joined(branches: list[list[Chunk]]) -> list[Chunk]:
    """What all branches have, once, then the rest of each. In append profiles the common part is a prefix."""
    common = set.intersection(*(set(branch) for branch in branches))
    joined = [chunk for chunk in branches[0] if chunk in common]
    for branch in branches:
        joined += [chunk for chunk in branch if chunk not in common]
    return joined


def _calls(graph: Graph, app_id: str, seed: str, values: Mapping[str, Any]) -> tuple[Call, ...]:
    rng = random.Random(f"{seed}/tools")
    prompts = _prompts(graph, app_id, values["context_tokens"] or graph.context_tokens)
    agents = graph.agents()
    last = {agent: name for name, agent in agents.items()}
    return tuple(
        Call(
            name=name, agent=agents[name], agent_type=node["agent_type"],
            prompt=tuple(part for _, part in prompts[name]), output_tokens=node["max_new_tokens"][graph.budget],
            after=tuple(parent for parent, _ in graph.parents[name]), tool=_tool(node, rng, values),
            critical=node["critical"], last_of_agent=last[agents[name]] == name,
            max_new_tokens=max_new_tokens(node["max_new_tokens"][graph.budget], values))
        for name, node in graph.nodes.items())


def _plan(graph: Graph, values: Mapping[str, Any]) -> AgentGraph:
    """What a client can declare: calls with their token budgets and with the expected seconds of their tools, which
    are off by the same factor as its forecasts; None where it forecasts none."""
    nodes = []
    for name, node in graph.nodes.items():
        tool, tokens = node.get("tool"), node["max_new_tokens"][graph.budget]
        if tool is None:
            nodes.append(Node(name, agent_type=node["agent_type"], tokens=tokens))
            continue
        knob = values["forecast"]
        seconds = tool["default_total_s" if knob == "default" else "mean_s"] * values["tool_factor"]
        seconds *= knob.get("factor", 1.0) if isinstance(knob, Mapping) else 1.0
        nodes.append(Node(name, "tool", agent_type=node["agent_type"], tokens=tokens, tool_kind=tool["name"],
                          seconds=None if knob == "none" else seconds))
    edges = tuple((parent, name) for name in graph.nodes for parent, _ in graph.parents[name])
    return AgentGraph(tuple(nodes), edges, tuple(name for name in graph.nodes if not graph.parents[name]))


def _tool(node: Mapping[str, Any], rng: random.Random, values: Mapping[str, Any]) -> ToolCall | None:
    uniform = rng.random()
    tool = node.get("tool")
    if tool is None:
        return None
    mean_s = tool["mean_s"] * values["tool_factor"]
    scale = values["tool_noise_scale"]
    duration_s = mean_s
    if values["tool_noise"] == "gaussian":
        duration_s = max(0.0, mean_s * (1 + scale * forecast.standard_normal(uniform)))
    elif values["tool_noise"] == "uniform":
        duration_s = max(0.0, mean_s * (1 + scale * (2 * uniform - 1)))
    told = forecast.forecast_s(
        values["forecast"], duration_s, rng, mean_s=mean_s, default_s=tool["default_total_s"] * values["tool_factor"])
    return ToolCall(tool["name"], duration_s, told)
