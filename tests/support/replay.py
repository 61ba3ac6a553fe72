"""Replays an event log on a controller; `python -m tests.support.replay` prints what 200 logs led to.

Two processes with different PYTHONHASHSEED must print the same.
"""

from __future__ import annotations

import hashlib
import random
from typing import Any

from tests.support.mechanism import MemoryMechanism, Tokens
from tokencake_sglang.core.config import TokenCakeConfig
from tokencake_sglang.core.controller import Controller
from tokencake_sglang.core.types import AgentIdentity

AGENTS = tuple(f"agent-{i}" for i in range(6))
CALLS = ("c1", "c2", None)
SECONDS = (0.0, 0.05, 0.3, 1.0, 6.0, 40.0)
#  0 -> (1, a tool) -> 3 -> 4;  0 -> 2, three times -> 3
PLAN = {
    "nodes": [{"name": "0", "tokens": 40}, {"name": "1", "kind": "tool", "seconds": 2}, {"name": "2", "count": 3},
              {"name": "3", "tokens": 80}, {"name": "4"}],
    "edges": [["0", "1"], ["0", "2"], ["1", "3"], ["2", "3"], ["3", "4"]]}

Event = tuple[Any, ...]


def replay(events: list[Event], **settings: Any) -> dict[str, Any]:
    """Fold the events, one scheduler step after each; returns everything that may be seen from outside."""
    mechanism = MemoryMechanism()
    controller = Controller(TokenCakeConfig(**{"offload_policy": "eager", **settings}), mechanism)
    graph = controller.runs.graphs.add(PLAN)[1]
    replies = []
    for what, *args in events:
        if what == "tick":
            controller.tick(controller.now + args[0])
        elif what == "ask":
            key, rid, lifecycle_id = args
            mechanism.live.add(rid)
            mechanism.tokens.setdefault(key, Tokens(100 + len(rid)))
            controller.request_added(AgentIdentity(
                app_id=f"app-{AGENTS.index(key) % 2}", graph_id=graph, node_id=rid[1:], agent_id=key,
                lifecycle_id=lifecycle_id), rid)
        elif what == "answer":
            mechanism.live.discard(args[1])
            controller.runs.request_ended(controller.now, args[1], 10 * len(replies))
            controller.request_ended(*args)
        elif what == "vanish":
            mechanism.live.discard(args[0])
        elif what == "event":
            replies.append(controller.event(args[0]))
        elif what == "land":
            for key in list(mechanism.moves)[: args[0]]:
                mechanism.land(key)
        elif what == "decline":
            mechanism.declines = dict.fromkeys(args, "no")
        else:
            assert what == "flush"
            mechanism.flush()
            controller.reset()
        controller.step()
    return {
        "log": mechanism.log, "replies": replies, "counters": controller.counters, "declined": controller.declined,
        "runs": controller.runs.reports(controller.now, 9),
        "importance": [controller.runs.importance(key) for key in AGENTS],
        "agents": [(a.key, a.state, a.move, a.lease_until) for a in controller.agents]}


def random_events(rng: random.Random, length: int) -> list[Event]:
    """A log of valid events over few agents, so that they meet in many states."""
    return [_random_event(rng) for _ in range(length)]


def _random_event(rng: random.Random) -> Event:
    key, rid = rng.choice(AGENTS), f"r{rng.randrange(8)}"
    roll = rng.randrange(20)
    if roll < 4:
        return ("tick", rng.choice(SECONDS))
    if roll < 7:
        return ("ask", key, rid, rng.choice((None, f"turn-{rng.randrange(9)}")))
    if roll < 10:
        return ("answer", key, rid)
    if roll < 11:
        return ("vanish", rid)
    if roll < 13:
        return ("land", rng.randrange(4))
    if roll < 14:
        return ("decline", *rng.sample(("offload", "upload"), rng.randrange(3)))
    if roll < 15 and rng.random() < 0.2:
        return ("flush",)
    return ("event", _random_client_event(rng, key))


def _random_client_event(rng: random.Random, key: str) -> dict[str, Any]:
    names = ("stall_started",) * 5 + ("stall_finished",) * 4 + ("agent_finished",)
    event: dict[str, Any] = {"event": rng.choice(names)}
    event["agent_id" if rng.random() < 0.8 else "lifecycle_id"] = key
    if event["event"] != "agent_finished":
        event["call_id"] = rng.choice(CALLS)
    if event["event"] == "stall_started":
        event["kind"] = "tool"
        event["estimated_duration_s"] = rng.choice((None, 0.1, 2.0, 30.0))
    if event["event"] == "stall_finished":
        event["outcome"] = rng.choice(("ok", "error"))
    return event


def digest(logs: int = 200, length: int = 120) -> str:
    """A fingerprint of what so many random logs lead to, and the number of actions (an empty result would show)."""
    found, actions = hashlib.sha256(), 0
    for seed in range(logs):
        result = replay(random_events(random.Random(seed), length))
        actions += len(result["log"])
        found.update(repr(result).encode())
    return f"{actions} actions {found.hexdigest()}"


if __name__ == "__main__":
    print(digest())
