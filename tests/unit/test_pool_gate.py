"""Who may take memory beyond its pool, and who gives back what it has borrowed (spec section 9, 27 to 29)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokencake_sglang.core.config import TokenCakeConfig
from tokencake_sglang.core.spatial import Waiting
from tokencake_sglang.core.spatial.pools import Account, Device, Pools, Tokens
from tokencake_sglang.core.spatial.pools.account import DeviceBooks, account_of, borrowed
from tokencake_sglang.core.spatial.pools.gate import Gate
from tokencake_sglang.core.spatial.pools.pools import LOOK_EVERY_S, PASSED_OVER_S
from tokencake_sglang.core.spatial.pools.recall import recalled
from tokencake_sglang.core.spatial.views import Place, Structure
from tokencake_sglang.core.tenant_shares import parse_shares

MAIN, SIDE, REST, PLAIN = (Account("", "code", kind) for kind in ("main", "side", "rest", ""))
ACME, BETA, CORP = (Account(tenant, "", "") for tenant in ("acme", "beta", "corp"))


def gate(used=None, waiting=(), total=1000, shares="", at_it=(), **reserved):
    found = Gate(total, {("code", kind): size for kind, size in reserved.items()}, parse_shares(shares))
    found.see(used or {}, {account: waiting.count(account) for account in waiting}, at_it)
    return found


class TestPools:
    def test_the_last_reserved_tokens_are_for_a_critical_request(self):
        one = gate({REST: 700}, [REST, MAIN], main=300)
        assert one.denial(REST, 1) == "pool"
        assert one.denial(MAIN, 300) is None

    def test_with_no_critical_request_waiting_idle_reserve_is_lent(self):
        one = gate({REST: 700}, [REST, SIDE], main=300)
        assert one.denial(REST, 300) is None

    def test_what_is_nobodys_reserve_is_for_all(self):
        one = gate({REST: 600}, [REST, MAIN], main=300)
        assert one.denial(REST, 100) is None
        assert one.denial(REST, 101) == "pool"

    def test_a_reserve_that_is_in_use_by_its_own_pool_takes_nothing_from_the_shared_part(self):
        one = gate({MAIN: 200, REST: 300}, [REST, MAIN], main=300)
        assert one.shared_free == 400 and one.idle(("code", "main")) == 100
        assert one.denial(REST, 400) is None and one.denial(REST, 401) == "pool"

    def test_the_first_critical_request_of_the_queue_may_take_any_reserve(self):
        one = gate({REST: 600}, [MAIN, SIDE], main=200, side=200)
        assert one.denial(SIDE, 400) is None
        assert one.denial(MAIN, 201) == "pool", "the other type's reserve is not lent while that waits"
        assert one.denial(MAIN, 200) is None

    def test_the_reserve_of_a_critical_type_of_which_nobody_waits_is_lent_to_critical_ones(self):
        one = gate({REST: 400}, [MAIN, SIDE], main=200, side=200, rest=200, idle=100)
        one.denial(SIDE, 1)
        assert one.shared_free == 100
        assert one.denial(MAIN, 400) is None and one.denial(MAIN, 401) == "pool"

    def test_critical_requests_of_one_type_alone_are_not_denied_even_if_their_reserve_is_lent(self):
        one = gate({REST: 900}, [MAIN, MAIN], main=300)
        assert [one.denial(MAIN, 400), one.denial(MAIN, 400)] == [None, None]

    def test_reserve_that_is_lent_already_leaves_the_others_nothing(self):
        one = gate({REST: 900}, [REST, MAIN], main=300)
        assert one.shared_free == -200 and one.denial(REST, 1) == "pool"

    def test_what_was_let_in_counts_for_those_behind_it_until_it_is_given_back(self):
        one = gate({REST: 500}, [REST, REST, MAIN], main=300)
        one.take(REST, 150)
        assert one.denial(REST, 51) == "pool" and one.denial(REST, 50) is None
        one.give_back(REST, 150)
        assert one.denial(REST, 200) is None and one.waiting == {REST: 2, MAIN: 1}

    def test_once_the_critical_request_is_let_in_the_rest_is_lent(self):
        one = gate({REST: 700}, [REST, MAIN], main=300)
        assert one.denial(REST, 100) == "pool"
        assert one.denial(MAIN, 200) is None
        one.take(MAIN, 200)
        assert one.denial(REST, 100) is None


class TestTenants:
    def test_a_tenant_below_its_floor_keeps_others_from_the_rest_of_it_while_it_waits(self):
        one = gate({BETA: 600}, [ACME, BETA], shares="acme=0.3:1")
        assert one.denial(BETA, 101) == "floor" and one.denial(BETA, 100) is None
        assert one.denial(ACME, 400) is None

    def test_an_idle_floor_is_lent(self):
        assert gate({BETA: 600}, [BETA], shares="acme=0.3:1").denial(BETA, 400) is None

    def test_two_tenants_below_their_floors_both_go(self):
        one = gate({CORP: 900}, [ACME, BETA], shares="acme=0.5:1,beta=0.5:1")
        assert one.denial(ACME, 500) is None and one.denial(BETA, 500) is None

    @pytest.mark.parametrize(("waiting", "denied"), [([ACME, BETA], "ceiling"), ([ACME], None)])
    def test_a_ceiling_binds_while_another_tenant_waits(self, waiting, denied):
        one = gate({ACME: 300}, waiting, shares="acme=0:0.4")
        assert one.denial(ACME, 100) is None and one.denial(ACME, 101) == denied

    @pytest.mark.parametrize(("at_it", "denied"), [(["acme", "beta"], "ceiling"), (["acme"], None)])
    def test_and_while_another_is_at_it_though_nothing_of_it_waits(self, at_it, denied):
        one = gate({ACME: 300, BETA: 100}, [ACME], shares="acme=0:0.4", at_it=at_it)
        assert one.denial(ACME, 100) is None and one.denial(ACME, 101) == denied

    def test_a_tenant_with_nothing_on_the_device_may_have_one_request_above_its_ceiling(self):
        one = gate({BETA: 100}, [ACME, ACME, BETA], shares="acme=0:0.1")
        assert one.denial(ACME, 500) is None
        one.take(ACME, 500)
        assert one.denial(ACME, 1) == "ceiling"

    def test_all_others_share_the_ceiling_of_the_star_each_for_itself(self):
        one = gate({BETA: 200, CORP: 100}, [ACME, BETA, CORP], shares="acme=0.1:1,*=0:0.2")
        assert (one.denial(BETA, 1), one.denial(CORP, 100)) == ("ceiling", None)


def test_the_question_alone_has_the_answer_and_changes_nothing():
    one = gate({REST: 600}, [MAIN, SIDE], main=200, side=200)
    assert [one.would_deny(MAIN, 400), one.would_deny(SIDE, 400)] == [None, None], "each as the first critical one"
    assert one.denial(SIDE, 400) is None
    assert one.would_deny(MAIN, 201) == one.denial(MAIN, 201) == "pool"


class TestRecall:
    def test_a_critical_pool_gets_back_what_it_needs_and_its_reserve_has(self):
        one = gate({MAIN: 50}, [MAIN], main=300)
        held = {MAIN: Tokens(used=50), REST: Tokens(cached=900)}
        assert recalled(one, {MAIN: 1000}, held) == {REST: 250}
        assert recalled(one, {MAIN: 100}, held) == {REST: 100}

    def test_those_give_back_who_hold_more_than_their_reserve_by_what_rests(self):
        one = gate({SIDE: 100}, [MAIN], main=300, side=200)
        held = {SIDE: Tokens(100, 0, 100), REST: Tokens(100, 0, 300), PLAIN: Tokens(cached=100)}
        assert recalled(one, {MAIN: 100}, held) == {REST: 75, PLAIN: 25}

    def test_who_wants_something_back_does_not_give_it_itself(self):
        one = gate({}, [MAIN], main=300)
        assert recalled(one, {MAIN: 100}, {MAIN: Tokens(cached=500), REST: Tokens(cached=400)}) == {REST: 100}

    def test_nobody_gives_back_without_need_nor_what_is_in_use_or_on_its_way(self):
        one = gate({}, [MAIN], main=300)
        assert recalled(one, {}, {REST: Tokens(cached=900)}) == {}
        assert recalled(one, {MAIN: 100}, {REST: Tokens(used=500, in_transfer=200)}) == {}

    def test_a_tenant_gets_its_floor_back_from_those_above_theirs(self):
        one = gate({ACME: 100}, [ACME], shares="acme=0.3:1,beta=0.2:1")
        held = {ACME: Tokens(100, 0, 0), BETA: Tokens(cached=200), CORP: Tokens(cached=700)}
        assert recalled(one, {ACME: 1000}, held) == {CORP: 200}


accounts = st.sampled_from([MAIN, SIDE, REST, PLAIN, ACME])


@given(st.dictionaries(accounts, st.integers(0, 500)), st.integers(0, 300), st.integers(0, 300), st.lists(accounts),
       st.lists(st.tuples(accounts, st.integers(1, 400))))
def test_whatever_is_let_in_the_accounts_add_up(used, main, side, waiting, asked):
    one = gate(used, waiting, main=main, side=side)
    taken = 0
    for account, need in asked:
        if one.denial(account, need) is None:
            one.take(account, need)
            taken += need
    everything = sum(used.values()) + taken
    assert sum(one.used.values()) == sum(one.used_by_tenant.values()) == everything
    lent = borrowed(one.used, one.reserved, one.total)
    inside = sum(min(tokens, one.reserved.get(pool, 0)) for pool, tokens in one.used.items())
    shared = one.total - sum(one.reserved.values())
    assert sum(lent.values()) == max(0, everything - inside - shared) == max(0, -one.shared_free)
    assert all(tokens <= one.used[pool] - one.reserved.get(pool, 0) for pool, tokens in lent.items())


class TestBooks:
    def test_a_shared_piece_is_charged_in_equal_parts(self):
        books = DeviceBooks()
        books.charge(Tokens(used=7), ["a", "b"])
        books.charge(Tokens(cached=3), [])
        assert books.accounts == {"a": Tokens(used=3), "b": Tokens(used=4), "": Tokens(cached=3)}
        assert books.total == 10
        assert books.by({"a": MAIN, "b": MAIN}, PLAIN) == {MAIN: Tokens(used=7), PLAIN: Tokens(cached=3)}

    def test_what_very_many_own_is_nobodys(self):
        books = DeviceBooks()
        books.charge(Tokens(used=100), [f"a{n}" for n in range(17)])
        assert books.accounts == {"": Tokens(used=100)}


class Queue:
    """`Pools` with requests that each need what the test says. Those of the type `main` are deep in their graph."""

    def __init__(self, **settings):
        self.pools = Pools(TokenCakeConfig(**{"pools": "shipped", **settings}))
        self.pools.importance = lambda agent: 10.0 if "main" in agent else 0.0
        self.pools.place = lambda rid: Place(1.0, True, Structure(depth=9)) if rid.startswith("m") else None
        self.now = 0.0
        self.denied = []
        self.pools.on_denied = self.denied.append

    def add(self, rid, kind, need=100, program="p", **fields):
        self.pools.request_added(self.now, Waiting(
            rid, program, agent=f"{rid} {kind}", kind=kind, application="code", prompt_tokens=need, **fields), 0)

    def step(self, total=1000, seconds=LOOK_EVERY_S, door=(), **used):
        self.now += seconds
        if self.pools.is_due(self.now):
            self.pools.look(self.now, Device(total, used), lambda rid: rid in door)
        self.pools.begin_step(bool(used))

    def passed(self, *rids):
        return [rid for rid in rids if not self.pools.passes_over(self.now, rid)]


@pytest.fixture
def queue():
    """A device of 1,000 tokens of which `r` uses 850, and the reserve of `main` is 100."""
    queue = Queue()
    queue.add("r", "rest", 850)
    queue.pools.request_admitted("r")
    queue.add("a", "rest")
    queue.add("m", "main", 80)
    return queue


@pytest.fixture
def demand():
    """The same with pools by demand: `t` of the oldest program waits for a tool and needs 120 tokens then."""
    queue = Queue(pools="demand")
    for rid, kind, need in (("r", "rest", 850), ("t", "main", 100), ("a", "rest", 100)):
        queue.add(rid, kind, need)
    queue.pools.request_admitted("r")
    queue.pools.request_ended("t")
    queue.pools.order_of = {"r rest": 2, "t main": 1, "a rest": 2}.get
    queue.pools.returning = lambda by: [("t main", 120)] if by >= 1.0 + LOOK_EVERY_S else []
    return queue


class TestDemand:
    def test_an_agent_that_is_expected_soon_is_critical_work(self, demand):
        demand.step(r=850)
        assert demand.pools.gate.reserved == {MAIN.pool: 120}

    def test_a_younger_program_leaves_room_for_an_older_one_that_is_expected(self, demand):
        demand.step(r=850)
        assert demand.passed("a") == [] and demand.pools.denial("a") == "pool"

    def test_and_not_for_more_than_it_needs(self, demand):
        demand.step(r=780)
        assert demand.passed("a") == ["a"]

    @pytest.mark.parametrize("order", [0, 1])
    def test_an_older_program_or_the_same_does_not(self, demand, order):
        demand.pools.order_of = lambda agent: 1 if agent == "t main" else order
        demand.step(r=850)
        assert demand.passed("a") == ["a"]

    @pytest.mark.parametrize("event", ["comes back", "ends"])
    def test_the_claim_ends_when_the_agent(self, demand, event):
        demand.step(r=850)
        if event == "ends":
            demand.pools.agent_ended("t main")
        else:
            demand.add("t", "main")
        assert demand.passed("a") == ["a"]

    def test_an_agent_that_is_not_critical_claims_nothing(self, demand):
        demand.pools.importance = lambda agent: 8.9
        demand.step(r=850)
        assert demand.passed("a") == ["a"]


class TestState:
    def test_a_request_that_would_take_the_reserve_is_passed_over_and_not_those_behind_it(self, queue):
        queue.step(r=850)
        assert queue.pools.gate.reserved == {MAIN.pool: 100}
        assert queue.passed("a", "m") == ["m"]
        assert queue.pools.denial("a") == "pool" and queue.pools.denial("m") is None

    def test_it_is_counted_once(self, queue):
        for _ in range(5):
            queue.step(r=850)
            queue.passed("a")
        assert queue.denied == ["pool"]

    def test_the_question_alone_takes_no_room_and_counts_nothing(self, queue):
        queue.step(r=850)
        before = dict(queue.pools.gate.used), dict(queue.pools.gate.waiting)
        assert queue.pools.would_pass_over(queue.now, "a") and not queue.pools.would_pass_over(queue.now, "m")
        assert (queue.pools.gate.used, queue.pools.gate.waiting) == before
        assert queue.denied == [] and queue.pools.denial("a") is None
        assert queue.passed("a", "m") == ["m"]
        assert not queue.pools.would_pass_over(queue.now, "m") and not queue.pools.would_pass_over(queue.now, "?")

    def test_the_question_leaves_the_place_of_the_one_that_may_always_go(self, queue):
        queue.add("b", "rest")
        queue.step(total=90)
        assert not queue.pools.would_pass_over(queue.now, "b")
        assert queue.passed("a", "b") == ["a"]

    def test_critical_work_at_the_door_reserves_no_room_from_others(self, queue):
        queue.step(r=850, door=("m",))
        assert queue.passed("a") == ["a"]

    def test_when_nothing_runs_the_first_is_let_in(self, queue):
        queue.add("b", "rest")
        queue.step(total=90)
        assert queue.passed("a", "b") == ["a"], "and only the first"

    def test_a_request_that_ran_before_is_not_denied(self, queue):
        queue.pools.request_admitted("a")
        queue.add("a", "rest")
        queue.step(r=850)
        assert queue.passed("a") == ["a"]

    def test_a_request_is_passed_over_for_a_minute_at_the_most(self, queue):
        queue.step(r=850)
        assert queue.passed("a") == []
        queue.step(r=850, seconds=PASSED_OVER_S - 0.001)
        assert queue.passed("a") == []
        queue.step(r=850, seconds=0.002)
        assert queue.passed("a") == ["a"]

    def test_a_ceiling_has_no_such_end(self):
        queue = Queue(pools="none", tenant_header="x-tenant", tenant_shares="acme=0:0.2")
        for rid, tenant in (("r", "acme"), ("a", "acme"), ("b", "beta")):
            queue.add(rid, "main", tenant=tenant)
        queue.pools.request_admitted("r")
        for _ in range(3):
            queue.step(r=150, seconds=PASSED_OVER_S)
            assert queue.passed("a", "b") == ["b"]

    def test_a_large_request_behind_a_ceiling_is_not_kept_out_by_small_ones_of_its_tenant_for_ever(self):
        """One small request of the tenant is always in use: none is let in any more after a minute."""
        queue = Queue(pools="none", tenant_header="x-tenant", tenant_shares="acme=0:0.3")
        for rid, tenant, need in (("r", "acme", 50), ("large", "acme", 290), ("b", "beta", 10)):
            queue.add(rid, "main", need, tenant=tenant)
        queue.pools.request_admitted("r")
        queue.pools.request_admitted("b")
        running = ["r"]
        for number in range(int(2 * PASSED_OVER_S)):
            queue.add(f"s{number}", "main", 50, tenant="acme")
            queue.step(seconds=1.0, b=10, **dict.fromkeys(running, 50))
            went = queue.passed("large", f"s{number}")
            if "large" in went:
                break
            for rid in running:
                queue.pools.request_ended(rid)
            running = went
            for rid in running:
                queue.pools.request_admitted(rid)
        assert PASSED_OVER_S < queue.now < PASSED_OVER_S + 3.0
        queue.pools.request_admitted("large")
        queue.pools.request_ended("large")
        queue.step(seconds=1.0, b=10)
        assert queue.passed(f"s{number}") == [f"s{number}"], "the small ones go on once it has gone"

    @pytest.mark.parametrize(("other", "tenant", "bound"), [
        ("runs", "beta", True), ("is away for a call", "beta", True), ("is over", "beta", False),
        ("runs", "acme", False), ("is away for a call", "acme", False)])
    def test_a_ceiling_binds_as_long_as_another_tenant_is_at_it(self, other, tenant, bound):
        queue = Queue(pools="none", tenant_header="x-tenant", tenant_shares="acme=0:0.2")
        for rid, whose in (("r", "acme"), ("b", tenant), ("a", "acme")):
            queue.add(rid, "main", tenant=whose)
        queue.pools.request_admitted("r")
        queue.pools.request_admitted("b")
        if other != "runs":
            queue.pools.request_ended("b")
        if other == "is over":
            queue.pools.agent_ended("b main")
        queue.pools.agents_at_it = lambda: ["r main", "b main"]
        queue.step(r=150)
        assert queue.passed("a") == ([] if bound else ["a"])

    def test_one_that_was_let_in_and_not_admitted_waits_again(self, queue):
        queue.step(r=850)
        queue.passed("m")
        assert queue.pools.gate.used_by_tenant == {"": 930}
        queue.step(seconds=0.0, r=850)
        assert queue.pools.gate.used_by_tenant == {"": 850} and queue.pools.gate.waiting[MAIN] == 1

    def test_it_wants_nothing_back_unless_somebody_waits_for_a_reserve(self, queue):
        queue.step(r=850)
        assert queue.pools.wants_back
        assert queue.pools.recall(queue.now, {REST: Tokens(used=850, cached=150)}) == {REST: 80}
        assert not queue.pools.recall_is_due(queue.now + 0.9) and queue.pools.recall_is_due(queue.now + 1.0)
        queue.pools.request_ended("m")
        queue.step(r=850)
        assert not queue.pools.wants_back

    def test_without_pools_and_shares_nobody_is_asked_anything(self):
        queue = Queue(pools="none")
        queue.add("a", "rest", 10**6)
        queue.step(r=999)
        assert not queue.pools.is_on and queue.passed("a") == ["a"]

    def test_nothing_is_kept_of_requests_and_agents_that_are_gone(self, queue):
        queue.step(r=850)
        queue.passed("a", "m")
        for rid in "ram":
            queue.pools.request_ended(rid)
        for agent in list(queue.pools.account_of):
            queue.pools.agent_ended(agent)
        queue.step(seconds=10.0)
        pools = queue.pools
        assert (pools._requests, pools.account_of, pools._passed, pools._denials_of, pools.gate.waiting) == (
            {}, {}, {}, {}, {})


def test_requests_without_a_type_and_plain_ones_are_of_no_pool():
    assert account_of(Waiting("r", tenant="t")).pool == ("", "")
    assert account_of(Waiting("r", "p", application="code")).pool == ("", "")
    assert account_of(Waiting("r", "p", kind="k", application="code", tenant="t")) == Account("t", "code", "k")
