"""The queue is kept in order by what has changed: it is what sorting all of it would give, and nobody is lost."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tokencake_sglang.core.config import TokenCakeConfig
from tokencake_sglang.core.spatial import SpatialScheduler, Waiting
from tokencake_sglang.core.spatial.views import Place
from tokencake_sglang.engine.queue_order import QueueOrder


class Req:
    def __init__(self, rid: str) -> None:
        self.rid = rid


class Queue(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.spatial = SpatialScheduler(TokenCakeConfig(seniority_s=20.0))
        self.paths: dict[str, float] = {}
        self.spatial.place = lambda rid: Place(self.paths[rid], True) if rid in self.paths else None
        self.order = QueueOrder()
        self.queue: list[Req] = []
        self.running: list[Req] = []
        self.gone: list[Req] = []
        self.now = 0.0
        self.number = 0

    @initialize(pools=st.sampled_from(["one", "several"]), twins=st.sampled_from([False, False, True]))
    def begin(self, pools, twins):
        self.has_one_pool = pools == "one"
        self.has_twins = twins

    def _join(self, req: Req, program: str, tenant: str = "") -> None:
        waiting = Waiting(req.rid, program, program and f"agent of {program}", tenant=tenant, prompt_tokens=100,
                          max_new_tokens=20)
        self.spatial.request_added(self.now, waiting, lambda agent: None)
        self.queue.append(req)
        self.order.joined(req)

    @rule(program=st.sampled_from(["", "a", "b", "c"]), tenant=st.sampled_from(["", "x"]), path=st.integers(0, 9))
    def one_comes(self, program, tenant, path):
        self.number += 1
        rid = f"r{self.number}"
        if self.has_one_pool:
            program, tenant = program or "a", ""
        if program and path:
            self.paths[rid] = float(path)
        self._join(Req(rid), program, tenant)

    @precondition(lambda self: self.queue and self.has_twins)
    @rule(data=st.data())
    def one_comes_under_the_name_of_another(self, data):
        """It is found, but what is told of one may be taken for the other."""
        self._join(Req(data.draw(st.sampled_from(self.queue)).rid), "a")

    @precondition(lambda self: self.queue)
    @rule(data=st.data())
    def one_is_admitted(self, data):
        req = self.queue.pop(data.draw(st.integers(0, len(self.queue) - 1)))
        self.running.append(req)
        self.spatial.request_admitted(self.now, req.rid, 100)
        self.order.left(req)

    @precondition(lambda self: self.running)
    @rule(ends=st.booleans())
    def one_ends_or_is_retracted(self, ends):
        req = self.running.pop(0)
        if ends:
            self.spatial.request_ended(self.now, req.rid, 20)
            self.order.left(req)
        else:
            self._join(req, "b")

    @precondition(lambda self: self.queue)
    @rule(data=st.data())
    def one_is_aborted_and_nobody_tells(self, data):
        self.gone.append(self.queue.pop(data.draw(st.integers(0, len(self.queue) - 1))))

    @precondition(lambda self: self.gone)
    @rule()
    def those_that_have_vanished_are_found_out(self):
        """As ProgramQueue does; not told to `order`, which finds it out from the queue."""
        for req in self.gone:
            if all(other.rid != req.rid for other in (*self.queue, *self.running)):
                self.spatial.request_ended(self.now, req.rid)
        self.gone.clear()

    @precondition(lambda self: self.paths)
    @rule(data=st.data(), path=st.integers(1, 9))
    def a_path_changes(self, data, path):
        self.paths[data.draw(st.sampled_from(sorted(self.paths)))] = float(path)

    @rule(seconds=st.sampled_from([0.0, 0.1, 1.5, 30.0]))
    def a_step(self, seconds):
        self.now += seconds
        before = set(self.queue)
        if self.spatial.follow(self.now):
            self.order.sort(self.queue, self.spatial)
            rids = [req.rid for req in self.queue]
            if not self.has_twins:
                assert self.spatial.order_of(rids) == rids
        assert set(self.queue) == before

    @invariant()
    def nobody_stands_twice_in_it(self):
        assert len(set(self.queue)) == len(self.queue)


Queue.TestCase.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
TestQueue = Queue.TestCase
