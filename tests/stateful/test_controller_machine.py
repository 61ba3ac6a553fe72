"""Any sequence of valid events, against a plain model: no exception, right answers, nothing lost or counted twice."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.support.mechanism import MemoryMechanism, Tokens
from tokencake_sglang.core.actions import OUTCOMES as ACTION_OUTCOMES
from tokencake_sglang.core.actions import ClientActions
from tokencake_sglang.core.config import TokenCakeConfig
from tokencake_sglang.core.controller import Controller
from tokencake_sglang.core.costs import Costs
from tokencake_sglang.core.timers import TIMER_SLACK
from tokencake_sglang.core.types import AgentIdentity

KEYS = st.sampled_from(("a", "b", "c"))
CALL_IDS = st.sampled_from(("c1", "c2", "c3", None))
KINDS = st.sampled_from(("search", "shell"))
ESTIMATES = st.sampled_from((None, 0.1, 2.0, 30.0))
OUTCOMES = st.sampled_from(("ok", "error", "cancelled"))
SECONDS = st.sampled_from((0.0, 0.01, 0.25, 1.0, 5.0, 30.0))


@dataclass
class ModelCall:
    kind: str
    estimate: float | None
    is_open: bool = True
    outcome: str | None = None  # None once ended: by the next request


@dataclass
class ModelAgent:
    """The calls of one agent, by id; unnamed ones get numbers."""

    calls: dict[Any, ModelCall] = field(default_factory=dict)
    ended_order: list[Any] = field(default_factory=list)
    unnamed: int = 0

    def open_ids(self) -> list[Any]:
        return [name for name, call in self.calls.items() if call.is_open]

    def start(self, call_id: str | None, kind: str, estimate: float | None) -> str:
        if call_id is None:
            if self.unnamed in self.calls and not self.calls[self.unnamed].is_open:
                self.unnamed += 1
            call_id = self.unnamed
        known = self.calls.get(call_id)
        if known is None:
            self.calls[call_id] = ModelCall(kind, estimate)
            return "applied"
        return "duplicate" if (known.kind, known.estimate) == (kind, estimate) else "conflict"

    def finish(self, call_id: str | None, outcome: str) -> str:
        if call_id is None:
            if len(self.open_ids()) > 1:
                return "conflict"
            call_id = (self.open_ids() or self.ended_order[-1:] or [None])[0]
        call = self.calls.get(call_id)
        if call is None:
            return "conflict"
        if call.is_open:
            self._end(call_id, outcome)
            return "applied"
        if call.outcome is None:
            call.outcome = outcome
            return "late_finish"
        return "duplicate" if call.outcome == outcome else "conflict"

    def end_all(self) -> None:
        for name in self.open_ids():
            self._end(name, None)

    def _end(self, name: Any, outcome: str | None) -> None:
        self.calls[name].is_open, self.calls[name].outcome = False, outcome
        self.ended_order.append(name)


class ControllerMachine(RuleBasedStateMachine):
    settings_used: dict[str, Any] = {"offload_policy": "eager"}
    knows_who_is_forgotten = True  # the model forgets nobody
    writes_through = True  # new KV gets its copy on the host at once

    def __init__(self) -> None:
        super().__init__()
        self.mechanism = MemoryMechanism()
        self.controller = Controller(TokenCakeConfig(**self.settings_used), self.mechanism)
        self.actions = ClientActions(self.controller)
        self.model: dict[str, ModelAgent] = {}
        self.ended: set[str] = set()
        self.requests: dict[str, str] = {}  # rid -> key, of those that wait or run
        self.next_rid = 0

    # -- the scheduler ------------------------------------------------------------------------------------------

    @rule(seconds=SECONDS, steps=st.integers(0, 2))
    def time_passes(self, seconds, steps):
        self.controller.tick(self.controller.now + seconds)
        for _ in range(steps):
            self.controller.step()

    @rule(key=KEYS, tokens=st.sampled_from((0, 9, 63, 64, 500)))
    def a_request_joins(self, key, tokens):
        rid = f"r{self.next_rid}"
        self.next_rid += 1
        self.requests[rid] = key
        self.mechanism.live.add(rid)
        mine = self.mechanism.tokens.setdefault(key, Tokens(0))
        mine.count, mine.on_device, mine.has_copy = max(mine.count, tokens), True, self.writes_through
        mine.back = 0
        self.controller.request_added(AgentIdentity(agent_id=key), rid)
        self.model.setdefault(key, ModelAgent()).end_all()
        self.ended.discard(key)

    @precondition(lambda self: self.requests)
    @rule(data=st.data(), how=st.sampled_from(("served", "vanished", "retracted")))
    def a_request_leaves(self, data, how):
        rid = data.draw(st.sampled_from(sorted(self.requests)))
        key = self.requests[rid]
        if how == "retracted":
            known = self.controller.agents.get(key)
            fresh = known is None or rid not in known.rids
            self.controller.request_added(AgentIdentity(agent_id=key), rid)
            if fresh:
                self.model.setdefault(key, ModelAgent()).end_all()
                self.ended.discard(key)
            return
        del self.requests[rid]
        self.mechanism.live.discard(rid)
        if how == "served":
            self.controller.request_ended(key, rid)

    @rule()
    def the_oldest_move_lands(self):
        for key in list(self.mechanism.moves)[:1]:
            self.mechanism.land(key)

    @rule(free=st.sampled_from((0, 100, 10_000)), declines=st.sets(st.sampled_from(("offload", "upload"))))
    def memory_changes(self, free, declines):
        self.mechanism.free = free
        self.mechanism.declines = dict.fromkeys(sorted(declines), "no")

    @precondition(lambda self: not self.requests)
    @rule()
    def the_cache_is_flushed(self):
        self.mechanism.flush()
        self.controller.reset()

    # -- the clients --------------------------------------------------------------------------------------------

    @rule(key=KEYS, call_id=CALL_IDS, kind=KINDS, estimate=ESTIMATES)
    def a_stall_starts(self, key, call_id, kind, estimate):
        event = {"event": "stall_started", "agent_id": key, "call_id": call_id, "kind": kind}
        if estimate is not None:
            event["estimated_duration_s"] = estimate
        self.send(event, "conflict", lambda agent: agent.start(call_id, kind, estimate))

    @rule(key=KEYS, call_id=CALL_IDS, outcome=OUTCOMES)
    def a_stall_ends(self, key, call_id, outcome):
        event = {"event": "stall_finished", "agent_id": key, "call_id": call_id, "outcome": outcome}
        self.send(event, "late_finish", lambda agent: agent.finish(call_id, outcome))

    @rule(key=KEYS)
    def an_agent_finishes(self, key):
        self.send({"event": "agent_finished", "agent_id": key}, "duplicate", lambda agent: "applied")
        if self.model.pop(key, None) is not None:
            self.ended.add(key)

    @rule(key=KEYS, kind=st.sampled_from(("retain", "demote", "prefetch", "release", "resume_estimate")),
          seconds=st.sampled_from((0.0, 1.0, 30.0, 1e5)))
    def a_client_asks_for_an_action(self, key, kind, seconds):
        times = {"for_s": seconds, "resume_in_s": min(seconds, 30.0)}
        answer = self.actions.apply({"action": kind, "agent_id": key, **times})
        assert answer["outcome"] in ACTION_OUTCOMES and answer["message"].endswith(".")
        if self.knows_who_is_forgotten and key not in self.model:
            assert answer["outcome"] == "missing"

    def send(self, event, answer_when_ended, answer) -> None:
        reply = self.controller.event(event)
        agent = self.model.get(event["agent_id"])
        assert reply.message.endswith(".")
        assert (reply.status == 200) == (reply.result in ("applied", "duplicate", "late_finish"))
        if not self.knows_who_is_forgotten:
            return
        if agent is not None:
            assert reply.result == answer(agent)
        else:
            assert reply.result == (answer_when_ended if event["agent_id"] in self.ended else "unknown_agent")

    # -- what always holds --------------------------------------------------------------------------------------

    @invariant()
    def every_move_that_was_started_has_ended_or_is_under_way(self):
        counters = self.controller.counters
        under_way = list(self.mechanism.moves.values()) + [done.kind for done in self.mechanism.done]
        for kind in ("offload", "backup", "upload"):
            assert counters[f"{kind}s_started"] == counters[f"{kind}s_completed"] + under_way.count(kind)
        assert counters["uploads_on_time"] + counters["uploads_late"] <= counters["uploads_completed"]

    @invariant()
    def every_stall_that_was_started_has_ended_or_is_open(self):
        counters = self.controller.counters
        still_open = sum(len(agent.calls.open) for agent in self.controller.agents)
        assert counters["stalls_started"] == counters["stalls_finished"] + still_open

    @invariant()
    def the_same_agents_and_calls_are_known_as_in_the_model(self):
        if self.knows_who_is_forgotten:
            found = {agent.key: len(agent.calls.open) for agent in self.controller.agents}
            assert found == {key: len(agent.open_ids()) for key, agent in self.model.items()}

    @invariant()
    def the_controller_knows_every_lease_and_every_move_of_its_agents(self):
        kept = {agent.key for agent in self.controller.agents if agent.key in self.controller.retention}
        leased = {agent.key for agent in self.controller.agents if agent.lease_until is not None}
        assert set(self.mechanism.protected) == leased | kept and len(kept) == len(self.controller.retention)
        for agent in self.controller.agents:
            kinds = {self.mechanism.moves.get(agent.key)} | {d.kind for d in self.mechanism.done if d.key == agent.key}
            assert agent.move is None or agent.move in kinds

    @invariant()
    def memory_is_bounded(self):
        assert self.controller.due.timers <= 2 * (4 * len(self.controller.agents) + TIMER_SLACK)
        assert len(self.controller.due) <= len(self.controller.agents)
        assert len(self.controller.uploads.queue) <= len(self.controller.agents)

    # -- how it ends --------------------------------------------------------------------------------------------

    def teardown(self) -> None:
        self.everything_settles_when_nothing_happens_any_more()
        self.nothing_is_left_when_all_agents_have_finished()

    def everything_settles_when_nothing_happens_any_more(self) -> None:
        for rid, key in self.requests.items():
            self.mechanism.live.discard(rid)
            self.controller.request_ended(key, rid)
        self.mechanism.declines, self.mechanism.free = {}, 10_000
        for seconds in (0.0, 0.3, 1.0, 1.0, 10.0, 40.0, 40.0, 200.0, 3600.0, 0.5, 0.5, 0.5):
            self.controller.tick(self.controller.now + seconds)
            self.controller.step()
            for key in list(self.mechanism.moves):
                self.mechanism.land(key)
            self.controller.step()
        assert not self.mechanism.moves and not self.mechanism.protected and self.controller.retention.total == 0
        assert self.controller.next_wake is None

    def nothing_is_left_when_all_agents_have_finished(self) -> None:
        for agent in list(self.controller.agents):
            self.controller.event({"event": "agent_finished", "agent_id": agent.key})
        self.controller.step()
        assert len(self.controller.agents) == 0 and not self.controller.agents.by_lifecycle
        assert self.controller.next_wake is None and not self.mechanism.protected
        self.every_move_that_was_started_has_ended_or_is_under_way()
        self.every_stall_that_was_started_has_ended_or_is_open()


class ForgetfulMachine(ControllerMachine):
    """The same with agents forgotten all the time; the answers are not checked."""

    settings_used = {"offload_policy": "eager", "agent_idle_s": 2.0, "max_agents": 2, "lease_s": 1.0}
    knows_who_is_forgotten = False


class CostMachine(ControllerMachine):
    """The default policy on a device that is short of memory: copies are made ahead, KV leaves by itself."""

    settings_used = {}
    writes_through = False

    def __init__(self) -> None:
        super().__init__()
        self.mechanism.free = 1_000
        self.mechanism.costs = Costs(upload_base_s=0.0, upload_token_s=0.25 / 200)  # 500 tokens are three pieces

    @rule(key=KEYS)
    def memory_was_wanted(self, key):
        """The cache gives KV up without being told by the policy, and what has no copy is gone."""
        mine = self.mechanism.tokens.get(key)
        if mine is not None and key not in self.mechanism.moves and key not in self.mechanism.protected:
            if mine.has_copy:
                mine.on_device, mine.back = False, 0
            else:
                del self.mechanism.tokens[key]


class HybridMachine(CostMachine):
    """Uploads by the timer, and before it into memory that lies free."""

    settings_used = {"upload": "hybrid"}

    def __init__(self) -> None:
        super().__init__()
        self.mechanism.free = 25_000  # of 100,000


TestController = ControllerMachine.TestCase
TestController.settings = settings(max_examples=120, stateful_step_count=40, deadline=None)
TestCostController = CostMachine.TestCase
TestCostController.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestHybridController = HybridMachine.TestCase
TestHybridController.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestForgetfulController = ForgetfulMachine.TestCase
TestForgetfulController.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
