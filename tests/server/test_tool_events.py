"""Tool events from a real ZMQ publisher: what a record becomes, and what nothing becomes of."""

from __future__ import annotations

import asyncio
import struct

import msgspec
import pytest
import zmq
import zmq.asyncio
from fastapi import FastAPI
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.server import free_port
from tests.unit.test_dialect_convert import values
from tokencake_sglang.core.errors import ConfigError, MetadataError
from tokencake_sglang.server.tool_events import (
    MAX_QUEUED,
    MAX_RECORD_BYTES,
    ToolEvents,
    WithToolEvents,
    check_endpoint,
    read_record,
)

CONTEXT = {"session_type_id": "research", "session_id": "run-42", "trajectory_id": "run-42:researcher"}
TOOL = {"tool_call_id": "call-abc", "tool_class": "web_search", "status": "running"}


def record(event_type="tool_start", context=CONTEXT, **tool):
    return {"schema": "dynamo.agent.trace.v1", "event_type": event_type, "event_time_unix_ms": 1777312801500,
            "event_source": "harness", "agent_context": context, "tool": {**TOOL, **tool}}


def frames(body, number=1):
    raw = body if isinstance(body, bytes) else msgspec.msgpack.encode(body)
    return [b"agent-tool-events", struct.pack(">Q", number), raw]


START = {"event": "stall_started", "agent_id": "run-42/run-42:researcher", "call_id": "call-abc", "kind": "web_search"}
FINISH = {"event": "stall_finished", "agent_id": "run-42/run-42:researcher", "call_id": "call-abc"}


@pytest.mark.parametrize(("body", "expected"), [
    (record(), START),
    (record("tool_end", status="succeeded"), {**FINISH, "outcome": "ok"}),
    (record("tool_end", status="ok", duration_ms=420.5, started_at_unix_ms=1), {**FINISH, "outcome": "ok"}),
    (record("tool_end", status="Canceled"), {**FINISH, "outcome": "cancelled"}),
    (record("tool_end", status="timeout"), {**FINISH, "outcome": "error"}),
    (record("tool_error", status=None), {**FINISH, "outcome": "error"}),
    (record("tool_error", status="cancelled"), {**FINISH, "outcome": "cancelled"}),
    (record(tool_class=None), {**START, "kind": "tool"}),
    (record(context={"session_id": "s"}), {**START, "agent_id": "s"}),
    (record(context={"workflow_id": "w", "program_id": "p"}), {**START, "agent_id": "w/p"}),
    ({"schema": "dynamo.request.trace.v1", "event_type": "tool_start", "session_id": "s", "tool": TOOL},
     {**START, "agent_id": "s"}),
])
def test_a_record_becomes_a_stall_event_of_the_agent_that_requests_with_its_ids_have(body, expected):
    assert read_record(frames(body)) == expected


WRONG = [
    [], [b"topic"], frames(record())[:2], [*frames(record()), b""], frames(b""), frames(b"\xc1"),
    frames(b"\x91" * 5000), frames([]), frames({}), frames({**record(), "schema": "dynamo.agent.trace.v2"}),
    frames(record("request_end")), frames(record(None)), frames(record(context={})), frames(record(context=[1])),
    frames(record(context={"session_id": 5})), frames({**record(), "tool": None}), frames(record(tool_call_id=7)),
    frames(record(tool_call_id="")), frames(msgspec.msgpack.encode(record()) + b"x")]


@pytest.mark.parametrize("message", WRONG, ids=range(len(WRONG)))
def test_a_malformed_message_is_said_to_be_one(message):
    with pytest.raises(MetadataError):
        read_record(message)


@settings(deadline=None, max_examples=300)
@given(st.lists(st.binary(max_size=40), max_size=4) | values.map(lambda v: ["", "", v])
       | st.tuples(st.sampled_from(["schema", "event_type", "agent_context", "tool"]), values).map(
           lambda one: ["", "", {**record(), one[0]: one[1]}]))
def test_no_message_raises_anything_else(message):
    try:
        message = [part if isinstance(part, bytes) else msgspec.msgpack.encode(part) for part in message]
    except (OverflowError, ValueError):
        return
    try:
        event = read_record(message)
    except MetadataError:
        return
    assert event["event"] in ("stall_started", "stall_finished") and event["agent_id"] and event["call_id"]


class Scheduler:
    """Remembers events; answers when it may."""

    def __init__(self, status=200):
        self.events, self.status = [], status
        self.may_answer = asyncio.Event()
        self.may_answer.set()

    async def call(self, op, payload, timeout_s=30.0):
        self.events.append(payload)
        await self.may_answer.wait()
        return self.status, {}


async def until(condition):
    for _ in range(500):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not happen in time")


def run(talk, status=200):
    """`talk(events, scheduler, send)` with an application that receives, on a free port, from its start to its end."""
    endpoint = f"tcp://127.0.0.1:{free_port()}"

    async def go():
        scheduler = Scheduler(status)
        events = ToolEvents(scheduler, endpoint)
        lifespan = asyncio.Queue()
        said = asyncio.Queue()
        app = asyncio.create_task(WithToolEvents(FastAPI(), events)({"type": "lifespan"}, lifespan.get, said.put))
        await lifespan.put({"type": "lifespan.startup"})
        assert (await said.get())["type"] == "lifespan.startup.complete"
        with zmq.asyncio.Context() as context, context.socket(zmq.PUSH) as push:
            push.linger = 0
            push.connect(endpoint)
            await talk(events, scheduler, push.send_multipart)
        await lifespan.put({"type": "lifespan.shutdown"})
        assert (await said.get())["type"] == "lifespan.shutdown.complete"
        await app
        assert check_endpoint(endpoint) == endpoint  # it is free again

    asyncio.run(go())


def test_events_of_a_publisher_reach_the_scheduler_in_their_order():
    async def talk(events, scheduler, send):
        for number in range(50):
            await send(frames(record(tool_call_id=f"c{number}"), number))
            await send(frames(record("tool_end", tool_call_id=f"c{number}"), number))
        await until(lambda: events.counts["applied"] == 100)
        assert [(e["event"], e["call_id"]) for e in scheduler.events] == [
            (event, f"c{number}") for number in range(50) for event in ("stall_started", "stall_finished")]

    run(talk)


def test_what_is_wrong_is_counted_and_what_comes_after_it_is_received():
    async def talk(events, scheduler, send):
        for message in WRONG:
            if message:
                await send(message)
        await send(frames(record()))
        await until(lambda: events.counts["applied"] == 1)
        assert events.counts["malformed"] == len(WRONG) - 1 and scheduler.events == [START]
        assert events.report() == {"endpoint": events.endpoint, **events.counts}

    run(talk)


def test_a_record_that_is_too_large_costs_its_sender_the_connection_and_no_more():
    async def talk(events, scheduler, send):
        await send(frames(record(tool_call_id="large", output="x" * 2 * MAX_RECORD_BYTES)))
        for _ in range(200):  # the sender connects again by itself
            await send(frames(record()))
            await asyncio.sleep(0.01)
            if events.counts["applied"]:
                break
        assert events.counts["applied"] and {event["call_id"] for event in scheduler.events} == {"call-abc"}

    run(talk)


def test_events_are_dropped_and_counted_while_the_scheduler_does_not_answer():
    async def talk(events, scheduler, send):
        scheduler.may_answer.clear()
        for number in range(MAX_QUEUED + 7):
            events.take(frames(record(tool_call_id=f"c{number}")))
        assert events.counts["dropped"] == 7
        scheduler.may_answer.set()
        await until(lambda: events.counts["applied"] == MAX_QUEUED)

    run(talk)


def test_what_the_scheduler_refuses_is_counted():
    async def talk(events, scheduler, send):
        await send(frames(record("tool_end")))
        await until(lambda: events.counts["refused"] == 1)

    run(talk, status=409)


@pytest.mark.parametrize("endpoint", [
    "tcp://127.0.0.1", "udp://127.0.0.1:5", "127.0.0.1:5", "tcp://127.0.0.1:99999", "tcp://no.such.host.:1",
    "ipc:///no/such/folder/socket"])
def test_an_endpoint_that_cannot_be_bound_is_said_before_the_server_starts(endpoint):
    with pytest.raises(ConfigError, match=r"--tokencake-tool-events.*\.$"):
        check_endpoint(endpoint)


def test_an_endpoint_in_use_is_said_before_the_server_starts(tmp_path):
    endpoint = f"ipc://{tmp_path}/socket"
    assert check_endpoint(endpoint) == endpoint
    port = free_port()
    with zmq.Context() as context, context.socket(zmq.PULL) as taken:
        taken.bind(f"tcp://127.0.0.1:{port}")
        with pytest.raises(ConfigError, match="in use"):
            check_endpoint(f"tcp://127.0.0.1:{port}")
