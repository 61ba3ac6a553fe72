"""Clients that send anything at all in the fields and headers that are read: the server lives on, outputs stay."""

from __future__ import annotations

import json
from collections import Counter

import httpx
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.support.odd_clients import BODIES, encoded, fields, headers
from tests.support.server import ServerProcess

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

FLAGS = ("--max-total-tokens", "4096", "--hicache-ratio", "2", "--enable-tokencake")
READ = {
    "/generate": lambda answer: answer["text"],
    "/v1/completions": lambda answer: answer["choices"][0]["text"],
    "/v1/chat/completions": lambda answer: answer["choices"][0]["message"]["content"],
    "/v1/messages": lambda answer: [block["text"] for block in answer["content"]],
    "/v1/responses": lambda answer: [part["text"] for item in answer["output"] for part in item.get("content") or []],
}


class Server:
    def __init__(self, process: ServerProcess) -> None:
        self.process = process
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{process.port}", timeout=120)
        self.codes: Counter[int] = Counter()
        self.outputs = {path: READ[path](self.http.post(path, json=body).json()) for path, body in BODIES.items()}

    def post(self, path: str, body: bytes, sent: dict[str, str]) -> httpx.Response:
        raw = [(name.encode(), value.strip().encode("latin-1")) for name, value in sent.items()]
        return self.http.post(path, content=body, headers=[*raw, (b"content-type", b"application/json")])

    def state(self) -> dict:
        return self.http.get("/v1/tokencake/state?agents=10000").json()


@pytest.fixture(scope="module")
def server():
    with ServerProcess(*FLAGS, module="tokencake_sglang.launch_server") as process:
        server = Server(process)
        yield server
        assert process.process.poll() is None, process.log_tail()
        assert "Traceback" not in process.log(), process.log_tail()


@settings(max_examples=160, deadline=None, derandomize=True, database=None, phases=(Phase.generate,),
          suppress_health_check=list(HealthCheck))
@given(path=st.sampled_from(sorted(BODIES)), added=fields(), sent=headers)
def test_whatever_is_said_beside_the_prompt_the_output_is_the_same(server, path, added, sent):
    body = encoded({**BODIES[path], **added})
    if body is None:
        return
    answer = server.post(path, body, sent)
    server.codes[answer.status_code] += 1
    if answer.status_code == 200:
        assert READ[path](answer.json()) == server.outputs[path]
    else:
        assert 400 <= answer.status_code < 500, (answer.status_code, answer.text, body[:2000])


def test_afterwards_the_server_answers_as_before_and_every_agent_can_be_ended(server):
    for path, body in BODIES.items():
        assert READ[path](server.http.post(path, json=body).json()) == server.outputs[path]
    assert server.codes[200] > sum(server.codes.values()) / 2, "most requests of this test are to be served"
    state = server.state()
    agents = state["agents"]
    assert len(agents) > 10 and state["counters"]["agents_ended"] > 0, "they are to name agents, and end some"
    for agent in agents:
        answer = server.http.post("/v1/tokencake/events", content=json.dumps(
            {"event": "agent_finished", "agent_id": agent["agent"]}))
        assert answer.status_code == 200, answer.text
    state = server.state()
    assert state["agents"] == [] and state["counters"]["stalls_started"] == state["counters"]["stalls_finished"]
