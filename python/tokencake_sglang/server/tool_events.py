"""Tool events of NVIDIA Dynamo's harnesses: records over ZMQ become stall events of the agents that they name.

The server binds a PULL socket and harnesses connect with PUSH, as with Dynamo. A message has three frames: a topic,
a number, and a record in msgpack. What is wrong is counted and dropped.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections.abc import Sequence
from typing import Any

import msgspec

from tokencake_sglang.core.errors import ConfigError, MetadataError
from tokencake_sglang.server.background import Background
from tokencake_sglang.server.dialects import resolve
from tokencake_sglang.server.dialects.convert import identifier
from tokencake_sglang.server.dialects.dialect import lookup
from tokencake_sglang.server.routes import Gateway
from tokencake_sglang.server.schema import parse_event

logger = logging.getLogger(__name__)

FLAG = "--tokencake-tool-events"
_ENDPOINT = re.compile(r"tcp://\S+:(\d{1,5})|ipc://.+", re.ASCII)
SCHEMAS = ("dynamo.agent.trace.v1", "dynamo.request.trace.v1")
MAX_RECORD_BYTES = 64 * 1024
MAX_QUEUED = 1024  # messages that ZMQ holds for each harness, and events that the scheduler has not answered
CANCELLED = frozenset(("cancelled", "canceled"))
FAILED = frozenset(("error", "failed", "timeout"))
COUNTS = ("received", "malformed", "dropped", "applied", "refused")


def check_endpoint(endpoint: str) -> str:
    """The endpoint, which can be bound now. ConfigError otherwise."""
    match = _ENDPOINT.fullmatch(endpoint)
    if match is None or not 1 <= int(match[1] or 1) <= 65535:
        raise ConfigError(f"{FLAG} is {endpoint!r}; allowed: tcp:// with an address and a port, as"
                          " tcp://127.0.0.1:20390, or ipc:// with a path. Correct it.")
    import zmq

    context = zmq.Context()
    try:
        with context.socket(zmq.PULL) as probe:
            probe.linger = 0
            probe.bind(endpoint)
    except zmq.ZMQError as error:
        raise ConfigError(f"{FLAG} {endpoint} cannot be bound: {error}. Give an address of this machine with a free"
                          " port, or a path in a folder that exists.") from None
    finally:
        context.term()
    return endpoint


def read_record(frames: Sequence[bytes]) -> dict[str, Any]:
    """The stall event that a message stands for. MetadataError if it is none."""
    if len(frames) != 3:
        raise MetadataError(f"the message has {len(frames)} frames; allowed: topic, number and record.")
    try:
        record = msgspec.msgpack.decode(frames[2])
    except (msgspec.MsgspecError, ValueError, TypeError, RecursionError) as error:
        raise MetadataError(f"the record is not msgpack ({type(error).__name__}).") from None
    if not isinstance(record, dict) or record.get("schema") not in SCHEMAS:
        raise MetadataError(f"the record's schema is not known; allowed: {', '.join(SCHEMAS)}.")
    context = record.get("agent_context")
    if context is None:
        context = {"session_id": record.get("session_id")}
    agent_id = resolve("", {}, {"nvext": {"agent_context": context}}).agent_id
    if agent_id is None:
        raise MetadataError("the record names no session.")
    call_id = identifier(lookup(record, ("tool", "tool_call_id")))
    if call_id is None:
        raise MetadataError("the record has no tool.tool_call_id.")
    event = {"agent_id": agent_id, "call_id": call_id}
    if record.get("event_type") == "tool_start":
        kind = identifier(lookup(record, ("tool", "tool_class")))
        return parse_event({"event": "stall_started", **event, "kind": kind})
    if record.get("event_type") in ("tool_end", "tool_error"):
        outcome = _outcome(record["event_type"], lookup(record, ("tool", "status")))
        return parse_event({"event": "stall_finished", **event, "outcome": outcome})
    raise MetadataError("event_type is not known; allowed: tool_start, tool_end, tool_error.")


def _outcome(event_type: str, status: Any) -> str:
    word = status.lower() if isinstance(status, str) else ""
    if word in CANCELLED:
        return "cancelled"
    return "error" if event_type == "tool_error" or word in FAILED else "ok"


class ToolEvents:
    """Receives on one endpoint and tells the scheduler; to be used on the server's event loop."""

    def __init__(self, gateway: Gateway, endpoint: str) -> None:
        self.endpoint = endpoint
        self.counts = dict.fromkeys(COUNTS, 0)
        self._telling = Background(gateway, "a tool event could not be told to the scheduler")
        self._receiving: asyncio.Task[None] | None = None

    def report(self) -> dict[str, Any]:
        """For the live state."""
        return {"endpoint": self.endpoint, **self.counts}

    def start(self) -> None:
        """Bind and receive from now on."""
        import zmq
        import zmq.asyncio

        context = zmq.asyncio.Context()
        socket = context.socket(zmq.PULL)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.RCVHWM, MAX_QUEUED)
        socket.setsockopt(zmq.MAXMSGSIZE, MAX_RECORD_BYTES)
        socket.bind(self.endpoint)
        self._receiving = asyncio.get_running_loop().create_task(self._receive(context, socket))

    async def stop(self) -> None:
        if self._receiving is not None:
            self._receiving.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._receiving

    async def _receive(self, context: Any, socket: Any) -> None:
        try:
            while True:
                self.take(await socket.recv_multipart())
                await asyncio.sleep(0)  # the event is on its way, and others of this loop had their turn
        finally:
            socket.close()
            context.term()

    def take(self, frames: Sequence[bytes]) -> None:
        """One message. Never raises."""
        self.counts["received"] += 1
        try:
            event = read_record(frames)
        except MetadataError as error:
            self.counts["malformed"] += 1
            logger.debug("a tool event was dropped: %s", error)
            return
        if len(self._telling) >= MAX_QUEUED:
            self.counts["dropped"] += 1
            return
        self._telling.send("event", event, self._told)

    def _told(self, status: int) -> None:
        self.counts["applied" if status == 200 else "refused"] += 1


class WithToolEvents:
    """Pure ASGI middleware: receives tool events from the start of the application to its end."""

    def __init__(self, app: Any, events: ToolEvents) -> None:
        self.app = app
        self.events = events

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "lifespan":
            await self.app(scope, receive, send)
            return

        async def watched() -> dict[str, Any]:
            message = await receive()
            if message["type"] == "lifespan.startup":
                self.events.start()
            elif message["type"] == "lifespan.shutdown":
                await self.events.stop()
            return message

        await self.app(scope, watched, send)
