"""An agent on the OpenAI SDK. Nothing in it knows of TokenCake; its base URL is the server's.

    python examples/stacks/openai_sdk.py --url http://127.0.0.1:30000
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import openai

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from stacks.pages import DESCRIPTION, NAME, SCHEMA, Tool, main  # noqa: E402

TOOLS = [{"type": "function", "function": {"name": NAME, "description": DESCRIPTION, "parameters": SCHEMA}}]


def ask(url: str, tool: Tool, task: str, streamed: bool = False) -> list[str]:
    """The arguments of each call, and the last answer."""
    chat = openai.OpenAI(base_url=f"{url}/v1", api_key="none").chat.completions
    common = {"model": "default", "tools": TOOLS, "max_tokens": 80, "temperature": 0, "parallel_tool_calls": False}
    messages: list = [{"role": "user", "content": task}]
    if streamed:
        with chat.stream(messages=messages, tool_choice="required", **common) as events:
            for _ in events:
                pass
            said = events.get_final_completion().choices[0].message
    else:
        said = chat.create(messages=messages, tool_choice="required", **common).choices[0].message
    left_out = {"parsed"} if (said.content or "").strip() else {"parsed", "content"}  # a stream may end with a blank
    messages.append(said.model_dump(exclude_none=True, exclude=left_out))
    for call in said.tool_calls or []:
        result = tool(**json.loads(call.function.arguments))
        messages.append({"role": "tool", "tool_call_id": call.id, "content": result})
    last = chat.create(messages=messages, tool_choice="none", **common).choices[0].message
    return [*(call.function.arguments for call in said.tool_calls or []), last.content or ""]


if __name__ == "__main__":
    main(ask, __doc__.splitlines()[0])
