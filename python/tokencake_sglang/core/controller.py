"""Folds events, asks the policy about the agents that are due, and has the engine carry out its decisions.

Everything here is a function of the folded events and of what the mechanism reports, so every
tensor-parallel rank reaches the same decisions in the same step. Time comes in with `tick` only.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Container
from dataclasses import replace
from typing import Any

from tokencake_sglang.core.agents import Agent, AgentTable
from tokencake_sglang.core.client_events import ClientEvents
from tokencake_sglang.core.config import TokenCakeConfig
from tokencake_sglang.core.counters import Books
from tokencake_sglang.core.due import DECISIONS_PER_STEP, Due
from tokencake_sglang.core.forecast import Forecaster, make_forecaster
from tokencake_sglang.core.hints import RequestHints
from tokencake_sglang.core.plan import Action, Decision, Mechanism, Offload, Outcome, Policy, Release, Upload
from tokencake_sglang.core.policy import make_policy
from tokencake_sglang.core.records import StallRecords
from tokencake_sglang.core.retention import Retention
from tokencake_sglang.core.runs import RunTable
from tokencake_sglang.core.stalls import Reply
from tokencake_sglang.core.types import PREFILL, AgentIdentity, AgentView, PoolView, StallView
from tokencake_sglang.core.upload_steps import UploadSteps

DECLINED_RETRY_S = 0.25
ACTIVE_RECHECK_S = 1.0
KV_LEFT_S = 0.25
NO_HINTS = RequestHints()


class Controller:
    def __init__(self, config: TokenCakeConfig, mechanism: Mechanism, policy: Policy | None = None) -> None:
        self.config = config
        self.mechanism = mechanism
        self.policy = policy or make_policy(config)
        self._reads_demand = getattr(self.policy, "reads_demand", True)
        self._follows_kv = getattr(self.policy, "follows_kv", False)
        self.forecaster: Forecaster = make_forecaster(config)
        self.agents = AgentTable(config, self.forecaster)
        self.runs = RunTable(self.forecaster)
        self.books = Books()
        self.counters, self.declined = self.books.counters, self.books.declined
        self.records = StallRecords(config.stall_records)
        self.retention = Retention()
        self.uploads = UploadSteps(self)
        self.now = 0.0
        self.observe: Callable[[float, str, Decision, Outcome | None], None] = lambda *_: None
        self.queue_wait_s: Callable[[str], float] = lambda key: 0.0
        self.on_agent_gone: Callable[[str], None] = lambda key: None
        self.due = Due(self.agents)
        self._events = ClientEvents(self)
        self._live: Container[str] | None = None  # of this step, once somebody needs it

    # -- events ---------------------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Time moves on; it never goes back, whatever a clock says."""
        self.now = max(self.now, now)

    def request_added(
            self, identity: AgentIdentity, rid: str, ends_calls: Collection[str] | None = None,
            hints: RequestHints = NO_HINTS) -> None:
        """A request of this agent joined the queue. Unless it is one that was retracted, or only computes the start of
        a prompt that is still to come, its tools have returned: all of them, or those of `ends_calls`."""
        agent = self.agents.see(self.now, replace(identity, purpose=None))
        if rid in agent.rids:
            return self.mark_due(agent)
        agent.rids[rid] = None
        agent.requests += 1
        if identity.purpose == PREFILL:
            return self.mark_due(agent)
        agent.cache_ttl_s = hints.cache_ttl_s
        self._give_up_calls(agent)
        ended = agent.calls.end_all(self.now, ends_calls)
        self.learn(agent)
        self.counters["stalls_finished"] += ended
        if not agent.calls.open:
            self.stall_over(agent, "request", had_calls=ended > 0)
        self.runs.request_added(self.now, agent.program, identity, rid)
        agent.returned_at = None
        self.mark_due(agent)

    def request_ended(self, key: str, rid: str) -> None:
        """A request of this agent finished or was aborted."""
        agent = self.agents.get(key)
        if agent is None:
            self.mechanism.forget(key)  # it ended before its request did, which has left KV under its name
            return
        agent.rids.pop(rid, None)
        agent.idle_since = self.now
        self.agents.touch(agent, self.now)
        self.mark_due(agent)

    def kv_left(self, key: str) -> None:
        """The end of the agent's latest path has left the device; the rest may follow in the next moments."""
        agent = self.agents.get(key)
        if self._follows_kv and agent is not None and agent.calls.open and not agent.rids:
            self.due.look_by(agent, self.now + KV_LEFT_S)

    def event(self, event: dict[str, Any]) -> Reply:
        """Fold one validated client event and answer it."""
        return self._events.fold(event)

    def reset(self) -> None:
        """The cache was flushed: moves and leases are gone, the agents and their calls are not."""
        for done in self.mechanism.take_completions():
            self._complete(done.key, done.kind, done.tokens)
        for agent in self.agents:
            agent.move = agent.lease_until = None
            agent.upload_ready = False
        self.retention.clear()
        self.uploads.queue.clear()

    # -- what clients ask for (core/actions.py) -------------------------------------------------------------

    def carry_out_asked(self, agent: Agent, action: Action, reason: str) -> Outcome:
        """Have the mechanism carry out what a client asked for; policies do not take it back."""
        outcome = self.carry_out(agent, Decision(action, reason), self.view(agent), self.mechanism.pool())
        if outcome.accepted and isinstance(action, (Offload, Upload)):
            agent.move_is_asked = True
        return outcome

    def carry_out(self, agent: Agent, decision: Decision, view: AgentView, pool: PoolView) -> Outcome | None:
        """Have the mechanism carry out a decision that was made from these; None where it has no action."""
        outcome = None if decision.action is None else self._execute(agent, decision.action)
        self.observe(self.now, agent.key, decision, outcome)
        self.records.decided(self.now, view, pool, decision, outcome)
        return outcome

    def end_retention(self, agent: Agent) -> bool:
        """Its KV is kept no longer; whether it was. A lease of the policy's goes on."""
        was_kept = self.retention.end(agent.key)
        if was_kept and agent.lease_until is None:
            self.mechanism.execute(agent.key, Release())
        return was_kept

    def mark_due(self, agent: Agent) -> None:
        """Decide about it in the next step."""
        self.due.mark(agent)

    # -- the step -------------------------------------------------------------------------------------------

    @property
    def next_wake(self) -> float | None:
        """When the next agent is due: the current time if one is already, None if none waits for time to pass."""
        times = self.due.next_at(self.now), self.uploads.queue.next_at
        return min((at for at in times if at is not None), default=None)

    def step(self) -> None:
        """One scheduler step: completions, the agents that are due, then pieces of uploads; each boundedly many."""
        for done in self.mechanism.take_completions():
            self._complete(done.key, done.kind, done.tokens)
        self._live = None
        self._forget_stale()
        for agent in self.due.take(self.now):
            self._drop_vanished_requests(agent)
            self._decide(agent)
        self.uploads.start()

    def _drop_vanished_requests(self, agent: Agent) -> None:
        """Aborted in the queue or dropped: nobody tells, so look."""
        if agent.rids:
            self._live = self.mechanism.live_rids() if self._live is None else self._live
            for rid in [rid for rid in agent.rids if rid not in self._live]:
                del agent.rids[rid]
                self.runs.request_ended(self.now, rid, None)

    def view(self, agent: Agent) -> AgentView:
        move = "demotion" if agent.move == "offload" and agent.move_is_asked and not agent.rids else agent.move
        importance, near_completion = self.runs.importance(agent.key)
        return AgentView(
            agent.key, agent.identity.agent_type, bool(agent.rids), self.stall_view(agent), agent.returned_at,
            move, agent.lease_until, self.mechanism.footprint(agent.key),
            importance=importance, near_completion=near_completion, queue_wait_s=self.queue_wait_s(agent.key),
            offloaded_at=agent.offloaded_at, offloaded_tokens=agent.offloaded_tokens,
            idle_since=agent.idle_since, used_until=agent.used_until)

    def stall_view(self, agent: Agent) -> StallView | None:
        return agent.calls.view(self.now, self.forecaster, agent.identity.agent_type)

    def learn(self, agent: Agent) -> None:
        """From its calls that have ended."""
        for lesson in agent.calls.take_lessons():
            self.forecaster.observe(agent.identity.agent_type, lesson.kind, lesson.estimate_s, lesson.duration_s)

    def _give_up_calls(self, agent: Agent) -> None:
        self.counters["stalls_finished"] += agent.calls.give_up(self.now, self.config.agent_idle_s)
        self.learn(agent)

    def _decide(self, agent: Agent) -> None:
        view, pool = self.view(agent), self.mechanism.pool(self._reads_demand)
        decision = self.policy.decide(self.now, view, pool)
        self.mechanism.expect(agent.key, decision.next_use)
        self.uploads.note(agent, decision)
        wake_at, outcome = decision.wake_at, self.carry_out(agent, decision, view, pool)
        if outcome is not None and not outcome.accepted:
            retry_at = self.now + DECLINED_RETRY_S
            wake_at = retry_at if wake_at is None else min(wake_at, retry_at)
            self._end_lease_that_is_over(agent)
        if agent.key in self.retention:
            held = view.footprint.held_tokens
            ending, until = self.retention.look(self.now, agent.key, held, pool.device_total)
            for key in ending:
                self.end_retention(self.agents.get(key))
            if agent.key in self.retention:
                wake_at = until if wake_at is None else min(wake_at, until)
        if agent.rids and wake_at is None:
            waits = agent.calls.open or agent.lease_until is not None
            wake_at = self.now + ACTIVE_RECHECK_S if waits else None  # its request may vanish without a word
        self.due.look_again(agent, wake_at)

    def _end_lease_that_is_over(self, agent: Agent) -> None:
        """A declined renewal does not prolong a lease."""
        if agent.lease_until is not None and self.now >= agent.lease_until:
            self._execute(agent, Release())

    def _execute(self, agent: Agent, action: Action) -> Outcome:
        """A lease that ends leaves what a client keeps."""
        if isinstance(action, Release) and agent.key in self.retention:
            outcome = Outcome(True)
        else:
            outcome = self.mechanism.execute(agent.key, action)
        self.books.taken_on(agent, action, outcome)
        return outcome

    def _complete(self, key: str, kind: str, tokens: int) -> None:
        self.books.completed(kind, tokens)
        self.records.moved(self.now, key, kind, tokens)
        if kind == "upload":
            self.uploads.queue.ended(self.now, key)
        agent = self.agents.get(key)
        if agent is None:
            return
        was_asked, agent.move, agent.move_is_asked = agent.move_is_asked, None, False
        if kind == "upload":
            self.books.upload_landed(agent, self.mechanism.footprint(key).restore_tokens, was_asked)
        elif tokens == 0:  # cancelled, or all of it is in use: not again in every step
            self.due.look_by(agent, self.now + DECLINED_RETRY_S)
            return
        else:
            agent.offloaded_at, agent.offloaded_tokens = self.now, tokens
        self.mark_due(agent)

    def stall_over(self, agent: Agent, outcome: str, *, had_calls: bool) -> None:
        """It waits for no call any more; it did if it `had_calls`."""
        self.books.stall_over(agent, had_calls=had_calls)
        self.runs.stall_ended(agent.key)
        if self.records.is_open(agent.key):
            self.records.returned(self.now, agent.key, outcome, self.mechanism.footprint(agent.key))

    def _forget_stale(self) -> None:
        """Forget agents that are idle for too long or too many, boundedly many; one with a live request stays."""
        for _ in range(DECISIONS_PER_STEP):
            agent = self.agents.stale(self.now)
            if agent is None:
                return
            self._drop_vanished_requests(agent)
            if agent.rids:
                self.agents.touch(agent, self.now)
                continue
            self.counters["agents_forgotten"] += 1
            self.remove(agent, ended=False)

    def remove(self, agent: Agent, *, ended: bool) -> None:
        """It has ended, or is forgotten."""
        self._give_up_calls(agent)
        self.counters["stalls_finished"] += agent.calls.end_all()
        self.records.gone(self.now, agent.key, "agent_finished" if ended else "forgotten")
        self.agents.remove(agent.key, ended=ended)
        self.runs.agent_gone(self.now, agent.key)
        self.due.drop(agent.key)
        self.retention.end(agent.key)
        self.uploads.queue.drop(agent.key)
        self.mechanism.forget(agent.key)
        self.on_agent_gone(agent.key)
