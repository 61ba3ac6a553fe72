"""Agent stacks as their makers ship them, against the real server: they change their base URL and nothing else.

Each makes the model call a tool, runs it, and sends its result. The server is told nothing; it must find the agent, the
tool's name and how long the tool took, move the agent's KV to the host and back meanwhile, and answer as the stock
server does. The tools sleep, so that there is a stall to see.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.server import ServerProcess

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))
from stacks import anthropic_sdk, langgraph_agent, openai_agents, openai_responses, openai_sdk  # noqa: E402
from stacks.pages import NAME, SCHEMA, measure_page  # noqa: E402

pytestmark = pytest.mark.e2e

POOL = ("--max-total-tokens", "8192", "--hicache-ratio", "2")
# A parser whose required calls are held to a JSON schema: the demo model's random words become tool calls.
TOOLS = ("--tool-call-parser", "pythonic", "--grammar-backend", "outlines")
EAGER = ("--enable-tokencake", "--tokencake-offload-policy", "eager", "--tokencake-stall-floor-s", "0.1",
         "--tokencake-min-offload-tokens", "16", "--tokencake-upload-lead-s", "0.75")
TOOL_S = 1.5
MEASURED_WITHIN_S = 0.05
# The scheduler reads the start of a stall after the step that it is in, and a busy machine may run the tool before the
# server has told of it; the end may be seen at once.
SEEN_LATE_S = TOOL_S / 2


class Tool:
    """The examples' tool, slowly; knows when it ran (seconds of this machine's monotonic clock)."""

    def __init__(self) -> None:
        self.runs: list[tuple[float, float]] = []

    def __call__(self, page: str) -> str:
        start = time.monotonic()
        time.sleep(TOOL_S)
        self.runs.append((start, time.monotonic()))
        return measure_page(page)


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with ServerProcess(*POOL, *TOOLS, *EAGER, module="tokencake_sglang.launch_server") as server:
        yield server


def state(server: ServerProcess) -> dict:
    return json.loads(server.get("/v1/tokencake/state?stalls=50&agents=1000")[1])


def stack(ask: Callable[..., list[str]], name: str, **options: bool) -> Callable[[str, Tool], list[str]]:
    """An example under examples/stacks, with a prompt of its own, so that its KV is nobody else's."""
    task = f"{name}: " + "Which page of the documentation is long? Measure one, then say. " * 8
    return lambda url, tool: ask(url, tool, task, **options)


STACKS = {
    "openai_sdk": stack(openai_sdk.ask, "openai"),
    "openai_sdk_streamed": stack(openai_sdk.ask, "openai streamed", streamed=True),
    "anthropic_sdk": stack(anthropic_sdk.ask, "anthropic"),
    "openai_responses": stack(openai_responses.ask, "responses"),
    "openai_agents": stack(openai_agents.ask, "agents"),
    "langgraph": stack(langgraph_agent.ask, "langgraph"),
}


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
    assert [record["kind"] for record in records] == [NAME] * len(tool.runs)
    for record, (start, end) in zip(records, tool.runs, strict=True):
        took, measured = end - start, record["ended_at"] - record["started_at"]
        assert measured > took - SEEN_LATE_S and record["outcome"] == "request"
        assert record["offloaded_tokens"] > 0 and record["uploaded_tokens"] > 0
    grown = {key: after["counters"][key] - before["counters"][key] for key in after["counters"]}
    assert grown["stalls_inferred"] == grown["stalls_started"] == len(tool.runs) + 1


def test_a_measured_stall_is_as_long_as_its_tool(server):
    """What the client itself takes between answer and tool, and between tool and request, is the stall's too; the
    leanest client shows how little the server adds. Best of five: the machine may be busy."""
    import urllib.request

    from tests.unit.test_turns import chat_result

    tools = [{"type": "function", "function": {"name": NAME, "parameters": SCHEMA}}]
    common = {"model": "demo", "tools": tools, "max_tokens": 80, "temperature": 0, "parallel_tool_calls": False}
    added = []
    for number in range(5):
        messages: list = [{"role": "user", "content": f"{number}. " + "Measure a page. " * 20}]
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
    assert len(ended) == runs and all(r["ended_at"] - r["started_at"] > TOOL_S - SEEN_LATE_S for r in ended)


def words(server: ServerProcess, name: str) -> list[str]:
    server.flush_cache()  # with a prefix in the cache another sum may break a tie of words
    return STACKS[name](server.base_url, Tool())


@pytest.fixture(scope="module")
def stock_words(stock_tree) -> dict[str, list[str]]:
    """In its normal loop and without a host tier: in the other, SGLang's own races may write a token of a prefix late
    (docs/emulator.md, the KV oracle)."""
    with ServerProcess(*POOL, *TOOLS, "--disable-overlap-schedule", stock_tree=stock_tree) as stock:
        return {name: words(stock, name) for name in STACKS}


@pytest.mark.parametrize("name", STACKS)
def test_every_stack_gets_the_words_of_the_stock_server(server, stock_words, name):
    assert words(server, name) == stock_words[name]


def test_with_inference_off_nothing_is_found_and_nothing_changes(stock_words):
    flags = (*POOL, *TOOLS, *EAGER, "--tokencake-infer", "none")
    with ServerProcess(*flags, module="tokencake_sglang.launch_server") as server:
        said = {name: words(server, name) for name in STACKS}
        found = state(server)
    assert said == stock_words
    assert found["num_agents"] == 0 and not any(found["counters"].values())
