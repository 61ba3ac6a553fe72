"""Envelopes of actions: on their own route, and in the body of a generation request."""

from __future__ import annotations

import asyncio
import json

import httpx
import pytest
from fastapi import FastAPI
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.server.test_inferred_identity import build_app
from tests.unit.test_dialect_convert import values
from tokencake_sglang.core.actions import KINDS
from tokencake_sglang.core.errors import MetadataError
from tokencake_sglang.server.action_routes import build_action_router
from tokencake_sglang.server.actions import DEFAULT_RETAIN_S, MAX_ACTIONS, TYPES, parse_envelope
from tokencake_sglang.server.hints import Hints, find_hints
from tokencake_sglang.server.identity import AgentIdentityMiddleware
from tokencake_sglang.server.routes import error_body
from tokencake_sglang.server.schema import MAX_EVENT_BYTES

ACTIONS, CHAT = "/v1/tokencake/actions", "/v1/chat/completions"


class Scheduler:
    """Accepts every action, or answers with a status."""

    def __init__(self, status=200):
        self.calls, self.status = [], status

    async def call(self, op, payload, timeout_s=30.0):
        self.calls.append((op, payload))
        if self.status != 200:
            return self.status, error_body(self.status, "busy", "Later.")
        done = [{"outcome": "accepted", "message": f"{one['action']} was done."} for one in payload.get("actions", [])]
        return 200, {"outcomes": done}


def action(action_type, action_id="a1", version="1", **payload):
    return {"action_id": action_id, "action_type": action_type, "action_version": version, "payload": payload}


def envelope(*actions, **fields):
    return {"protocol_version": "0.1", "message_id": "m1", "actions": list(actions), **fields}


def post(scheduler, **kwargs) -> httpx.Response:
    app = FastAPI()
    app.include_router(build_action_router(scheduler))

    async def go():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            return await client.post(ACTIONS, **kwargs)

    return asyncio.run(go())


def only(obj, own=None):
    """The one action of an envelope."""
    (one,) = parse_envelope(obj, own)[1]
    return one


# -- what an envelope says ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("given_", "expected"), [
    (action("kv.retain", agent_id="a", ttl_seconds=30), {"action": "retain", "agent_id": "a", "for_s": 30.0}),
    (action("kv.retain", agent_id="a", duration="5m"), {"action": "retain", "agent_id": "a", "for_s": 300.0}),
    (action("kv.retain", agent_id="a", ttl_ms=1500), {"action": "retain", "agent_id": "a", "for_s": 1.5}),
    (action("kv.retain", agent_id="a"), {"action": "retain", "agent_id": "a", "for_s": DEFAULT_RETAIN_S}),
    (action("kv.demote", session_id="s"), {"action": "demote", "agent_id": "s"}),
    (action("kv.prefetch", lifecycle_id="l"), {"action": "prefetch", "lifecycle_id": "l"}),
    (action("kv.release", agent_id="a", session_id="s"), {"action": "release", "agent_id": "a"}),
    (action("signal.tool_wait", agent_id="a", tool_name="search", tool_call_id="c", expected_tool_duration_ms=2500),
     {"action": "tool_wait", "agent_id": "a", "kind": "search", "call_id": "c", "estimated_duration_s": 2.5}),
    (action("signal.tool_wait", agent_id="a"), {"action": "tool_wait", "agent_id": "a", "kind": "tool"}),
    (action("signal.resume_estimate", agent_id="a", resume_in_s=4, call_id="c"),
     {"action": "resume_estimate", "agent_id": "a", "resume_in_s": 4.0, "call_id": "c"}),
    ({"action_type": "kv.demote@1", "payload": {"agent_id": "a"}}, {"action": "demote", "agent_id": "a"}),
    (action("kv.demote", version="1.3", agent_id="a", block_hashes=["1"], execute_at="request_completion"),
     {"action": "demote", "agent_id": "a"}),
])
def test_an_action_is_understood(given_, expected):
    assert only(envelope(given_)).action == expected


@pytest.mark.parametrize(("given_", "word"), [
    (action("kv.share", agent_id="a"), "kv.retain"), ({"action_id": "a"}, "action_type"), ("text", "action_type"),
    (action("kv.demote"), "names no agent"), (action("kv.demote", agent_id=7), "agent_id"),
    (action("kv.demote", agent_id="a\u0000"), "agent_id"), (action("kv.demote", version="2", agent_id="a"), "version"),
    (action("kv.demote@2", version=None, agent_id="a"), "version"), (action("kv.demote", version=1), "version"),
    (action("kv.retain", agent_id="a", ttl_seconds=-1), "ttl_seconds"),
    (action("kv.retain", agent_id="a", ttl_seconds=1e9), "86400"),
    (action("kv.retain", agent_id="a", ttl_seconds=[1]), "ttl_seconds"),
    (action("signal.resume_estimate", agent_id="a"), "resume_in_s"),
    (action("signal.tool_wait", agent_id="a", kind={"x": 1}), "kind"),
    ({**action("kv.demote"), "payload": "a"}, "payload"),
])
def test_an_action_that_does_not_fit_is_refused_by_itself_with_a_sentence(given_, word):
    good = action("kv.release", agent_id="a")
    bad, fine = parse_envelope(envelope(given_, good))[1]
    assert bad.action is None and word in bad.refusal and bad.refusal.endswith(".")
    assert fine.action == {"action": "release", "agent_id": "a"}


@pytest.mark.parametrize("obj", [
    None, [], "x", {}, {"actions": {}}, {"actions": []}, envelope(), envelope(*[{}] * (MAX_ACTIONS + 1)),
    envelope({}, protocol_version="2.0"), envelope({}, protocol_version=0.1)])
def test_what_is_no_envelope_is_said_to_be_none(obj):
    with pytest.raises(MetadataError, match=r"\.$"):
        parse_envelope(obj)


def test_ids_may_be_left_out_and_the_number_of_the_action_stands_for_its_own():
    message_id, asked = parse_envelope({"actions": [{"action_type": "kv.release"}] * 2}, own="me")
    assert message_id == "" and [one.action_id for one in asked] == ["0", "1"]
    assert asked[0].action == {"action": "release", "agent_id": "me"}


def test_every_action_of_the_controller_has_its_type():
    assert {kind for kind, _ in TYPES.values()} == set(KINDS)


@settings(deadline=None, max_examples=200)
@given(values, st.sampled_from(sorted(TYPES)), values)
def test_whatever_is_sent_is_an_envelope_or_a_metadata_error(obj, action_type, payload):
    for candidate in (obj, {"actions": obj}, {"actions": [obj]}, envelope({**action(action_type), "payload": payload})):
        try:
            message_id, asked = parse_envelope(candidate)
        except MetadataError:
            continue
        assert isinstance(message_id, str)
        for one in asked:
            assert (one.action is None) != (one.refusal == "")
            texts = [v for k, v in (one.action or {}).items() if not k.endswith("_s")]
            assert all(isinstance(text, str) and 1 <= len(text) <= 256 for text in texts)
            times = [v for k, v in (one.action or {}).items() if k.endswith("_s")]
            assert all(isinstance(time, float) and 0 <= time <= 86400 for time in times)


# -- the route ----------------------------------------------------------------------------------------------------


def test_each_action_is_answered_in_order_by_its_own_outcome():
    scheduler = Scheduler()
    answer = post(scheduler, json=envelope(
        action("kv.retain", "x", agent_id="a"), action("kv.nothing", "y"), action("kv.demote", "z", agent_id="b")))
    assert answer.status_code == 200 and answer.json()["message_id"] == "m1"
    assert [(o["action_id"], o["outcome"]) for o in answer.json()["outcomes"]] == [
        ("x", "accepted"), ("y", "rejected"), ("z", "accepted")]
    assert [o["message"] for o in answer.json()["outcomes"]][2] == "demote was done."
    assert scheduler.calls == [("actions", {"actions": [
        {"action": "retain", "agent_id": "a", "for_s": 300.0}, {"action": "demote", "agent_id": "b"}]})]


def test_actions_that_are_all_refused_do_not_reach_the_scheduler():
    scheduler = Scheduler()
    assert post(scheduler, json=envelope(action("kv.demote"))).json()["outcomes"][0]["outcome"] == "rejected"
    assert scheduler.calls == []


@pytest.mark.parametrize("body", [
    b"", b"{", b"[]", b"\xff", b"[" * 60_000, b'{"actions": [], "actions": []}', b'{"actions": [NaN]}',
    b"x" * (MAX_EVENT_BYTES + 1), json.dumps({"actions": 5}).encode()], ids=lambda body: str(body[:20]))
def test_a_body_that_is_no_envelope_is_a_400(body):
    scheduler = Scheduler()
    answer = post(scheduler, content=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["reason"]) == (400, "schema") and error["message"].endswith(".")
    assert scheduler.calls == []


def test_what_the_scheduler_says_of_itself_is_handed_on_and_off_is_a_503():
    busy = post(Scheduler(429), json=envelope(action("kv.demote", agent_id="a")))
    assert busy.status_code == 429 and busy.headers["retry-after"]
    off = post(None, json=envelope(action("kv.demote", agent_id="a")))
    assert (off.status_code, off.json()["error"]["reason"]) == (503, "disabled")


# -- in the body of a generation request ----------------------------------------------------------------------------


def generate(body, headers=None, infer=True, path=CHAT):
    """The body that the application saw, and the actions of each call in order."""
    scheduler = Scheduler()
    app = build_app(infer, scheduler)

    content = body if isinstance(body, bytes) else json.dumps(body).encode()

    async def go():
        transport = httpx.ASGITransport(app, raise_app_exceptions=True)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            answer = await client.post(path, content=content, headers=headers)
        await asyncio.sleep(0)
        return answer

    answer = asyncio.run(go())
    assert answer.status_code == 200, answer.text
    return answer.json()["body"].encode("latin-1"), [payload["actions"] for op, payload in scheduler.calls]


def test_actions_in_a_body_reach_the_scheduler_and_the_body_stays_as_it_was():
    body = {"messages": [], "session_id": "s", "kv_hints": envelope(
        action("kv.retain", ttl_seconds=9), action("kv.prefetch", agent_id="next"), action("kv.unknown"))}
    seen, calls = generate(body)
    assert seen == json.dumps(body).encode()
    assert calls == [[{"action": "prefetch", "agent_id": "next"}],
                     [{"action": "retain", "agent_id": "s", "for_s": 9.0}]]


def test_the_agent_may_be_named_by_headers_or_by_a_native_object():
    hints = {"kv_hints": envelope(action("kv.demote"))}
    assert generate({"messages": [], **hints}, {"x-session-id": "h"})[1] == [[{"action": "demote", "agent_id": "h"}]]
    own = {"messages": [], "tokencake": {"agent_id": "own"}, **hints}
    seen, calls = generate(own)
    assert calls == [[{"action": "demote", "agent_id": "own"}]]
    assert json.loads(seen)["kv_hints"] == hints["kv_hints"]


def test_actions_for_others_go_before_the_answer_and_those_for_its_own_agent_after_it():
    scheduler, body = Scheduler(), {"session_id": "s", "kv_hints": envelope(
        action("kv.demote"), action("kv.prefetch", agent_id="next"))}

    async def answering(scope, receive, send):
        await receive()
        for more in (True, False):
            await asyncio.sleep(0)
            scheduler.calls.append(("answering", {}))
            await send({"type": "http.response.body", "body": b"x", "more_body": more})

    async def go():
        raw = json.dumps(body).encode()

        async def receive():
            return {"type": "http.request", "body": raw}

        async def send(message):
            pass

        scope = {"type": "http", "method": "POST", "path": CHAT, "headers": []}
        await AgentIdentityMiddleware(answering, infer=True, gateway=scheduler)(scope, receive, send)
        await asyncio.sleep(0)

    asyncio.run(go())
    assert [op if op == "answering" else payload["actions"][0]["action"] for op, payload in scheduler.calls] == [
        "prefetch", "answering", "answering", "demote"]


@pytest.mark.parametrize("field", ["kv_hint", "kv_hints"])
def test_a_connectors_parameters_may_carry_the_envelope(field):
    body = {"session_id": "s", "kv_transfer_params": {field: envelope(action("kv.demote"))}}
    assert generate(body)[1] == [[{"action": "demote", "agent_id": "s"}]]


@pytest.mark.parametrize("body", [
    {"kv_hints": envelope(action("kv.demote"))}, {"kv_hints": 5, "session_id": "s"},
    {"session_id": "s", "kv_hints": []},
    {"session_id": "s", "kv_hints": {"actions": "kv.demote"}}, {"session_id": "s", "text": '"kv_hints": {"actions"'},
    {"session_id": "s", "kv_hints": envelope(action("kv.demote"), protocol_version="9")},
    {"agent_metadata": {"agent_id": {"a": 1}}, "kv_hints": envelope(action("kv.demote"))},
    {"tokencake": None, "kv_hints": envelope(action("kv.demote"))}, b'{"kv_hints": ', b'["kv_hints"]'])
def test_hints_that_mean_nothing_are_ignored(body):
    assert generate(body)[1] == []


def test_hints_are_not_read_when_nothing_is_inferred():
    body = {"tokencake": {"agent_id": "own"}, "kv_hints": envelope(action("kv.demote"))}
    assert generate(body, infer=False)[1] == []


@settings(deadline=None, max_examples=100)
@given(values, values)
def test_no_hints_are_ever_an_error(hints, metadata):
    try:
        body = json.dumps({"kv_hints": hints, "agent_metadata": metadata, "kv_transfer_params": hints}).encode()
    except ValueError:
        return
    assert isinstance(find_hints(body, None), Hints)
