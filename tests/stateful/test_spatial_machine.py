"""Random lives of programs on a small device under the spatial scheduler: nobody is lost, and everybody ends.

The device is a model: 20 blocks, a host tier of the same size, requests that grow by a token a step, and as in SGLang
the newest running request goes back to the queue when the others do not fit.
"""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

from tokencake_sglang.core.config import POOLS, TokenCakeConfig
from tokencake_sglang.core.spatial import Demand, SpatialScheduler, Waiting
from tokencake_sglang.core.spatial import pools as memory
from tokencake_sglang.core.spatial.load_control import DOOR_WAIT_S
from tokencake_sglang.core.spatial.pools.pools import PASSED_OVER_S
from tokencake_sglang.core.spatial.pools.sizes import ShippedSizes

BLOCK, BLOCKS = 16, 20
SENIORITY_S = 50.0
SHARES = "", "other=0.5:0.5", "=0.3:1,*=0:0.4"


class Device(RuleBasedStateMachine):
    requests = Bundle("requests")

    def __init__(self) -> None:
        super().__init__()
        self.spatial = SpatialScheduler(TokenCakeConfig(seniority_s=SENIORITY_S))
        self.now = 0.0
        self.number = 0
        self.queue: list[str] = []
        self.running: list[str] = []
        self.left: dict[str, int] = {}  # tokens still to generate
        self.size: dict[str, int] = {}  # tokens it holds or will hold when it runs
        self.prompt: dict[str, int] = {}
        self.plan: dict[str, int] = {}
        self.done: dict[str, int] = {}
        self.held: dict[str, int] = {}  # by program, as a ledger would tell
        self.agents: set[tuple[str, str]] = set()
        self.stalled: set[str] = set()
        self.program_of: dict[str, str] = {}
        self.lost: dict[str, int] = {}  # by agent
        self.spatial.lost = lambda agent: self.lost.get(agent, 0)
        self.have_pools("none", "", 0)

    @initialize(pools=st.sampled_from(POOLS[1:] + POOLS), shares=st.sampled_from(SHARES),
                beside=st.sampled_from([0, 128, 8192]))
    def have_pools(self, pools, shares, beside):
        self.beside = beside
        self.pools = memory.Pools(TokenCakeConfig(pools=pools, tenant_shares=shares, tenant_header="x-tenant"))
        self.pools.importance = lambda agent: 10.0 if agent.endswith("x") else 0.0
        self.pools.returning = lambda by: [(key, 50) for key in sorted(self.stalled)]
        self.pools.agents_at_it = lambda: sorted(self.stalled)
        self.first_denied: dict[str, float] = {}

    # -- what happens ---------------------------------------------------------------------------------------

    @rule(target=requests, program=st.sampled_from(["", "a", "b", "c", "d"]), agent=st.sampled_from("xy"),
          tenant=st.sampled_from(["", "other"]), prompt=st.integers(1, 200), output=st.integers(1, 60),
          expected=st.sampled_from([None, 1, 10**6]), priority=st.sampled_from([0, 50, 99]))
    def a_request_comes(self, program, agent, tenant, prompt, output, expected=None, priority=0):
        self.number += 1
        rid, key = f"r{self.number}", program and f"{program}{agent}"
        if key:
            self.agents.add((program, key))
            self.stalled.discard(key)
        self.left[rid] = self.plan[rid] = output
        self.size[rid], self.program_of[rid] = prompt, program
        self.prompt[rid] = prompt
        waiting = Waiting(rid, program, key, agent, program, tenant, prompt, output, expected, priority)
        self.spatial.request_added(self.now, waiting, self.state)
        self.pools.request_added(self.now, waiting, min(output, 256 if expected is None else expected))
        self.queue.append(rid)
        return multiple(rid)

    @rule(sizes=st.lists(st.integers(30, 150), min_size=4, max_size=8), output=st.integers(10, 60))
    def many_requests_come_at_once(self, sizes, output):
        for number, prompt in enumerate(sizes):
            program = ("a", "", "b", "c")[number % 4]
            self.a_request_comes(program, "xy"[number % 2], ("", "other")[number % 3 == 1], prompt, output)
        self.steps_go_by(5)

    @rule(rid=consumes(requests))
    def a_client_goes_away(self, rid):
        if rid in self.left:
            for place in (self.queue, self.running):
                if rid in place:
                    place.remove(rid)
            del self.left[rid]
            self.spatial.request_ended(self.now, rid)
            self.pools.request_ended(rid)
            self.done[rid] = -1

    @rule(which=st.integers(0, 20))
    def an_agent_waits_for_a_tool(self, which):
        if self.agents:
            self.stalled.add(sorted(self.agents)[which % len(self.agents)][1])

    @rule(which=st.integers(0, 20))
    def an_agent_ends(self, which):
        if self.agents:
            program, key = sorted(self.agents)[which % len(self.agents)]
            self.agents.discard((program, key))
            self.stalled.discard(key)
            self.spatial.agent_ended(self.now, program, key)
            self.pools.agent_ended(key)
            if not any(name == program for name, _ in self.agents):
                self.held.pop(program, None)

    @rule(agent=st.sampled_from(["ax", "by", "cx", "dy"]), tokens=st.sampled_from([0, 2000, 10**6]))
    def kv_of_an_agent_is_given_up_or_computed_again(self, agent, tokens):
        self.lost[agent] = tokens

    @rule(seconds=st.sampled_from([0.0, 0.1, 5.0, 60.0, 2 * DOOR_WAIT_S]))
    def time_passes(self, seconds):
        self.now += seconds

    @rule(count=st.integers(1, 30))
    def steps_go_by(self, count):
        for _ in range(count):
            self.step()

    # -- the device -----------------------------------------------------------------------------------------

    def state(self, key):
        return (True, 0.0) if key in self.stalled else None

    def blocks(self, rids) -> int:
        return sum(-(-(self.size[rid] + 1) // BLOCK) for rid in rids)

    def demand(self) -> Demand:
        total = sum(self.held.values())
        return Demand(2 * BLOCK * BLOCKS, self.held, total, bool(self.running), self.beside)

    def step(self) -> None:
        self.now += 0.05
        if self.spatial.follow(self.now):
            found = self.spatial.order_of(self.queue)
            assert sorted(found) == sorted(self.queue), "the order lost or made up a request"
            self.queue = found
        self.spatial.admit(self.now, self.demand(), self.state)
        if self.pools.is_due(self.now):
            used = {rid: self.size[rid] for rid in self.running}
            self.pools.look(self.now, memory.Device(BLOCK * BLOCKS, used), self.spatial.holds_back)
        self.pools.begin_step(bool(self.running))
        self.admit()
        while self.blocks(self.running) > BLOCKS and len(self.running) > 1:
            back = self.running.pop()
            waiting = Waiting(back, self.program_of[back])
            self.spatial.request_added(self.now, waiting, self.state)
            self.pools.request_added(self.now, waiting, 0)
            self.queue.append(back)
        for rid in list(self.running):
            self.decode(rid)

    def admit(self) -> None:
        for rid in list(self.queue):
            if self.spatial.holds_back(rid):
                assert self.program_of[rid], "a plain request waits at the door"
                assert self.beside != 128, "somebody waits at a door that is open"
                continue
            if self.pools.passes_over(self.now, rid):
                self.is_denied_with_a_reason(rid)
                continue
            if self.running and self.blocks([*self.running, rid]) > BLOCKS:
                return
            self.queue.remove(rid)
            self.running.append(rid)
            self.spatial.request_admitted(self.now, rid, self.size[rid])
            self.pools.request_admitted(rid)

    def is_denied_with_a_reason(self, rid: str) -> None:
        reason = self.pools.denial(rid)
        assert self.running, "a request is denied on a device on which nothing runs"
        assert self.size[rid] == self.prompt[rid], "a request that ran before is denied"
        assert reason in ("pool", "floor", "ceiling")
        first = self.first_denied.setdefault(rid, self.now)
        assert reason == "ceiling" or self.now - first < PASSED_OVER_S, "a request is denied for ever"

    def decode(self, rid: str) -> None:
        self.size[rid] += 1
        self.left[rid] -= 1
        program = self.program_of[rid]
        if self.left[rid] == 0:
            self.running.remove(rid)
            del self.left[rid]
            self.done[rid] = self.plan[rid]
            self.spatial.request_ended(self.now, rid, self.plan[rid])
            self.pools.request_ended(rid)
            if any(name == program for name, _ in self.agents):
                self.held[program] = self.held.get(program, 0) + self.size[rid]

    # -- what holds -----------------------------------------------------------------------------------------

    @invariant()
    def it_knows_the_requests_that_there_are(self):
        assert sorted(self.spatial.rids()) == sorted([*self.queue, *self.running])

    @invariant()
    def reserves_add_up(self):
        sizes, reserved = self.pools._sizes, self.pools.gate.reserved
        assert all(size > 0 for size in reserved.values()) and ("", "") not in reserved
        if isinstance(sizes, ShippedSizes) and reserved:
            assert sum(reserved.values()) == sizes.reserve.tokens(BLOCK * BLOCKS)
        assert sum(reserved.values()) <= BLOCK * BLOCKS * 30 // 100

    @invariant()
    def pools_know_the_requests_that_wait(self):
        if self.pools.is_on:
            assert sorted(self.pools._requests) == sorted([*self.queue, *self.running])
            assert sum(self.pools.gate.waiting.values()) <= len(self.queue)

    @invariant()
    def somebody_who_waits_may_go_on_a_device_with_nothing_to_do(self):
        if self.queue and not self.running:
            self.spatial.admit(self.now, self.demand(), self.state)
            assert not all(self.spatial.holds_back(rid) for rid in self.queue)

    def teardown(self) -> None:
        """Liveness: with nothing new coming, every request ends with all its tokens."""
        for _ in range(20_000):
            if not self.queue and not self.running:
                break
            self.step()
        assert not self.queue and not self.running, "requests wait for ever"
        assert self.spatial.num_requests == 0
        assert all(count in (-1, self.plan[rid]) for rid, count in self.done.items())
        for program, key in sorted(self.agents):
            self.spatial.agent_ended(self.now, program, key)
        assert len(self.spatial.programs) == 0, "programs are left behind"


TestDevice = Device.TestCase
TestDevice.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_the_published_fixture_of_twenty_blocks_ends():
    """Two requests of 256 and 160 tokens that do not fit together to their ends (spec section 9, point 33)."""
    device = Device()
    device.a_request_comes("a", "x", "", 200, 56)
    device.a_request_comes("b", "y", "", 120, 40)
    device.teardown()
    assert device.done == {"r1": 56, "r2": 40}
