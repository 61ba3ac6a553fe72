"""The routes for graphs over a gateway that keeps plans as the scheduler does."""

from __future__ import annotations

import asyncio
import json

import httpx
import pytest
from fastapi import FastAPI

from tokencake_sglang.core.graph_store import GraphStore
from tokencake_sglang.server.graphs import MAX_GRAPH_BYTES, build_graph_router

GRAPHS = "/v1/tokencake/graphs"
PLAN = {"nodes": [{"name": "plan", "tokens": 40}, {"name": "write", "tokens": 80}], "edges": [["plan", "write"]]}


class StoreGateway:
    """Answers as the scheduler's extension does, from a store of its own."""

    def __init__(self):
        self.store = GraphStore()
        self.calls = []

    async def call(self, op, payload, timeout_s=30.0):
        self.calls.append(op)
        payload = json.loads(json.dumps(payload))
        return self.store.post(payload) if op == "graph" else self.store.show(payload["graph_id"])


def ask(gateway, method, url, **kwargs) -> httpx.Response:
    app = FastAPI()
    app.include_router(build_graph_router(gateway))

    async def go():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            return await client.request(method, url, **kwargs)

    return asyncio.run(go())


def test_a_graph_gets_an_id_by_which_its_plan_comes_back():
    gateway = StoreGateway()
    posted = ask(gateway, "POST", GRAPHS, json=PLAN)
    assert (posted.status_code, posted.json()["status"], posted.json()["expected_s"]) == (200, "applied", 3.0)
    assert ask(gateway, "POST", GRAPHS, json=PLAN).json()["status"] == "duplicate"
    shown = ask(gateway, "GET", f"{GRAPHS}/{posted.json()['graph_id']}")
    assert shown.status_code == 200 and shown.json()["critical_path"] == ["plan", "write"]


def test_an_id_that_nobody_has_got_is_a_404_with_a_sentence():
    found = ask(StoreGateway(), "GET", GRAPHS + "/%00%ff" + "a" * 3000)
    error = found.json()["error"]
    assert (found.status_code, error["reason"]) == (404, "unknown_graph") and error["message"].endswith(".")


@pytest.mark.parametrize(("body", "reason"), [
    (b"", "schema"), (b"{", "schema"), (b"\xff", "schema"), (b"[" * 60000, "schema"), (b'{"nodes": NaN}', "schema"),
    (b'{"nodes": [], "nodes": []}', "schema"), (b" " * (MAX_GRAPH_BYTES + 1), "schema"), (b"x" * 5_000_000, "schema"),
    (b"[]", "graph"), (b"null", "graph"), (b"{}", "graph"), (b'{"nodes": "a"}', "graph"),
    (b'{"nodes": [{"name": "\\ud800"}]}', "graph"), (b'{"nodes": [{"name": {"a": 1}}]}', "graph"),
    (b'{"nodes": [{"name": "a", "seconds": 1e999}]}', "graph"),
    (b'{"nodes": [{"name": "a"}, {"name": "b"}], "edges": [["a", "b"], ["b", "a"]]}', "graph"),
], ids=lambda value: repr(value[:40]))
def test_a_bad_graph_is_a_400_with_a_sentence_and_never_reaches_the_scheduler(body, reason):
    gateway = StoreGateway()
    answer = ask(gateway, "POST", GRAPHS, content=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["reason"], gateway.calls) == (400, 400, reason, [])
    assert " " in error["message"]


@pytest.mark.parametrize(("method", "url"), [("POST", GRAPHS), ("GET", GRAPHS + "/a")])
def test_a_server_without_tokencake_answers_503_and_says_how_to_enable_it(method, url):
    answer = ask(None, method, url, content=b"{")
    error = answer.json()["error"]
    assert (answer.status_code, error["reason"]) == (503, "disabled") and "--enable-tokencake" in error["message"]
