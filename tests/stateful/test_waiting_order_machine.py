"""The order of the queue, kept up step by step, against the plain way: all requests ranked and sorted in each step."""

from __future__ import annotations

import math

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tokencake_sglang.core.config import TokenCakeConfig
from tokencake_sglang.core.spatial import SpatialScheduler, Waiting, waiting_order
from tokencake_sglang.core.spatial.affinity import PATIENCE_S, affinity
from tokencake_sglang.core.spatial.scheduler import INTERLEAVED, RANKS_LAST_S
from tokencake_sglang.core.spatial.urgency import urgency
from tokencake_sglang.core.spatial.views import Place

SENIORITY_S = 20.0
PRIORITIES = ("critical-path", "paper", "none")


class FullSort(SpatialScheduler):
    """Ranks the requests in the queue when one has come or KV of one was given up, and all of them once a second; sorts
    them all each time."""

    def __init__(self, config):
        super().__init__(config)
        self.ranks = {}
        self.looked_at = self.sorted_at = -math.inf
        self.told = set()
        self.last = {}

    def kv_lost_changed(self, program):
        known = self.programs.get(program)
        entries = [self._entries[rid] for rid in known.rids] if known and not known.has_many else []
        self.told |= {entry.waiting.rid for entry in entries if not entry.runs}
        super().kv_lost_changed(program)

    def request_added(self, now, waiting, state):
        self.ranks.pop(waiting.rid, None)
        known = self.programs.get(waiting.program)
        was_one = known is not None and not known.has_many
        super().request_added(now, waiting, state)
        if was_one and known.has_many:
            for rid in known.rids:
                self.ranks.pop(rid, None)

    def order(self, now, rids):
        is_due = self._changed or now - self.sorted_at >= RANKS_LAST_S
        told, self.told = self.told, set()
        for rid in told:
            self.ranks.pop(rid, None)
        if not is_due and not (told and self.keys(now).items() - self.last.items()):
            return None
        self._changed, self.sorted_at = False, now if is_due else self.sorted_at
        if now - self.looked_at >= RANKS_LAST_S:
            self.looked_at = now
            self.ranks.clear()
        lines = {}
        for rid in rids:
            entry = self._entries.get(rid)
            if entry is not None:
                lines.setdefault(entry.waiting.pool, []).append((self.key(now, entry), rid))
        self.last = self.keys(now)
        lines = {pool: [rid for _, rid in sorted(line)] for pool, line in lines.items()}
        self.shares.update(lines)
        self._turns = len(lines) > 1
        return self.take_turns(lines) + [rid for rid in rids if rid not in self._entries]

    def keys(self, now):
        return {rid: self.key(now, entry) for rid, entry in self._entries.items() if not entry.runs}

    def key(self, now, entry):
        waiting, program = entry.waiting, entry.program
        if waiting.rid not in self.ranks:
            place = self.place(waiting.rid)
            self.ranks[waiting.rid] = place, urgency(self.config.priority, now, waiting, entry.joined_at, place)
        if program.arrived_at < now - self.config.seniority_s:
            return 0, entry.number
        place, urgent = self.ranks[waiting.rid]
        is_session = waiting.agent and place is None and not program.has_many
        far = affinity(self.lost(waiting.agent), now, entry.joined_at) if is_session else 0
        return 1, far, program.order, -waiting.priority, urgent, entry.number

    def take_turns(self, lines):
        times, order = self.shares.times(), []
        lines = {pool: list(line) for pool, line in lines.items()}
        while any(lines.values()) and len(order) < INTERLEAVED:
            pool = min((pool for pool in lines if lines[pool]), key=lambda pool: (times[pool], pool))
            order.append(lines[pool].pop(0))
            waiting = self._entries[order[-1]].waiting
            times[pool] += self._cost(waiting, waiting.prompt_tokens)
        rest = sorted((pool for pool in lines), key=lambda pool: (times[pool], pool))
        return order + [rid for pool in rest for rid in lines[pool]]


class Queue(RuleBasedStateMachine):
    """One queue under both, which are told the same."""

    def __init__(self):
        super().__init__()
        self.now, self.number = 0.0, 0
        self.paths: dict[str, float] = {}
        self.lost: dict[str, int] = {}
        self.pairs = []
        for priority in PRIORITIES:
            config = TokenCakeConfig(seniority_s=SENIORITY_S, priority=priority)
            pair = SpatialScheduler(config), FullSort(config)
            for one in pair:
                one.place = self.place
                one.lost = lambda agent: self.lost.get(agent, 0)
            self.pairs.append((pair, []))  # and the queue
        self.running: list[str] = []

    def place(self, rid):
        return Place(self.paths[rid], self.paths[rid] < 90.0) if rid in self.paths else None

    def tell(self, method, *values):
        for pair, _ in self.pairs:
            for one in pair:
                getattr(one, method)(self.now, *values)

    def waiting(self):
        return sorted(self.pairs[0][1])

    @rule(program=st.sampled_from(["", "a", "b", "c"]), tenant=st.sampled_from(["", "", "x", "y"]),
          prompt=st.integers(1, 2000), path=st.sampled_from([None, None, 1.0, 5.0, 95.0]),
          priority=st.integers(0, 2), count=st.sampled_from([1, 3, 40]), helper=st.sampled_from(["", "", "2"]))
    def requests_come(self, program, tenant, prompt, path, priority, count, helper):
        for _ in range(count):
            self.number += 1
            rid = f"r{self.number}"
            if path is not None and program:
                self.paths[rid] = path
            agent = program and program + helper
            waiting = Waiting(rid, program, agent, program, "", tenant, prompt, 10, None, priority)
            self.tell("request_added", waiting, lambda agent: None)
            for _, queue in self.pairs:
                queue.append(rid)

    @rule(which=st.integers(0, 200), new_tokens=st.integers(0, 1000))
    def one_is_admitted(self, which, new_tokens):
        if waiting := self.waiting():
            rid = waiting[which % len(waiting)]
            for _, queue in self.pairs:
                queue.remove(rid)
            self.tell("request_admitted", rid, new_tokens)
            self.running.append(rid)

    @rule(which=st.integers(0, 200), output=st.integers(1, 10))
    def one_ends(self, which, output):
        if self.running:
            self.tell("request_ended", self.running.pop(which % len(self.running)), output)

    @rule(which=st.integers(0, 200))
    def one_is_retracted(self, which):
        if self.running:
            rid = self.running.pop(which % len(self.running))
            self.tell("request_added", Waiting(rid), lambda agent: None)
            for _, queue in self.pairs:
                queue.append(rid)

    @rule(which=st.integers(0, 200), tell=st.booleans())
    def one_is_aborted_in_the_queue(self, which, tell):
        """SGLang does not say so; it is found out later."""
        if waiting := self.waiting():
            rid = waiting[which % len(waiting)]
            for _, queue in self.pairs:
                queue.remove(rid)
            if tell:
                self.tell("request_ended", rid)

    @rule()
    def a_stranger_is_in_the_queue(self):
        self.number += 1
        for _, queue in self.pairs:
            queue.append(f"stranger{self.number}")

    @rule(which=st.integers(0, 200), path=st.sampled_from([0.5, 5.0, 40.0, 99.0]))
    def a_path_becomes_another(self, which, path):
        if self.paths:
            self.paths[sorted(self.paths)[which % len(self.paths)]] = path

    @rule(agent=st.sampled_from(["a", "b", "c"]), tokens=st.sampled_from([0, 900, 1500, 50_000]))
    def kv_of_an_agent_is_given_up_or_computed_again(self, agent, tokens):
        self.lost[agent] = tokens
        for pair, _ in self.pairs:
            for one in pair:
                one.kv_lost_changed(agent)

    @rule(seconds=st.sampled_from([0.3, 1.0, 7.0, 7.0, SENIORITY_S, PATIENCE_S]))
    def time_passes(self, seconds):
        self.now += seconds

    @invariant()
    def both_say_the_same(self):
        for (real, model), queue in self.pairs:
            found = real.order_of(queue) if real.follow(self.now) else None
            expected = model.order(self.now, queue)
            assert found == expected
            if found is not None:
                assert sorted(found) == sorted(queue)
                queue[:] = found


class AllAtOnce(Queue):
    """Without a bound on the ranks looked up in a step, so that both look at the same moment."""

    def __init__(self):
        super().__init__()
        self.bound = waiting_order.RENEWED_PER_STEP
        waiting_order.RENEWED_PER_STEP = 10_000

    def teardown(self):
        waiting_order.RENEWED_PER_STEP = self.bound


TestQueue = AllAtOnce.TestCase
TestQueue.settings = settings(max_examples=60, stateful_step_count=50, deadline=None)
