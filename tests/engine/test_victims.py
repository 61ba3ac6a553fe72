"""Which KV is given up, on the device and on the host: dead, then what is worth least, then protected."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from tokencake_sglang.core.costs import Costs
from tokencake_sglang.core.plan import Backup, MoveDone, Upload
from tokencake_sglang.engine.victims import (
    DEAD,
    EXPECTED,
    LEFT,
    ORDINARY,
    PROTECTED,
    RECALLED,
    STALE_SLACK,
    VictimQueue,
)

A, B, C = [11] * 32, [12] * 32, [13] * 32
COSTS = Costs(upload_token_s=1e-5, prefill_token_s=1e-3, prefill_pair_s=0.0)


@dataclass(eq=False)
class Node:
    id: int
    worth: float


class Shelf:
    """A VictimQueue over nodes whose places the test sets."""

    def __init__(self) -> None:
        self.places: dict[int, tuple[int, float]] = {}
        self.refused: set[int] = set()
        self.asked = 0
        self.queue = VictimQueue(self._place, lambda node: node.worth, usable=lambda n: n.id not in self.refused)

    def _place(self, node):
        self.asked += 1
        return self.places[node.id]

    def put(self, number: int, lane: int, key: float, worth: float = 0.0):
        node = Node(number, worth)
        self.places[number] = (lane, key)
        self.queue.leaves.add(node)
        return node

    def order(self) -> list[int]:
        found = []
        while (node := self.queue.next()) is not None:
            self.queue.leaves.remove(node)
            found.append(node.id)
        return found


@pytest.fixture
def shelf() -> Shelf:
    return Shelf()


def test_lanes_go_in_order_and_inside_a_lane_the_smallest_key(shelf):
    for number, (lane, key) in enumerate([(PROTECTED, 0), (ORDINARY, 2), (DEAD, 5), (ORDINARY, 1), (DEAD, 4)]):
        shelf.put(number, lane, key)
    assert shelf.order() == [4, 2, 3, 1, 0]


def test_between_ordinary_and_expected_the_one_that_is_worth_less_goes(shelf):
    shelf.put(1, ORDINARY, 0, worth=2.0)
    shelf.put(2, EXPECTED, 1.0, worth=1.0)
    shelf.put(3, EXPECTED, 3.0, worth=3.0)
    assert shelf.order() == [2, 1, 3]


def test_of_what_was_left_behind_ordinary_and_expected_the_one_that_is_worth_least_goes(shelf):
    for number, (lane, worth) in enumerate([(EXPECTED, 4.0), (ORDINARY, 2.0), (LEFT, 3.0), (LEFT, 1.0)]):
        shelf.put(number, lane, key=-number, worth=worth)
    assert shelf.order() == [3, 1, 2, 0]


def test_a_place_that_has_risen_is_found_out_at_the_top(shelf):
    shelf.put(1, ORDINARY, 1)
    shelf.put(2, ORDINARY, 2)
    shelf.put(3, ORDINARY, 3)
    shelf.places[1] = (ORDINARY, 9)
    shelf.places[2] = (PROTECTED, 0)
    assert shelf.order() == [3, 1, 2]


def test_a_place_that_has_fallen_counts_once_it_is_told(shelf):
    shelf.put(1, ORDINARY, 1)
    node = shelf.put(2, PROTECTED, 0)
    shelf.places[2] = (DEAD, 0)
    shelf.queue.push(node)
    assert shelf.order() == [2, 1]


def test_a_leaf_that_left_and_came_back_has_its_new_place_only(shelf):
    node = shelf.put(1, ORDINARY, 1)
    shelf.put(2, ORDINARY, 2)
    shelf.queue.leaves.remove(node)
    shelf.places[1] = (ORDINARY, 3)
    shelf.queue.leaves.add(node)
    assert shelf.order() == [2, 1]


def test_what_is_in_use_keeps_its_place(shelf):
    shelf.put(1, ORDINARY, 1)
    shelf.put(2, ORDINARY, 2)
    shelf.refused.add(1)
    assert shelf.queue.next().id == 2
    shelf.refused.clear()
    assert shelf.order() == [1, 2]


@pytest.mark.parametrize("lane", [DEAD, RECALLED, ORDINARY])
def test_a_place_that_has_fallen_and_was_not_told_is_found_all_the_same(shelf, lane):
    shelf.put(1, PROTECTED, 0)
    shelf.places[1] = (lane, 0)
    assert shelf.order() == [1]


def test_what_is_recalled_goes_after_the_dead_and_before_all_other(shelf):
    for number, lane in enumerate([ORDINARY, RECALLED, EXPECTED, DEAD, RECALLED]):
        shelf.put(number, lane, 10 - number)
    assert shelf.order()[:3] == [3, 4, 1]


def test_asking_for_victims_does_not_look_at_all_leaves(shelf):
    for number in range(2_000):
        shelf.put(number, ORDINARY, number)
    shelf.asked = 0
    for _ in range(10):
        shelf.queue.leaves.remove(shelf.queue.next())
    assert shelf.asked <= 30


def test_entries_of_leaves_that_left_do_not_pile_up(shelf):
    node = shelf.put(1, ORDINARY, 1)
    for _ in range(5 * STALE_SLACK):
        shelf.queue.leaves.remove(node)
        shelf.queue.leaves.add(node)
    assert len(shelf.queue._lanes[ORDINARY]) <= 2 * STALE_SLACK
    assert shelf.order() == [1]


# -- on the real cache ------------------------------------------------------------------------------------------


@pytest.fixture
def forecast(moving):
    """A harness with a settable controller time, and a way to expect agents."""
    def build(**kwargs):
        m = moving(**kwargs)
        m.time = 0.0
        m.h.cache.worth.now = lambda: m.time
        m.h.cache.worth.costs = lambda: COSTS
        return m

    return build


def copied(h, tokens) -> bool:
    """Whether the KV has a copy on the host, wherever else it is."""
    return h.peek(tokens).backuped


def there(h) -> str:
    return "".join(name for name, tokens in (("a", A), ("b", B), ("c", C)) if h.on_device(tokens))


def test_the_kv_that_is_needed_last_leaves_first(forecast):
    m = forecast()
    for key, tokens, at in (("a", A, 50.0), ("b", B, 5.0), ("c", C, 500.0)):
        m.h.serve(tokens, key)
        m.mover.expect(key, at)
    left = []
    for _ in range(3):
        before = there(m.h)
        m.h.evict(1)
        m.h.audit()
        left += set(before) - set(there(m.h))
    assert left == ["c", "a", "b"]


def test_a_return_that_is_put_off_makes_kv_leave_earlier(forecast):
    m = forecast()
    for key, tokens, at in (("a", A, 50.0), ("b", B, 60.0)):
        m.h.serve(tokens, key)
        m.mover.expect(key, at)
    m.mover.expect("a", 90.0)
    m.h.evict(1)
    assert there(m.h) == "b"


def test_kv_without_a_host_copy_is_worth_its_recomputation(forecast):
    m = forecast()
    m.h.serve(A, "a")
    m.h.back_up_all()
    m.h.serve(B, "b")
    m.mover.expect("a", 10.0)
    m.mover.expect("b", 900.0)  # 90 times later, but 100 times as dear to get back
    m.h.evict(1)
    assert there(m.h) == "b"


def test_kv_that_nobody_expects_is_taken_to_rest_as_long_as_it_has_rested(forecast):
    for rested, gone in ((10.0, "a"), (30.0, "b")):
        m = forecast()
        m.h.serve(A, "a")
        m.h.serve(B)
        m.time = rested
        m.mover.expect("a", rested + 20.0)
        m.h.evict(1)
        assert set("ab") - set(there(m.h)) == {gone}


def test_what_an_agent_has_left_behind_is_not_kept_for_its_return(forecast):
    m = forecast()
    m.h.serve(A, "a")
    m.h.serve(B, "a")
    m.h.serve(C, "c")
    m.time = 200.0
    m.mover.expect("a", 201.0)
    m.mover.expect("c", 300.0)
    m.h.evict(1)
    m.h.audit()
    assert there(m.h) == "bc"


def test_on_the_host_too_what_was_left_behind_goes_before_what_is_expected(forecast):
    m = forecast(host_tokens=96)
    for key, tokens in (("a", A), ("a", B), ("c", C)):
        m.h.serve(tokens, key)
        m.h.back_up_all()
    m.h.evict(96)
    m.time = 200.0
    m.mover.expect("a", 201.0)
    m.mover.expect("c", 300.0)
    m.h.cache.evict_host(1)
    m.h.audit()
    assert [m.h.on_host(tokens) for tokens in (A, B, C)] == [0, 32, 32]


def test_kv_that_becomes_what_was_left_behind_has_a_lower_place_at_once(forecast):
    m = forecast()
    m.h.serve(A, "a")
    m.mover.expect("a", 5.0)
    m.h.serve(C, "c")
    m.mover.expect("c", 100.0)
    m.time = 1000.0
    m.mover.expect("a", 1000.0)
    m.mover.expect("c", 1500.0)
    m.h.serve(B, "a")  # A's leaf had the highest place of all
    m.h.evict(1)
    assert there(m.h) == "bc"


def cut_conversations(m, agents: str) -> None:
    """Each agent leaves one branch behind, and ends."""
    for number, key in enumerate(agents):
        for tokens in ([100 + number] * 32, [200 + number] * 32):
            m.h.serve(tokens, key)
        m.mover.forget(key)
    m.h.evict(m.h.cache.owners.dead_tokens)


@pytest.mark.parametrize(("cut_before", "gone"), [("", "c"), ("wxyz", "a")])
def test_the_more_often_branches_stay_behind_the_less_the_next_one_is_worth(forecast, cut_before, gone):
    m = forecast()
    m.mover.expect("a", 1000.0)
    cut_conversations(m, cut_before)
    m.time = 100.0
    m.h.serve(A, "a")
    m.h.serve(B, "a")
    m.h.serve(C, "c")
    m.time = 110.0
    m.mover.expect("a", 110.0)
    m.mover.expect("c", 135.0)  # C in 25 s; A has rested for 10, so in 20 s, or in 60 once others have stayed behind
    m.h.evict(1)
    assert set("abc") - set(there(m.h)) == {gone}


def test_what_an_agent_that_goes_back_has_left_behind_is_ordinary(forecast):
    m = forecast()
    m.mover.expect("a", 1000.0)
    cut_conversations(m, "wxyz")
    for tokens in (A, B, A, B):
        m.h.serve(tokens, "a")
    m.h.serve(C, "c")
    m.time = 10.0
    m.mover.expect("a", 10.0)
    m.mover.expect("c", 30.0)
    while there(m.h) == "abc":  # there are ends of A as well that it did not go on with
        m.h.evict(1)
    assert there(m.h) == "ab"


def test_a_node_of_several_agents_waits_for_the_first_of_them(forecast):
    m = forecast()
    m.h.serve(A, "a")
    m.h.serve(A, "b")
    m.h.serve(C, "c")
    m.mover.expect("a", 900.0)
    m.mover.expect("b", 5.0)
    m.mover.expect("c", 100.0)
    m.h.evict(1)
    assert there(m.h) == "a"


def test_plain_requests_leave_by_recency_as_on_stock(forecast):
    m = forecast()
    for tokens in (A, B, C):
        m.h.serve(tokens)
    m.h.match(A)
    m.h.evict(1)
    assert there(m.h) == "ac"


def test_the_host_gives_up_what_is_needed_last(forecast):
    m = forecast(host_tokens=64)
    for key, tokens, at in (("a", A, 900.0), ("b", B, 5.0)):
        m.h.serve(tokens, key)
        m.h.back_up_all()
        m.mover.expect(key, at)
    m.h.evict(64)
    m.h.cache.evict_host(1)
    m.h.audit()
    assert (m.h.on_host(A), m.h.on_host(B)) == (0, 32)


# -- copies on the host -----------------------------------------------------------------------------------------


def test_a_full_host_gives_up_copies_of_what_a_running_request_holds_first(forecast):
    m = forecast(device_tokens=192, host_tokens=64)
    m.h.serve(A, "a")
    m.h.serve(B, "b")
    m.h.back_up_all()
    m.mover.expect("a", 900.0)
    m.h.evict(32)
    assert m.h.on_device(A) == 0
    req = m.h.start(B + [5], "b")
    m.h.cache.held_nodes = lambda: [req.last_node]
    m.h.cache.evict_host(1)
    m.h.audit()
    assert m.h.on_host(A) == 32, "the only copy of an agent's KV was given up beside a spare one"
    assert not copied(m.h, B)
    m.h.finish(req)
    m.h.settle()
    m.h.audit()


def test_a_copy_that_is_being_loaded_is_not_given_up(forecast):
    m = forecast(device_tokens=192, host_tokens=64)
    m.h.serve(B, "b")
    m.h.back_up_all()
    m.h.evict(64)
    req = m.h.request(B + [5], "b")
    assert m.h.admit(req)
    m.h.cache.held_nodes = lambda: [req.last_node]
    assert m.h.cache.ongoing_load_back
    m.h.cache.evict_host(1)
    assert copied(m.h, B), "its slots could be written anew while the load reads them"
    m.h.forward(req)
    m.h.result(req)
    m.h.settle()
    m.h.cache.evict_host(1)
    assert not copied(m.h, B)
    m.h.audit()
    m.h.finish(req)


def test_a_backup_copies_and_leaves_the_kv_where_it_is(forecast):
    m = forecast()
    m.h.serve(A, "a")
    outcome = m.mover.execute("a", Backup())
    assert (outcome.accepted, outcome.tokens) == (True, 32)
    assert [move["kind"] for move in m.mover.moves_in_flight()] == ["backup"]
    m.h.settle()
    m.h.audit()
    assert m.done == [MoveDone("a", "backup", 32)] and m.h.on_device(A) == 32 and copied(m.h, A)
    assert m.mover.execute("a", Backup()).reason == "host_full"


def test_a_backup_does_not_push_out_what_is_worth_more(forecast):
    m = forecast(host_tokens=32)
    m.h.serve(A, "a")
    m.send_away("a")
    m.h.cache.owners.unprotect("a")
    m.mover.expect("a", 5.0)
    m.h.serve(B, "b")
    m.mover.expect("b", 100.0)
    assert m.mover.execute("b", Backup()).reason == "host_full"
    m.mover.expect("a", 500.0)
    assert m.mover.execute("b", Backup()).accepted
    m.h.settle()
    m.h.audit()
    assert m.h.on_host(A) == 0 and copied(m.h, B)


def test_with_the_write_policy_tokencake_only_a_decision_copies(forecast):
    m = forecast(write_through=True)
    m.h.serve(A, "a")
    m.h.settle()
    assert copied(m.h, A)
    m.h.cache.writes_on_decision = True
    m.h.serve(B, "b")
    m.h.serve(C)
    m.h.settle()
    assert (copied(m.h, B), copied(m.h, C)) == (False, True), "requests without identity follow SGLang's policy"
    assert m.mover.execute("b", Backup()).accepted


# -- uploads in the place of others -----------------------------------------------------------------------------


def crowded(forecast, other_at: float, has_copies: bool = True):
    """A device full of b's and c's KV, with copies on the host or without; a's is on the host and expected in 10 s."""
    m = forecast(device_tokens=80, host_tokens=256)
    m.h.serve(A, "a")
    m.send_away("a")
    m.h.cache.owners.unprotect("a")
    for key, tokens in (("b", B), ("c", C)):
        m.h.serve(tokens, key)
        m.mover.expect(key, other_at)
    if has_copies:
        m.h.back_up_all()
    m.mover.expect("a", 10.0)
    assert there(m.h) == "bc" and m.h.allocator.available_size() < 32
    return m


def test_an_upload_takes_the_place_of_kv_that_is_worth_much_less(forecast):
    m = crowded(forecast, other_at=100.0)
    assert m.mover.execute("a", Upload(32, None)).reason in ("no_room", "below_load_threshold")
    outcome = m.mover.execute("a", Upload(32, None, displaces=True))
    assert (outcome.accepted, outcome.tokens) == (True, 32)
    m.h.settle()
    m.h.audit()
    assert m.h.on_device(A) == 32 and "a" not in m.h.cache.owners.protected


def test_an_upload_displaces_nothing_that_would_have_to_be_computed_again(forecast):
    m = crowded(forecast, other_at=1e6, has_copies=False)
    assert not m.mover.execute("a", Upload(32, None, displaces=True)).accepted
    assert there(m.h) == "bc"
    m.h.cache.owners.forget("b")
    assert m.mover.execute("a", Upload(32, None, displaces=True)).tokens == 32
    assert m.h.on_device(C) == 32


def test_an_upload_leaves_kv_that_is_needed_nearly_as_soon(forecast):
    m = crowded(forecast, other_at=15.0)
    assert not m.mover.execute("a", Upload(32, None, displaces=True)).accepted
    assert there(m.h) == "bc"
    m.h.audit()
