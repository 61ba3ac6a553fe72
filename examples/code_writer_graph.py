"""The code-writer application of the TokenCake artifact as an agent graph: draws it into a file (.svg or .mmd)."""

from __future__ import annotations

import json
import sys
from importlib.resources import files

import tokencake_sglang as tc


def code_writer(profile: str = "append_tools128") -> tc.AgentGraph:
    """29 nodes, of which 27 call the model, and 36 edges, from the figures that the emulator's workload uses."""
    figures = json.loads((files("tokencake_sglang.emulator") / "data/code_writer.json").read_text(encoding="utf-8"))
    graph = tc.AgentGraph("code writer")
    for node in figures["nodes"]:
        kind = "llm" if node["kind"] == "llm" else "tool"
        step = {"kind": kind, "agent": node["id"], "agent_type": node["agent_type"], "role": node["stage"]}
        if node["llm_call"]:
            step["tokens"] = node["max_new_tokens"][profile]
        if kind == "tool":
            tool = node.get("tool", {"name": "local", "mean_s": 0.0, "stages": []})
            step |= {"seconds": tool["mean_s"], "tool_kind": tool["name"],
                     "stages": tuple((stage["name"], stage["s"]) for stage in tool["stages"])}
        graph.add_node(node["id"], **step)
    for edge in figures["edges"]:
        graph.add_edge(edge["src"], edge["dst"])
    return graph


if __name__ == "__main__":
    code_writer().draw(sys.argv[1] if len(sys.argv) > 1 else "code_writer.svg")
