"""Identity on every route, and a flush in the middle of a stall, on one real server."""

from __future__ import annotations

import json
import time

import pytest

from tests.support.scenario import tokens
from tests.support.server import ServerProcess

pytestmark = pytest.mark.e2e

FLAGS = ("--max-total-tokens", "4096", "--hicache-ratio", "2", "--enable-tokencake",
         "--tokencake-offload-policy", "eager", "--tokencake-stall-floor-s", "0.1",
         "--tokencake-min-offload-tokens", "16")


@pytest.fixture(scope="module")
def server():
    with ServerProcess(*FLAGS, module="tokencake_sglang.launch_server") as server:
        yield server


def state(server: ServerProcess) -> dict:
    return json.loads(server.get("/v1/tokencake/state")[1])


def agent(server: ServerProcess, key: str) -> dict:
    return {a["agent"]: a for a in state(server)["agents"]}[key]


def event(server: ServerProcess, **fields: object) -> str:
    status, text = server.post("/v1/tokencake/events", fields)
    assert status == 200, text
    return json.loads(text)["status"]


def wait_for(server: ServerProcess, key: str, **tokens_wanted: int) -> dict:
    for _ in range(100):
        found = agent(server, key)
        if all(found["tokens"][name] == value for name, value in tokens_wanted.items()):
            return found
        time.sleep(0.05)
    raise AssertionError(f"{key} never had {tokens_wanted}: {found}")


def test_agents_are_known_from_every_route(server):
    server.chat([{"role": "user", "content": "Plan."}], max_tokens=4,
                tokencake={"agent_id": "chat", "agent_type": "planner", "app_id": "app"})
    status, text = server.post("/v1/completions", {
        "model": "demo", "prompt": "Write.", "max_tokens": 4, "tokencake": {"lifecycle_id": "call-1"}})
    assert status == 200, text
    server.post("/generate", {"text": ["One.", "Two."], "sampling_params": {"max_new_tokens": 4},
                              "tokencake": [{"agent_id": "first"}, {"agent_id": "second"}]})
    server.post("/generate", {"text": "Three.", "sampling_params": {"max_new_tokens": 4, "n": 2},
                              "tokencake": {"agent_id": "sampled"}})
    known = {a["agent"]: a for a in state(server)["agents"]}
    assert {"chat", "call-1", "first", "second", "sampled"} <= set(known)
    assert (known["chat"]["agent_type"], known["chat"]["app_id"]) == ("planner", "app")
    assert known["chat"]["tokens"]["device_tokens"] > 0
    assert event(server, event="stall_started", lifecycle_id="call-1", estimated_duration_s=60) == "applied"
    assert event(server, event="agent_finished", lifecycle_id="call-1") == "applied"


def test_agents_of_other_stacks_are_known_and_end_with_their_last_request(server):
    said = [{"role": "user", "content": "Plan."}]
    claude = {"X-Claude-Code-Session-Id": "cc", "X-Claude-Code-Agent-Id": "sub", "X-Claude-Code-Agent-Type": "Explore"}
    final = {"X-Dynamo-Session-Final": "true"}
    messages = {"model": "demo", "messages": said, "max_tokens": 4}
    responses = {"model": "demo", "input": "Plan.", "max_output_tokens": 4, "store": False}
    for path, body, headers in [
        ("/v1/messages", messages, claude),
        ("/v1/messages", {**messages, "stream": True, "tokencake": {"agent_id": "own"}}, None),
        ("/v1/responses", responses, {"thread-id": "codex", "session-id": "run"}),
        ("/v1/responses", {**responses, "stream": True}, {"x-session-id": "opencode"}),
        ("/v1/chat/completions", {**messages, "nvext": {"agent_context": {"session_id": "nv"}}}, None),
        ("/generate", {"text": ["One.", "Two."], "sampling_params": {"max_new_tokens": 4}, "session_id": "s1"}, None),
    ]:
        status, text = server.post(path, body, headers=headers)
        assert status == 200, text
    known = {a["agent"]: a for a in state(server)["agents"]}
    assert {"cc/sub", "own", "codex", "opencode", "nv", "s1"} <= set(known)
    assert known["cc/sub"]["agent_type"] == "Explore" and known["cc/sub"]["tokens"]["device_tokens"] > 0
    status, text = server.post("/v1/messages", {**messages, "stream": True}, headers={**claude, **final})
    assert status == 200, text
    for _ in range(100):
        if "cc/sub" not in {a["agent"] for a in state(server)["agents"]}:
            break
        time.sleep(0.05)
    else:
        raise AssertionError("the agent did not end with its last request")
    assert event(server, event="agent_finished", agent_id="cc/sub") == "duplicate"


def test_a_flush_during_a_stall_loses_kv_but_no_agent_and_no_output(server):
    prompt = tokens("flush", 300)
    first = server.generate(prompt, 8, sampling_params={"ignore_eos": True}, tokencake={"agent_id": "flushed"})
    assert event(server, event="stall_started", agent_id="flushed", estimated_duration_s=60) == "applied"
    away = wait_for(server, "flushed", unshared_device_tokens=0)
    assert away["tokens"]["host_tokens"] > 300 and away["tokens"]["restore_tokens"] > 0
    server.flush_cache()
    gone = wait_for(server, "flushed", host_tokens=0)
    assert gone["state"] == "stalled" and gone["tokens"]["device_tokens"] == 0
    assert event(server, event="stall_finished", agent_id="flushed") == "applied"
    again = server.generate(prompt, 8, sampling_params={"ignore_eos": True}, tokencake={"agent_id": "flushed"})
    assert again["output_ids"] == first["output_ids"] and again["meta_info"]["cached_tokens"] == 0


def test_a_return_right_after_the_start_keeps_the_output(server):
    prompt = tokens("at once", 300)
    first = server.generate(prompt, 8, sampling_params={"ignore_eos": True}, tokencake={"agent_id": "quick"})
    for turn in range(5):
        event(server, event="stall_started", agent_id="quick", estimated_duration_s=60, call_id=str(turn))
        again = server.generate(prompt, 8, sampling_params={"ignore_eos": True}, tokencake={"agent_id": "quick"})
        assert again["output_ids"] == first["output_ids"]
    assert agent(server, "quick")["state"] == "idle" and agent(server, "quick")["open_calls"] == []
