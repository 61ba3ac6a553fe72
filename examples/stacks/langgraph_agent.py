"""An agent as a LangGraph graph. Nothing in it knows of TokenCake; its base URL is the server's.

    pip install langgraph langchain-openai
    python examples/stacks/langgraph_agent.py --url http://127.0.0.1:30000
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from langchain_core.tools import StructuredTool
from langchain_openai import ChatOpenAI
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from stacks.pages import DESCRIPTION, NAME, SCHEMA, Tool, main  # noqa: E402


def ask(url: str, tool: Tool, task: str) -> list[str]:
    """The arguments of each call, and the last answer."""
    measure = StructuredTool.from_function(
        lambda page: tool(page), name=NAME, description=DESCRIPTION, args_schema=SCHEMA)
    model = ChatOpenAI(model="default", base_url=f"{url}/v1", api_key="none", temperature=0, max_tokens=80)
    first = model.bind_tools([measure], tool_choice="required", parallel_tool_calls=False)
    then = model.bind_tools([measure], tool_choice="none")

    def think(state: MessagesState) -> dict:
        return {"messages": [(first if len(state["messages"]) == 1 else then).invoke(state["messages"])]}

    graph = StateGraph(MessagesState)
    graph.add_node("think", think)
    graph.add_node("tools", ToolNode([measure]))
    graph.add_edge(START, "think")
    graph.add_conditional_edges("think", lambda state: "tools" if state["messages"][-1].tool_calls else END)
    graph.add_edge("tools", "think")
    messages = graph.compile().invoke({"messages": [("user", task)]})["messages"]
    return [*(json.dumps(call["args"]) for call in messages[1].tool_calls), str(messages[-1].content)]


if __name__ == "__main__":
    main(ask, __doc__.splitlines()[0])
