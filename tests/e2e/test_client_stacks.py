"""Agent stacks as their makers ship them, against the real server: they change their base URL and nothing else.

Each makes the model call a tool, runs it, and sends its result. The server is told nothing; it must find the agent, the
tool's name and how long the tool took, move the agent's KV to the host and back meanwhile, and answer as the stock
server does. The tools sleep, so that there is a stall to see.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support.server import ServerProcess, hicache_flags

pytestmark = pytest.mark.e2e

POOL = ("--max-total-tokens", "8192", "--hicache-ratio", "2")
# A parser whose required calls are held to a JSON schema: the demo model's random words become tool calls.
TOOLS = ("--tool-call-parser", "pythonic", "--grammar-backend", "outlines")
EAGER = ("--enable-tokencake", "--tokencake-offload-policy", "eager", "--tokencake-stall-floor-s", "0.1",
         "--tokencake-min-offload-tokens", "16", "--tokencake-upload-lead-s", "0.75")
TOOL_S = 1.5
MEASURED_WITHIN_S = 0.05
SETTLE_S = 0.3
SCHEMA = {"type": "object", "properties": {"city": {"type": "string", "enum": ["Rome", "Oslo"]}}, "required": ["city"],
          "additionalProperties": False}


def task(name: str) -> str:
    """A prompt of one client's own, so that its KV is nobody else's."""
    return f"{name}: " + "Find out what the weather is like, and say what to wear. " * 8


class Tool:
    """Looks the weather up, slowly, and knows when it ran (seconds of this machine's monotonic clock)."""

    def __init__(self) -> None:
        self.runs: list[tuple[float, float]] = []

    def __call__(self, city: str) -> str:
        start = time.monotonic()
        time.sleep(TOOL_S)
        self.runs.append((start, time.monotonic()))
        return f"It rains in {city}, and it will rain tomorrow."


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with ServerProcess(*POOL, *TOOLS, *EAGER, module="tokencake_sglang.launch_server") as server:
        yield server


def state(server: ServerProcess) -> dict:
    return json.loads(server.get("/v1/tokencake/state?stalls=50&agents=1000")[1])


# -- the stacks -------------------------------------------------------------------------------------------------


def openai_sdk(url: str, tool: Tool, stream: bool = False) -> list[str]:
    import openai

    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
    tools = [{"type": "function", "function": {"name": "weather", "description": "Weather.", "parameters": SCHEMA}}]
    common = {"model": "demo", "tools": tools, "max_tokens": 80, "temperature": 0, "parallel_tool_calls": False}
    messages: list = [{"role": "user", "content": task(f"openai {stream}")}]
    if stream:
        with client.chat.completions.stream(messages=messages, tool_choice="required", **common) as events:
            for _ in events:
                pass
            said = events.get_final_completion().choices[0].message
    else:
        said = client.chat.completions.create(messages=messages, tool_choice="required", **common).choices[0].message
    messages.append(said.model_dump(exclude_none=True, exclude={"parsed"}))
    for call in said.tool_calls:
        result = tool(**json.loads(call.function.arguments))
        messages.append({"role": "tool", "tool_call_id": call.id, "content": result})
    last = client.chat.completions.create(messages=messages, tool_choice="none", **common).choices[0].message
    return [*(call.function.arguments for call in said.tool_calls), last.content]


def openai_sdk_streamed(url: str, tool: Tool) -> list[str]:
    return openai_sdk(url, tool, stream=True)


def anthropic_sdk(url: str, tool: Tool) -> list[str]:
    import anthropic

    client = anthropic.Anthropic(base_url=url, api_key="none")
    common = {"model": "demo", "max_tokens": 80, "extra_body": {"temperature": 0},
              "tools": [{"name": "weather", "description": "Weather.", "input_schema": SCHEMA}]}
    messages: list = [{"role": "user", "content": task("anthropic")}]
    with client.messages.stream(messages=messages, tool_choice={"type": "any"}, **common) as stream:
        said = stream.get_final_message()
    calls = [block for block in said.content if block.type == "tool_use"]
    results = [{"type": "tool_result", "tool_use_id": call.id, "content": tool(**call.input)} for call in calls]
    messages += [{"role": "assistant", "content": said.content}, {"role": "user", "content": results}]
    last = client.messages.create(messages=messages, tool_choice={"type": "none"}, **common)
    return [*(json.dumps(call.input) for call in calls), *(block.text for block in last.content)]


def openai_agents(url: str, tool: Tool, responses: bool = False) -> list[str]:
    """The Agents SDK, which speaks either API. Streamed: SGLang 0.5.17 names the usage of a whole response as chat
    completions do, and the SDK refuses that."""
    import agents
    import openai

    agents.set_tracing_disabled(True)

    @agents.function_tool
    def weather(city: str) -> str:
        """Weather."""
        return tool(city)

    weather.params_json_schema = SCHEMA
    settings = agents.ModelSettings(tool_choice="required", temperature=0, max_tokens=80, parallel_tool_calls=False)
    api = agents.OpenAIResponsesModel if responses else agents.OpenAIChatCompletionsModel
    model = api("demo", openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none"))
    agent = agents.Agent(name="Adviser", instructions="Be brief.", tools=[weather], model=model,
                         model_settings=settings)

    async def run() -> list[str]:
        result = agents.Runner.run_streamed(agent, task(f"agents {responses}"))
        async for _ in result.stream_events():
            pass
        calls = [item.raw_item.arguments for item in result.new_items if isinstance(item, agents.ToolCallItem)]
        return [*calls, str(result.final_output)]

    return asyncio.run(run())


def openai_agents_responses(url: str, tool: Tool) -> list[str]:
    return openai_agents(url, tool, responses=True)


def langgraph(url: str, tool: Tool) -> list[str]:
    from langchain_core.tools import StructuredTool
    from langchain_openai import ChatOpenAI
    from langgraph.graph import START, MessagesState, StateGraph
    from langgraph.prebuilt import ToolNode

    weather = StructuredTool.from_function(tool.__call__, name="weather", description="Weather.", args_schema=SCHEMA)
    model = ChatOpenAI(model="demo", base_url=f"{url}/v1", api_key="none", temperature=0, max_tokens=80)
    first = model.bind_tools([weather], tool_choice="required", parallel_tool_calls=False)
    then = model.bind_tools([weather], tool_choice="none")

    def think(state: MessagesState) -> dict:
        return {"messages": [(first if len(state["messages"]) == 1 else then).invoke(state["messages"])]}

    graph = StateGraph(MessagesState)
    graph.add_node("think", think)
    graph.add_node("tools", ToolNode([weather]))
    graph.add_edge(START, "think")
    graph.add_conditional_edges("think", lambda s: "tools" if s["messages"][-1].tool_calls else "__end__")
    graph.add_edge("tools", "think")
    messages = graph.compile().invoke({"messages": [("user", task("langgraph"))]})["messages"]
    return [*(json.dumps(call["args"]) for call in messages[1].tool_calls), messages[-1].content]


STACKS = {one.__name__: one for one in (
    openai_sdk, openai_sdk_streamed, anthropic_sdk, openai_agents, openai_agents_responses, langgraph)}


# -- what must hold ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", STACKS)
def test_a_stack_that_changes_its_base_url_alone_has_its_stalls_found(server, name):
    before, tool = state(server), Tool()
    STACKS[name](server.base_url, tool)
    after = state(server)
    new = [agent for agent in after["agents"] if agent["agent"] not in {a["agent"] for a in before["agents"]}]
    (agent,) = new
    assert agent["requests"] == len(tool.runs) + 1
    assert [call["kind"] for call in agent["open_calls"]] == ["human"], "the last answer waits for a person"
    records = [record for record in after["stalls"] if record["agent"] == agent["agent"]][::-1]
    assert [record["kind"] for record in records] == ["weather"] * len(tool.runs)
    for record, (start, end) in zip(records, tool.runs, strict=True):
        took, measured = end - start, record["ended_at"] - record["started_at"]
        assert measured > took - 0.001 and record["outcome"] == "request"
        assert record["offloaded_tokens"] > 0 and record["uploaded_tokens"] > 0
    grown = {key: after["counters"][key] - before["counters"][key] for key in after["counters"]}
    assert grown["stalls_inferred"] == grown["stalls_started"] == len(tool.runs) + 1


def test_a_measured_stall_is_as_long_as_its_tool(server):
    """What the client itself takes between answer and tool, and between tool and request, is the stall's too; the
    leanest client shows how little the server adds. Best of five: the machine may be busy."""
    import urllib.request

    from tests.unit.test_turns import chat_result

    tools = [{"type": "function", "function": {"name": "weather", "parameters": SCHEMA}}]
    common = {"model": "demo", "tools": tools, "max_tokens": 80, "temperature": 0, "parallel_tool_calls": False}
    added = []
    for number in range(5):
        messages: list = [{"role": "user", "content": task(str(number))}]
        said = server.chat(messages, tool_choice="required", **{k: v for k, v in common.items() if k != "model"})
        start, message = time.monotonic(), said["choices"][0]["message"]
        time.sleep(0.5)
        messages += [message, *(chat_result(call["id"]) for call in message["tool_calls"])]
        body = json.dumps({**common, "messages": messages, "tool_choice": "none"}).encode()
        request = urllib.request.Request(f"{server.base_url}/v1/chat/completions", body,
                                         {"Content-Type": "application/json"})
        took = time.monotonic() - start
        urllib.request.urlopen(request).read()
        record = state(server)["stalls"][0]
        added.append(record["ended_at"] - record["started_at"] - took)
    assert min(map(abs, added)) < MEASURED_WITHIN_S, added


def test_agents_of_all_stacks_at_once_are_kept_apart(server):
    before, tools = state(server), {name: Tool() for name in STACKS}
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda name: STACKS[name](server.base_url, tools[name]), STACKS))
    after = state(server)
    grown = {key: after["counters"][key] - before["counters"][key] for key in after["counters"]}
    runs = sum(len(tool.runs) for tool in tools.values())
    assert grown["stalls_inferred"] == runs + len(STACKS)
    assert after["num_agents"] - before["num_agents"] == len(STACKS)
    ended = [r for r in after["stalls"] if r["agent"] not in {a["agent"] for a in before["agents"]}]
    assert len(ended) == runs and all(r["ended_at"] - r["started_at"] > TOOL_S - 0.001 for r in ended)


@pytest.fixture(scope="module")
def stock_words(stock_tree) -> dict[str, list[str]]:
    with ServerProcess(*POOL, *TOOLS, *hicache_flags(), stock_tree=stock_tree) as stock:
        return {name: stack(stock.base_url, Tool()) for name, stack in STACKS.items()}


@pytest.mark.parametrize("name", STACKS)
def test_every_stack_gets_the_words_of_the_stock_server(server, stock_words, name):
    assert STACKS[name](server.base_url, Tool()) == stock_words[name]


def test_with_inference_off_nothing_is_found_and_nothing_changes(stock_words):
    flags = (*POOL, *TOOLS, *EAGER, "--tokencake-infer", "none")
    with ServerProcess(*flags, module="tokencake_sglang.launch_server") as server:
        words = {name: stack(server.base_url, Tool()) for name, stack in STACKS.items()}
        found = state(server)
    assert words == stock_words
    assert found["num_agents"] == 0 and not any(found["counters"].values())
