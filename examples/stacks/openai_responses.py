"""An agent on OpenAI's Responses API, which keeps the history on the server. Nothing in it knows of TokenCake.

    python examples/stacks/openai_responses.py --url http://127.0.0.1:30000
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import openai

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from stacks.pages import DESCRIPTION, NAME, SCHEMA, Tool, main  # noqa: E402


def ask(url: str, tool: Tool, task: str) -> list[str]:
    """The arguments of each call, and the last answer."""
    responses = openai.OpenAI(base_url=f"{url}/v1", api_key="none").responses
    common = {"model": "default", "max_output_tokens": 80, "temperature": 0, "parallel_tool_calls": False,
              "tools": [{"type": "function", "name": NAME, "description": DESCRIPTION, "parameters": SCHEMA}]}
    said = responses.create(input=task, tool_choice="required", **common)
    calls = [item for item in said.output if item.type == "function_call"]
    results = [{"type": "function_call_output", "call_id": call.call_id, "output": tool(**json.loads(call.arguments))}
               for call in calls]
    last = responses.create(input=results, previous_response_id=said.id, tool_choice="none", **common)
    return [*(call.arguments for call in calls), last.output_text]


if __name__ == "__main__":
    main(ask, __doc__.splitlines()[0])
