"""The real server on the torch CPU platform: few servers, many questions to each."""

from __future__ import annotations

import json
import random

import pytest

from tests.support.server import ServerProcess

pytestmark = pytest.mark.e2e

POOL_TOKENS = 2048
PROMPT_TOKENS = 600
SERVERS = {
    "page 1, overlap, outlines": ("--page-size", "1", "--grammar-backend", "outlines"),
    "page 16, no overlap, xgrammar": (
        *("--page-size", "16"),
        "--disable-overlap-schedule",
        *("--grammar-backend", "xgrammar"),
        # xgrammar allows any run of spaces in JSON, and random weights may never leave it.
        "--constrained-json-disable-any-whitespace",
    ),
}
SEARCH = {
    "type": "function",
    "function": {
        "name": "search",
        "description": "Search the notes.",
        "parameters": {
            "type": "object",
            "properties": {"query": {"type": "string", "maxLength": 12}},
            "required": ["query"],
            "additionalProperties": False,
        },
    },
}


@pytest.fixture(scope="module", params=SERVERS.values(), ids=SERVERS.keys())
def server(request):
    flags = ("--max-total-tokens", str(POOL_TOKENS), "--enable-hierarchical-cache", "--hicache-ratio", "4")
    flags += ("--enable-metrics", "--tool-call-parser", "qwen25", "--chunked-prefill-size", "512")
    with ServerProcess(*flags, *request.param) as running:
        yield running


def prompt(seed: int, num_tokens: int = PROMPT_TOKENS) -> list[int]:
    return random.Random(seed).choices(range(300, 4000), k=num_tokens)


def test_output_depends_on_the_first_token_of_a_long_prompt(server):
    """Otherwise equal outputs would say nothing about the KV cache."""
    tokens = prompt(1)
    assert server.generate(tokens, 8)["output_ids"] != server.generate([299, *tokens[1:]], 8)["output_ids"]


def test_kv_evicted_to_host_and_loaded_back_gives_the_same_output(server):
    server.flush_cache()
    first = [server.generate(prompt(seed), 24) for seed in range(10, 16)]
    again = [server.generate(prompt(seed), 24) for seed in range(10, 16)]

    assert [a["output_ids"] for a in again] == [f["output_ids"] for f in first]
    from_host = [a["meta_info"]["cached_tokens_details"]["host"] for a in again]
    assert sum(count > 0 for count in from_host) >= 4, from_host
    assert all(a["meta_info"]["cached_tokens"] >= PROMPT_TOKENS - 16 for a in again)


def test_a_partly_filled_page_is_never_taken_from_the_cache_wrongly(server):
    """Prompts that share a prefix which ends inside a page give what they give alone."""
    stem, tails = prompt(20, 300), [prompt(21, 45), prompt(22, 53)]
    together = [server.generate(stem + tail, 16)["output_ids"] for tail in tails]
    for tail, expected in zip(tails, together, strict=True):
        server.flush_cache()
        assert server.generate(stem + tail, 16)["output_ids"] == expected


def test_a_batch_longer_than_the_pool_ends_with_the_outputs_of_each_alone(server):
    prompts = [prompt(seed, 400 + seed) for seed in range(30, 38)]
    batch = server.post(
        "/generate", {"input_ids": prompts, "sampling_params": {"temperature": 0, "max_new_tokens": 12}}
    )
    outputs = [answer["output_ids"] for answer in json.loads(batch[1])]
    assert outputs == [server.generate(tokens, 12)["output_ids"] for tokens in prompts]


def test_metrics_page_counts_prompt_tokens(server):
    before = server.metric("sglang:prompt_tokens_total")
    server.generate(prompt(40, 100), 4)
    assert server.metric("sglang:prompt_tokens_total") == before + 100
    assert server.metric("sglang:max_total_num_tokens") == POOL_TOKENS


def test_json_schema_gives_json_that_fits(server):
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 12}, "count": {"type": "integer"}},
        "required": ["name", "count"],
    }
    schema["properties"]["count"].update(minimum=0, maximum=9)
    answer = server.generate("Describe it.", 200, sampling_params={"json_schema": json.dumps(schema)})
    value = json.loads(answer["text"])
    assert isinstance(value["name"], str) and isinstance(value["count"], int)
    assert answer["meta_info"]["finish_reason"]["type"] == "stop"


def test_constrained_and_free_requests_run_in_one_batch(server):
    params = [{"temperature": 0, "max_new_tokens": 12, "regex": "(left|right|straight on)"}]
    params += [{"temperature": 0, "max_new_tokens": 12}] * 2
    texts = ["Which way?", "Which way?", "Where to?"]
    answers = json.loads(server.post("/generate", {"text": texts, "sampling_params": params})[1])
    assert answers[0]["text"] in ("left", "right", "straight on")
    alone = [server.generate(text, 12)["output_ids"] for text in texts[1:]]
    assert [answer["output_ids"] for answer in answers[1:]] == alone


def test_a_regex_for_a_tool_call_comes_back_parsed(server):
    call = r'<tool_call>\n\{"name": "search", "arguments": \{"query": "[a-z]{3,8}"\}\}\n</tool_call>'
    answer = server.chat([{"role": "user", "content": "Find it."}], tools=[SEARCH], regex=call, max_tokens=100)
    (choice,) = answer["choices"]
    assert choice["finish_reason"] == "tool_calls"
    (tool_call,) = choice["message"]["tool_calls"]
    assert tool_call["function"]["name"] == "search"
    assert json.loads(tool_call["function"]["arguments"])["query"].isalpha()


def test_a_required_tool_call_is_made_where_the_grammar_backend_knows_structural_tags_and_refused_elsewhere(server):
    tool = json.loads(json.dumps(SEARCH))
    tool["function"]["strict"] = True
    body = {"model": "demo", "messages": [{"role": "user", "content": "Find it."}], "temperature": 0}
    status, text = server.post(
        "/v1/chat/completions", {**body, "tools": [tool], "tool_choice": "required", "max_tokens": 100}
    )
    if "outlines" in server.args:
        assert status == 400 and "structural_tag" in text
        return
    calls = json.loads(text)["choices"][0]["message"]["tool_calls"]
    assert {call["function"]["name"] for call in calls} == {"search"}
    assert all(len(json.loads(call["function"]["arguments"])["query"]) <= 12 for call in calls)
