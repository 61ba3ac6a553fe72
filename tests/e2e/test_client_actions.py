"""Actions, tool events and the Python client against one real server, and odd values in what clients say."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import openai
import pytest
import zmq

from tests.server.test_tool_events import frames, record
from tests.support.scenario import tokens
from tests.support.server import PACKAGE_ROOT, ServerProcess, free_port
from tokencake_sglang.client import Client

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

FLAGS = ("--max-total-tokens", "4096", "--hicache-ratio", "2", "--enable-tokencake",
         "--tokencake-min-offload-tokens", "16")
LAUNCHER = "tokencake_sglang.launch_server"
EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "any_stack.py"
TOOL_EVENTS = f"tcp://127.0.0.1:{free_port()}"


@pytest.fixture(scope="module")
def server():
    with ServerProcess(*FLAGS, "--tokencake-tool-events", TOOL_EVENTS, module=LAUNCHER) as server:
        yield server
        assert server.process.poll() is None, server.log_tail()
        assert "Traceback" not in server.log(), server.log_tail()


def state(server: ServerProcess) -> dict:
    return json.loads(server.get("/v1/tokencake/state")[1])


def agent(server: ServerProcess, key: str) -> dict:
    return {a["agent"]: a for a in state(server)["agents"]}[key]


def wait_for(condition, limit_s: float = 30.0):
    deadline = time.monotonic() + limit_s
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)
    return found


def act(server: ServerProcess, action_type: str, key: str, **payload: object) -> dict:
    status, text = server.post("/v1/tokencake/actions", {"protocol_version": "0.1", "message_id": "m", "actions": [
        {"action_id": "a", "action_type": action_type, "action_version": "1",
         "payload": {"agent_id": key, **payload}}]})
    assert status == 200, text
    return json.loads(text)["outcomes"][0]


def ask(server: ServerProcess, prompt: list[int], **fields: object) -> list[int]:
    return server.generate(prompt, 8, sampling_params={"ignore_eos": True}, **fields)["output_ids"]


def test_kv_goes_to_the_host_and_comes_back_when_a_client_asks_and_the_output_stays_the_same(server):
    prompt = tokens("demoted", 300)
    first = ask(server, prompt, tokencake={"agent_id": "moved"})
    assert act(server, "kv.demote", "moved")["outcome"] == "accepted"
    wait_for(lambda: agent(server, "moved")["tokens"]["unshared_device_tokens"] == 0)
    assert agent(server, "moved")["tokens"]["host_tokens"] > 300
    assert act(server, "kv.prefetch", "moved")["outcome"] == "accepted"
    wait_for(lambda: agent(server, "moved")["tokens"]["restore_tokens"] == 0)
    assert ask(server, prompt, tokencake={"agent_id": "moved"}) == first


def test_kept_kv_survives_what_others_need_and_never_stops_them(server):
    kept, status = tokens("kept", 600), agent
    ask(server, kept, tokencake={"agent_id": "kept"})
    answer = act(server, "kv.retain", "kept", ttl_seconds=90_000 - 3600)
    assert answer["outcome"] == "clipped" and status(server, "kept")["kept_until"] == answer["until"]
    for turn in range(8):
        ask(server, tokens(f"crowd {turn}", 1000))
    assert status(server, "kept")["tokens"]["device_tokens"] > 600
    assert act(server, "kv.release", "kept")["outcome"] == "accepted"
    ask(server, tokens("everything", 3900))
    assert status(server, "kept")["tokens"]["device_tokens"] < 600


def test_actions_in_a_request_are_carried_out_after_its_answer_and_change_no_output(server):
    prompt = tokens("hinted", 300)
    plain = ask(server, prompt)
    hints = {"protocol_version": "0.1", "message_id": "m", "actions": [
        {"action_id": "a", "action_type": "signal.tool_wait", "action_version": "1",
         "payload": {"tool_name": "search", "expected_tool_duration_ms": 60_000, "tool_call_id": "c9"}},
        {"action_id": "b", "action_type": "kv.retain", "action_version": "1", "payload": {"ttl_seconds": 60}}]}
    assert ask(server, prompt, session_id="hinted", kv_hints=hints) == plain
    found = wait_for(lambda: agent(server, "hinted")["kept_until"] and agent(server, "hinted"))
    assert [(call["call_id"], call["kind"]) for call in found["open_calls"]] == [("c9", "search")]
    assert act(server, "signal.resume_estimate", "hinted", resume_in_s=600, call_id="c9")["outcome"] == "accepted"
    assert agent(server, "hinted")["open_calls"][0]["remaining_s"]["0.5"] > 200
    chat = {"messages": [{"role": "user", "content": "Plan."}], "max_tokens": 4, "kv_hints": hints}
    assert server.chat(**chat, session_id="hinted")["choices"] == server.chat(**chat)["choices"]


def test_what_a_request_says_of_parents_times_and_lengths_takes_effect_and_changes_no_output(server):
    prompt = tokens("lead", 200)
    plain = ask(server, prompt)
    assert ask(server, prompt, session_id="lead") == plain
    hints = {"agent_hints": {"priority": 9, "osl": 8}, "cache_control": {"type": "ephemeral", "ttl": "5m"},
             "agent_context": {"session_id": "sub", "parent_session_id": "lead"}}
    assert ask(server, prompt, nvext=hints) == plain
    sub = agent(server, "sub")
    assert (sub["parent"], sub["program"]) == ("lead", "lead")
    assert 200 < sub["used_until"] - state(server)["now"] <= 300
    last = {"vllm_xargs": {"job_id": "lead", "is_last_step": True}}
    assert ask(server, prompt, **last) == plain
    wait_for(lambda: not {"lead", "sub"} & {a["agent"] for a in state(server)["agents"]})


def test_tool_events_of_a_harness_start_and_end_the_stalls_of_its_agent(server):
    context = {"session_id": "run-9", "trajectory_id": "coder"}
    ask(server, tokens("harness", 200), nvext={"agent_context": context})

    def calls():
        return [(call["call_id"], call["kind"]) for call in agent(server, "run-9/coder")["open_calls"]]

    with zmq.Context() as own, own.socket(zmq.PUSH) as push:
        push.linger = 0
        push.connect(TOOL_EVENTS)
        push.send_multipart([b"topic", b"x", b"no msgpack at all"])
        push.send_multipart(frames(record(context=context, tool_call_id="t1", tool_class="shell")))
        wait_for(lambda: calls() == [("t1", "shell")])
        push.send_multipart(frames(record(context=context, tool_call_id="t2", tool_class="read")))
        push.send_multipart(frames(record("tool_end", context=context, tool_call_id="t1", status="succeeded")))
        wait_for(lambda: calls() == [("t2", "read")])
        push.send_multipart(frames(record("tool_error", context=context, tool_call_id="t2")))
        push.send_multipart(frames(record("tool_end", context=context, tool_call_id="never")))
        wait_for(lambda: state(server)["tool_events"]["refused"] == 1)
    assert calls() == []
    assert state(server)["tool_events"] == {
        "endpoint": TOOL_EVENTS, "received": 6, "malformed": 1, "dropped": 0, "applied": 4, "refused": 1}


def test_the_python_client_looks_after_an_agent_of_the_openai_sdk(server):
    url = f"http://127.0.0.1:{server.port}"
    agent_ = Client(url).agent("sdk", app_id="run-3", agent_type="planner")
    model = openai.OpenAI(base_url=url + "/v1", api_key="none")
    said = [{"role": "user", "content": "Plan."}]
    plain = model.chat.completions.create(model="demo", messages=said, max_tokens=8, temperature=0)
    named = model.chat.completions.create(
        model="demo", messages=said, max_tokens=8, temperature=0, extra_body=agent_.extra_body)
    assert named.choices[0].message.content == plain.choices[0].message.content
    with agent_.tool("search", estimate=20.0) as call:
        assert agent_.resume_in(30.0, call.call_id)["outcome"] == "accepted"
        assert agent_.state()["open_calls"][0]["kind"] == "search"
    assert agent_.state()["program"] == "run-3" and agent_.retain(5)["outcome"] == "accepted"
    model.chat.completions.create(
        model="demo", messages=said, max_tokens=1, extra_headers=Client(url).agent("by header").headers)
    assert Client(url).agent("by header").state()["requests"] == 1
    assert agent_.finish_program()["status"] == "applied" and agent_.state() is None


def test_the_example_for_any_stack_runs_against_the_server(server):
    done = subprocess.run(
        [sys.executable, str(EXAMPLE), "--url", f"http://127.0.0.1:{server.port}"], capture_output=True, text=True,
        env={"PYTHONPATH": str(PACKAGE_ROOT)})
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("then Three pages") == 2 and "finished" in done.stdout
    assert "researcher-1" not in {one["agent"] for one in state(server)["agents"]}


def test_the_server_describes_our_routes_beside_sglangs_own(server):
    paths = json.loads(server.get("/openapi.json")[1])["paths"]
    ours = {path: set(methods) for path, methods in paths.items() if path.startswith("/v1/tokencake")}
    assert ours == {
        "/v1/tokencake/events": {"post"}, "/v1/tokencake/actions": {"post"}, "/v1/tokencake/state": {"get"},
        "/v1/tokencake/graphs": {"post"}, "/v1/tokencake/graphs/{graph_id}": {"get"}}
    assert {"/generate", "/v1/chat/completions"} <= set(paths)
    for path in ("/v1/tokencake/events", "/v1/tokencake/actions"):
        for example in paths[path]["post"]["requestBody"]["content"]["application/json"]["examples"].values():
            assert server.post(path, example["value"])[0] in (200, 404)
