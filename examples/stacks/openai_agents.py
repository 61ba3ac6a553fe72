"""An agent on the OpenAI Agents SDK. Nothing in it knows of TokenCake; its base URL is the server's.

    pip install openai-agents
    python examples/stacks/openai_agents.py --url http://127.0.0.1:30000

On chat completions: SGLang 0.5.17 names the usage of a response as chat completions do and takes no message back that
it has streamed, so that this SDK cannot go on with its Responses.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import agents
import openai

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from stacks.pages import DESCRIPTION, NAME, SCHEMA, Tool, main  # noqa: E402


def ask(url: str, tool: Tool, task: str) -> list[str]:
    """The arguments of each call, and the last answer."""
    agents.set_tracing_disabled(True)

    async def invoke(context: object, arguments: str) -> str:
        return await asyncio.to_thread(tool, **json.loads(arguments))

    measure = agents.FunctionTool(NAME, DESCRIPTION, SCHEMA, invoke)
    settings = agents.ModelSettings(tool_choice="required", temperature=0, max_tokens=80, parallel_tool_calls=False)
    model = agents.OpenAIChatCompletionsModel("default", openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none"))
    agent = agents.Agent(name="Reader", instructions="Be brief.", tools=[measure], model=model, model_settings=settings)

    async def run() -> list[str]:
        result = agents.Runner.run_streamed(agent, task)
        async for _ in result.stream_events():
            pass
        calls = [item.raw_item.arguments for item in result.new_items if isinstance(item, agents.ToolCallItem)]
        return [*calls, str(result.final_output)]

    return asyncio.run(run())


if __name__ == "__main__":
    main(ask, __doc__.splitlines()[0])
