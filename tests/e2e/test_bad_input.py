"""Whatever clients send, the server answers with a clear 4xx, lives on, and serves the others as before."""

from __future__ import annotations

import http.client
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support.server import ServerProcess

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

KEY = "secret-of-this-test"
EVENTS, STATE = "/v1/tokencake/events", "/v1/tokencake/state"
GREEDY = {"temperature": 0, "max_new_tokens": 12}
PROMPT = "The quick brown fox jumps over the lazy dog. " * 12


class Client:
    """One kept-alive connection that sends the key, unless told otherwise."""

    def __init__(self, server: ServerProcess, key: str | None = KEY) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=120)
        self.headers = {"Content-Type": "application/json"}
        if key is not None:
            self.headers["Authorization"] = f"Bearer {key}"

    def ask(self, method: str, path: str, body: object = None) -> tuple[int, dict]:
        raw = body if isinstance(body, (bytes, type(None))) else json.dumps(body).encode()
        self.connection.request(method, path, raw, self.headers)
        answer = self.connection.getresponse()
        return answer.status, json.loads(answer.read())

    def event(self, event: str, agent: str, **fields: object) -> tuple[int, dict]:
        return self.ask("POST", EVENTS, {"event": event, "agent_id": agent, **fields})

    def text(self, prompt: str = PROMPT, **fields: object) -> str:
        status, body = self.ask("POST", "/generate", {"text": prompt, "sampling_params": GREEDY, **fields})
        assert status == 200, body
        return body["text"]


@pytest.fixture(scope="module")
def server():
    flags = ("--enable-tokencake", "--max-total-tokens", "6000", "--api-key", KEY)
    with ServerProcess(*flags, module="tokencake_sglang.launch_server") as started:
        yield started
        assert started.process.poll() is None, started.log_tail()
        assert "Traceback" not in started.log(), started.log_tail()


@pytest.fixture
def client(server):
    return Client(server)


def refused(answer: tuple[int, dict], code: int, reason: str) -> str:
    status, body = answer
    assert (status, body["error"]["code"], body["error"]["reason"]) == (code, code, reason), body
    message = body["error"]["message"]
    assert message.endswith(".") and len(message) < 500
    return message


STALL = {"event": "stall_started", "agent_id": "a"}
BAD_BODIES = [
    b"", b"{", b"null", b"[]", b'"text"', b"\xff\xfe\x00", b"[" * 60_000, b'{"event":' * 8_000, b"x" * 1_000_000,
    b'{"event": "stall_started", "agent_id": "a", "estimated_duration_s": NaN}',
    b'{"event": "stall_started", "agent_id": "a", "agent_id": "b"}',
    {}, {"event": "stall"}, {"event": "stall_started"}, {**STALL, "agent_id": 7},
    {**STALL, "agent_id": {"id": {"a": 1}}},
    {**STALL, "agent_id": "a" * 257}, {**STALL, "agent_id": ""}, {**STALL, "agent_id": "a\x00b"},
    {**STALL, "estimated_duration_s": -1}, {**STALL, "estimated_duration_s": "3"},
    {**STALL, "estimated_duration_s": 1e9},
    {**STALL, "estimated_duration_s": True}, {**STALL, "kind": ["search"]}, {**STALL, "surprise": 1},
    {"event": "stall_finished", "agent_id": "a", "outcome": "fine"},
]


@pytest.mark.parametrize("body", BAD_BODIES, ids=lambda body: str(body)[:50])
def test_a_malformed_event_is_a_400(client, body):
    refused(client.ask("POST", EVENTS, body), 400, "schema")


@pytest.mark.parametrize("metadata", [
    "a", 3, [], {}, {"agent_id": 3}, {"agent_id": {"nested": {"deeper": 1}}}, {"agent_id": "x" * 100_000},
    {"agent_id": "a", "role": "b"}, {"agent_id": "\u0007"}, [{"agent_id": "a"}, {"agent_id": "b"}],
], ids=lambda metadata: str(metadata)[:50])
@pytest.mark.parametrize("path", ["/generate", "/v1/chat/completions", "/v1/completions"])
def test_malformed_metadata_on_a_request_is_a_400(client, path, metadata):
    messages = [{"role": "user", "content": "x"}]
    body = {"text": "x", "prompt": "x", "model": "m", "messages": messages, "tokencake": metadata}
    assert "tokencake" in refused(client.ask("POST", path, body), 400, "schema")


def test_unknown_agents_conflicts_and_wrong_keys_have_their_own_codes(server, client):
    refused(client.event("stall_started", "nobody"), 404, "unknown_agent")
    refused(client.event("agent_finished", "nobody"), 404, "unknown_agent")
    client.text(tokencake={"agent_id": "codes"})
    refused(client.event("stall_finished", "codes", call_id="never"), 409, "conflict")
    assert client.event("stall_started", "codes", call_id="c", estimated_duration_s=0.1)[0] == 200
    assert client.event("stall_started", "codes", call_id="c", estimated_duration_s=0.1)[1]["status"] == "duplicate"
    refused(client.event("stall_started", "codes", call_id="c", estimated_duration_s=9), 409, "conflict")
    assert client.event("stall_finished", "codes", call_id="c")[1]["status"] == "applied"
    assert "Bearer" in refused(Client(server, key=None).ask("GET", STATE), 401, "unauthorized")
    refused(Client(server, key="wrong").event("stall_started", "codes"), 401, "unauthorized")
    refused(client.ask("GET", STATE + "?agents=many"), 400, "schema")


def test_ten_thousand_events_from_many_clients_leave_other_requests_untouched(server, client):
    before = client.text()
    agents = [f"storm-{i}" for i in range(8)]
    for agent in agents:
        client.text(f"{agent} {PROMPT}", tokencake={"agent_id": agent})
    stop, texts = threading.Event(), []

    def bystander() -> None:
        own = Client(server)
        while not stop.is_set():
            texts.append(own.text())

    def storm(agent: str) -> list[int]:
        own, codes = Client(server), []
        for i in range(250):
            call = {"call_id": f"c{i}"}
            expected = 0.6 if i % 50 == 0 else 0.01
            codes.append(own.event("stall_started", agent, estimated_duration_s=expected, **call)[0])
            codes.append(own.event("stall_started", agent, estimated_duration_s=-1, **call)[0])
            codes.append(own.event("stall_started", agent + "?", **call)[0])
            codes.append(own.event("stall_finished", agent, **call)[0])
            codes.append(own.ask("POST", EVENTS, b'{"event": ')[0])
        return codes

    watcher = threading.Thread(target=bystander)
    watcher.start()
    try:
        with ThreadPoolExecutor(len(agents)) as pool:
            codes = list(pool.map(storm, agents))
    finally:
        stop.set()
        watcher.join()
    assert codes == [[200, 400, 404, 200, 400] * 250] * len(agents)
    assert texts and set(texts) == {before}


def test_a_client_that_leaves_has_its_request_ended(server, client):
    body = {"text": PROMPT, "stream": True, "sampling_params": {"max_new_tokens": 3000, "ignore_eos": True},
            "tokencake": {"agent_id": "leaver"}}
    leaver = Client(server)
    leaver.connection.request("POST", "/generate", json.dumps(body), leaver.headers)
    assert leaver.connection.getresponse().read(10)
    assert client.ask("GET", STATE)[1]["pool"]["running_requests"] == 1
    leaver.connection.sock.close()
    leaver.connection.close()
    wait_for(lambda: client.ask("GET", STATE)[1]["pool"]["running_requests"] == 0)


def test_afterwards_nothing_is_stalled_or_moving_and_no_token_is_lost(client):
    for agent in client.ask("GET", STATE + "?agents=10000")[1]["agents"]:
        client.event("agent_finished", agent["agent"])

    def at_rest() -> bool:
        state = client.ask("GET", STATE)[1]
        pool = state["pool"]
        whole = pool["device_free"] + pool["device_evictable"] == pool["device_total"]
        return not state["moves"] and not state["agents"] and pool["running_requests"] == 0 and whole

    wait_for(at_rest)
    assert client.text() == client.text()


def wait_for(condition, limit_s: float = 60) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.1)
