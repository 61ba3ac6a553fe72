"""What clients ask for themselves: keep KV, move it, say how long a tool takes. Each is answered with an outcome.

An action is an event like others. What it needs of the cache it asks of the same mechanism as a policy does; what it
says about a stall goes to the policy, which decides. It is tried once: nothing waits for a better moment.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from tokencake_sglang.core.agents import Agent
from tokencake_sglang.core.controller import Controller
from tokencake_sglang.core.plan import Offload, Outcome, Retain, Upload
from tokencake_sglang.core.retention import RETAIN_MAX_S, RETAIN_SHARE
from tokencake_sglang.core.types import Footprint

OUTCOMES = ("accepted", "clipped", "deferred", "rejected", "missing")
KINDS = ("retain", "demote", "prefetch", "release", "tool_wait", "resume_estimate")
RECENT = 64  # outcomes that the live state shows
MIN_MOVE_TOKENS = 10  # SGLang loads back nothing shorter (HiRadixCache.load_back_threshold)
NOT_NOW = frozenset(("a move is under way", "host_full", "load_slots_busy", "no_room"))  # declines that may pass

Answer = dict[str, Any]


class ClientActions:
    """Carries out checked actions on one controller, in the order in which they come."""

    def __init__(self, controller: Controller) -> None:
        self.controller = controller
        self.recent: deque[Answer] = deque(maxlen=RECENT)

    def apply(self, action: dict[str, Any]) -> Answer:
        """`action` names one of KINDS, an agent (`agent_id` and/or `lifecycle_id`) and its arguments (times are
        seconds). Returns `outcome`, `message` (a sentence), and `tokens` or `until` where they say something."""
        agent = self.controller.agents.find(action.get("agent_id"), action.get("lifecycle_id"))
        name = action.get("agent_id") or action.get("lifecycle_id")
        if agent is None:
            answer = _answer("missing", f"Agent {name!r} is not known: it has sent no request, or it has ended.")
        else:
            self.controller.agents.touch(agent, self.controller.now)
            answer = getattr(self, "_" + action["action"])(agent, action)
        self.controller.counters["actions_" + answer["outcome"]] += 1
        self.recent.append({"at": self.controller.now, "agent": name, "action": action["action"], **answer})
        return answer

    def _retain(self, agent: Agent, action: dict[str, Any]) -> Answer:
        there, pool = self._footprint(agent), self.controller.mechanism.pool()
        tokens, asked_s = there.held_tokens, action["for_s"]
        if tokens == 0 and not agent.rids:
            return _answer("missing", f"Agent {agent.key!r} has no KV here.")
        if not self.controller.retention.fits(agent.key, tokens, pool.device_total):
            return _answer("rejected", (
                f"Agent {agent.key!r} holds {tokens} tokens and others keep {self.controller.retention.total}; all of"
                f" it may be {RETAIN_SHARE:g} of the device's {pool.device_total}. Release another one first."))
        until = self.controller.now + min(asked_s, RETAIN_MAX_S)
        self.controller.retention.grant(agent.key, until, tokens)
        self.controller.carry_out_asked(agent, Retain(), "a client asked to keep it")
        self.controller.mark_due(agent)
        if asked_s > RETAIN_MAX_S:
            return _answer("clipped", f"{tokens} tokens are given up last for {RETAIN_MAX_S:g} s, the longest that is"
                           " allowed.", tokens, until)
        return _answer("accepted", f"{tokens} tokens are given up last for {asked_s:g} s.", tokens, until)

    def _release(self, agent: Agent, action: dict[str, Any]) -> Answer:
        if self.controller.end_retention(agent):
            return _answer("accepted", f"The KV of agent {agent.key!r} is kept no longer than other KV.")
        return _answer("accepted", f"Nothing was kept for agent {agent.key!r}.")

    def _demote(self, agent: Agent, action: dict[str, Any]) -> Answer:
        if agent.rids:
            return _answer("deferred", f"Agent {agent.key!r} is being served. Send it again when its answer has ended.")
        there = self._footprint(agent)
        if there.held_tokens == 0:
            return _answer("missing", f"Agent {agent.key!r} has no KV here.")
        if there.unshared_device_tokens == 0:
            return _answer("accepted", "There is nothing on the device that is this agent's alone.", 0)
        outcome = self.controller.carry_out_asked(agent, Offload(agent.lease_until), "a client asked to demote it")
        if not outcome.accepted:
            return _declined(outcome)
        return _answer("accepted", f"{outcome.tokens} tokens are on their way to the host.", outcome.tokens)

    def _prefetch(self, agent: Agent, action: dict[str, Any]) -> Answer:
        there = self._footprint(agent)
        if there.held_tokens == 0 and not agent.rids:
            return _answer("missing", f"Agent {agent.key!r} has no KV here.")
        missing = there.restore_tokens
        if agent.rids or missing < MIN_MOVE_TOKENS:
            why = "it is loaded with the request that is being served" if agent.rids else "it is on the device"
            return _answer("accepted", f"There is nothing to bring back: {why}.", 0)
        pool = self.controller.mechanism.pool()
        room = pool.device_free + pool.device_dead - pool.waiting_head_tokens
        if room < MIN_MOVE_TOKENS:
            return _declined(Outcome(False, reason="no_room"))
        upload = Upload(min(room, missing), agent.lease_until)
        outcome = self.controller.carry_out_asked(agent, upload, "a client asked to prefetch it")
        if not outcome.accepted:
            return _declined(outcome)
        if outcome.tokens < missing:
            return _answer("clipped", f"{outcome.tokens} of {missing} tokens are on their way to the device; for more"
                           " there is no room.", outcome.tokens)
        return _answer("accepted", f"{outcome.tokens} tokens are on their way to the device.", outcome.tokens)

    def _tool_wait(self, agent: Agent, action: dict[str, Any]) -> Answer:
        reply = self.controller.event({
            "event": "stall_started", "agent_id": agent.key, "kind": action["kind"], "call_id": action.get("call_id"),
            "estimated_duration_s": action.get("estimated_duration_s")})
        return _answer("accepted" if reply.status == 200 else "rejected", reply.message)

    def _resume_estimate(self, agent: Agent, action: dict[str, Any]) -> Answer:
        if not agent.calls.open:
            return _answer("missing", f"Agent {agent.key!r} has no open call.")
        reply = agent.calls.revise(self.controller.now, action.get("call_id"), action["resume_in_s"])
        if reply.status != 200:
            return _answer("rejected", reply.message)
        self.controller.mark_due(agent)
        return _answer("accepted", reply.message)

    def _footprint(self, agent: Agent) -> Footprint:
        return self.controller.mechanism.footprint(agent.key)


def _declined(outcome: Outcome) -> Answer:
    if outcome.reason in NOT_NOW:
        return _answer("deferred", f"It cannot be done now ({outcome.reason}). Send it again later.")
    return _answer("rejected", f"It cannot be done ({outcome.reason}).")


def _answer(outcome: str, message: str, tokens: int | None = None, until: float | None = None) -> Answer:
    optional = {"tokens": tokens, "until": until}
    return {"outcome": outcome, "message": message, **{k: v for k, v in optional.items() if v is not None}}
