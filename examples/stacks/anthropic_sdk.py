"""An agent on the Anthropic SDK. Nothing in it knows of TokenCake; its base URL is the server's.

    python examples/stacks/anthropic_sdk.py --url http://127.0.0.1:30000
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import anthropic

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from stacks.pages import DESCRIPTION, NAME, SCHEMA, Tool, main  # noqa: E402


def ask(url: str, tool: Tool, task: str) -> list[str]:
    """The arguments of each call, and the last answer."""
    messages = anthropic.Anthropic(base_url=url, api_key="none").messages
    common = {"model": "default", "max_tokens": 80, "extra_body": {"temperature": 0},
              "tools": [{"name": NAME, "description": DESCRIPTION, "input_schema": SCHEMA}]}
    history: list = [{"role": "user", "content": task}]
    with messages.stream(messages=history, tool_choice={"type": "any"}, **common) as stream:
        said = stream.get_final_message()
    calls = [block for block in said.content if block.type == "tool_use"]
    results = [{"type": "tool_result", "tool_use_id": call.id, "content": tool(**call.input)} for call in calls]
    # A stream may end with a text of one blank, which the API refuses in a request.
    spoken = [block for block in said.content if block.type != "text" or block.text.strip()]
    history += [{"role": "assistant", "content": spoken}, {"role": "user", "content": results}]
    last = messages.create(messages=history, tool_choice={"type": "none"}, **common)
    return [*(json.dumps(call.input) for call in calls), "".join(block.text for block in last.content)]


if __name__ == "__main__":
    main(ask, __doc__.splitlines()[0])
