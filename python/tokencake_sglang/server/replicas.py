"""Data-parallel replicas (--dp-size): which of them an agent's requests and events go to, and one answer from all.

An agent's KV lives in one replica, and what its program shares lives beside it: so all of a program goes to one. A new
program goes to the replica with the fewest programs. A client that names a replica itself is followed.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

from tokencake_sglang.core.types import AgentIdentity

NAMES_KEPT = 65536  # programs, agents and calls whose replica is remembered
ALL = -1  # instead of a replica's number: every one of them
LISTS = ("agents", "moves", "runs", "actions", "stalls")  # of the state: those of all replicas, each with its own
SUMS = ("counters", "declined", "stall_totals")
OF_ONE = ("now", "num_agents", "pool", "queue", "chunks_parked", "beside_long_prompts")  # told of each replica

Answer = tuple[int, dict[str, Any]]


class Replicas:
    """Remembers by name: programs, and agents by their ids and those of their calls. Bounded."""

    def __init__(self, count: int, kept: int = NAMES_KEPT) -> None:
        self.count = count
        self._kept = kept
        self._programs: OrderedDict[str, int] = OrderedDict()
        self._agents: OrderedDict[str, int] = OrderedDict()
        self._load = [0] * count  # programs of each

    def route(self, metadata: Any, asked: int | None = None) -> int | None:
        """The replica for a request with this metadata (that of its first prompt, where there is a list); `asked`: the
        one that its client names. None: any, since it is no agent's."""
        first = metadata[0] if isinstance(metadata, list) and metadata else metadata
        identity = AgentIdentity.from_metadata(first) if isinstance(first, Mapping) else None
        if identity is None:
            return asked
        chosen = self._known(identity) if asked is None else asked
        if chosen is None:
            chosen = self._load.index(min(self._load))
        self._remember(identity, chosen)
        return chosen

    def of(self, agent_id: str | None, lifecycle_id: str | None) -> int:
        """The replica of the agent that an event or action names; ALL when it is not known."""
        return self._agents.get(agent_id if agent_id is not None else lifecycle_id or "", ALL)

    def of_call(self, op: str, payload: Mapping[str, Any]) -> int:
        """Where a control call goes."""
        named = payload["actions"] if op == "actions" else [payload] if op == "event" else []
        found = {self.of(one.get("agent_id"), one.get("lifecycle_id")) for one in named}
        return found.pop() if len(found) == 1 else ALL

    def _known(self, identity: AgentIdentity) -> int | None:
        for name in (identity.key, identity.parent_agent_id):
            if name in self._agents:
                return self._agents[name]
        return self._programs.get(identity.program)

    def _remember(self, identity: AgentIdentity, replica: int) -> None:
        before = self._programs.pop(identity.program, None)
        if before is not None:
            self._load[before] -= 1
        self._programs[identity.program] = replica
        self._load[replica] += 1
        if len(self._programs) > self._kept:
            self._load[self._programs.popitem(last=False)[1]] -= 1
        for name in filter(None, (identity.agent_id, identity.lifecycle_id)):
            self._agents.pop(name, None)
            self._agents[name] = replica
        while len(self._agents) > self._kept:
            self._agents.popitem(last=False)


def merge(op: str, answers: Sequence[Answer]) -> Answer:
    """One answer to a control call from those of all replicas, in the order of their numbers."""
    failed = [answer for answer in answers if answer[0] != 200]
    if op == "state":
        return failed[0] if failed else (200, _state([body for _, body in answers]))
    if op == "actions":
        return failed[0] if failed else (200, {"outcomes": [
            _first_known(outcomes) for outcomes in zip(*(body["outcomes"] for _, body in answers), strict=True)]})
    if op == "event":
        return min(answers, key=_how_little_it_says)
    return failed[0] if failed else answers[0]  # the same question, and all know the same


def _how_little_it_says(answer: Answer) -> tuple[bool, bool, bool]:
    """Of an event: a replica that does not know the agent says nothing about it."""
    status, body = answer
    return status == 404, status != 200, body.get("status") != "applied"


def _first_known(outcomes: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return next((outcome for outcome in outcomes if outcome["outcome"] != "missing"), outcomes[0])


def _state(bodies: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Lists of all, in which each entry says whose it is; sums of counts; the rest one by one."""
    merged = dict(bodies[0])
    for name in LISTS:
        merged[name] = [{**one, "dp_rank": rank} for rank, body in enumerate(bodies) for one in body[name]]
    for name in SUMS:
        total: Counter[str] = Counter()
        for body in bodies:
            total.update(body[name])
        merged[name] = dict(total)
    merged.update(pool=None, queue=None, num_agents=sum(body["num_agents"] for body in bodies),
                  chunks_parked=sum(body["chunks_parked"] for body in bodies),
                  beside_long_prompts=sum(body["beside_long_prompts"] for body in bodies))
    merged["replicas"] = [
        {"dp_rank": rank, **{name: body[name] for name in OF_ONE}} for rank, body in enumerate(bodies)]
    return merged
