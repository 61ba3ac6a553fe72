"""Owners of nodes through everything that happens to the tree."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from tokencake_sglang.engine.owners import ANONYMOUS, owners_of, path_end

SHARED = list(range(200, 232))
LEFT, RIGHT = SHARED + list(range(300, 332)), SHARED + list(range(400, 432))


def owners_along(h, tokens):
    return [set(owners_of(n)) for n in h.path(h.peek(tokens))]


def test_a_prefix_that_two_agents_used_is_owned_by_both_and_their_own_parts_by_each(make):
    h = make()
    h.serve(LEFT, "a")
    h.serve(RIGHT, "b")
    assert owners_along(h, LEFT) == [{"a", "b"}, {"a"}]
    assert owners_along(h, RIGHT) == [{"a", "b"}, {"b"}]
    h.audit()


def test_a_request_without_identity_makes_a_prefix_shared_for_good(make):
    h = make()
    h.serve(LEFT, "a")
    h.serve(RIGHT)
    assert owners_along(h, LEFT) == [{"a", ANONYMOUS}, {"a"}]
    assert h.cache.owners.footprint("a").unshared_device_tokens == 32
    h.cache.owners.forget("a")
    assert owners_along(h, LEFT) == [{ANONYMOUS}, set()]
    h.audit()


def test_a_match_that_ends_inside_a_node_splits_it_and_both_halves_keep_the_owners(make):
    h = make()
    h.serve(LEFT, "a")
    assert h.on_device(LEFT[:16] + [1, 2, 3]) == 16
    assert owners_along(h, LEFT) == [{"a"}, {"a"}]
    assert h.cache.owners.footprint("a").device_tokens == 64
    h.audit()


def test_a_split_of_a_dead_node_leaves_two_dead_nodes(make):
    h = make()
    h.serve(LEFT, "a")
    h.cache.owners.forget("a")
    h.on_device(LEFT[:16] + [1])
    assert h.cache.owners.dead_evictable_tokens(1000) == 64
    h.audit()


def test_dead_kv_that_somebody_uses_again_is_alive_again(make):
    h = make()
    h.serve(LEFT, "a")
    h.cache.owners.forget("a")
    h.serve(RIGHT, "b")
    assert owners_along(h, LEFT) == [{"b"}, set()]
    assert h.cache.owners.dead_evictable_tokens(1000) == 32
    h.audit()


def test_eviction_takes_the_owners_of_what_it_removes_and_keeps_those_of_what_is_on_the_host(make):
    h = make(device_tokens=128, host_tokens=64)
    h.serve(LEFT, "a")
    h.back_up_all()
    h.serve([5] * 32, "b")
    h.evict(128)
    h.audit()
    assert h.cache.owners.footprint("b").device_tokens == h.cache.owners.footprint("b").host_tokens == 0
    assert h.cache.owners.footprint("a").restore_tokens == 64
    assert owners_along(h, LEFT) == [{"a"}]
    assert h.cache.owners.lost == {"b": 32}, "what is on the host is not lost"
    h.cache.evict_host(64)
    h.audit()
    assert h.nodes() == [] and h.cache.owners.leaf == {}
    assert h.cache.owners.lost == {"a": 64, "b": 32}
    h.serve(LEFT, "a")
    h.cache.owners.forget("b")
    assert h.cache.owners.lost == {}


def test_kv_that_is_loaded_back_has_its_owners_and_its_new_user(make):
    h = make()
    h.serve(LEFT, "a")
    h.back_up_all()
    h.evict(128)
    req = h.start(RIGHT, "b")
    h.audit()
    assert owners_along(h, LEFT) == [{"a", "b"}, {"a"}]
    h.finish(req)
    h.settle()
    h.audit()


def test_a_reset_forgets_all_owners_and_a_new_start_is_clean(make):
    h = make()
    h.serve(LEFT, "a")
    h.cache.owners.protected["a"] = None
    h.flush()
    h.audit()
    index = h.cache.owners
    assert not (index.nodes or index.leaf or index.dead or index.protected)
    h.serve(LEFT, "b")
    assert owners_along(h, LEFT) == [{"b"}]
    h.audit()


def test_forgetting_one_of_two_owners_leaves_the_other_and_only_the_private_part_dies(make):
    h = make()
    h.serve(LEFT, "a")
    h.serve(RIGHT, "b")
    h.cache.owners.forget("a")
    assert owners_along(h, LEFT) == [{"b"}, set()]
    assert owners_along(h, RIGHT) == [{"b"}, {"b"}]
    h.cache.owners.forget("b")
    assert h.cache.owners.dead_evictable_tokens(1000) == 96
    h.audit()


def test_retracted_and_aborted_requests_leave_the_owners_right(make):
    h = make(device_tokens=192)
    h.serve(SHARED, "a")
    req = h.start(LEFT, "a")
    h.decode(req, 2)
    h.audit()
    h.retract(req)
    h.audit()
    assert owners_along(h, LEFT)[-1] == {"a"}
    assert h.admit(req)
    h.forward(req)
    h.result(req)
    h.audit()
    other = h.start(RIGHT, "b")
    h.abort(other)
    late = h.request(RIGHT + [1] * 40, "c")
    assert h.admit(late)
    h.abort(late, is_insert=False)
    h.audit()
    h.finish(req)
    h.audit()
    assert owners_along(h, RIGHT)[0] == {"a", "b"}
    assert not h.cache.owners.nodes.get("c")


def test_a_prompt_shorter_than_a_page_or_of_one_token_harms_nothing(make):
    h = make()
    for tokens in ([1], [2, 3]):
        h.serve(tokens, "a", steps=1)
        h.audit()


# -- the latest path --------------------------------------------------------------------------------------------


def on_latest_path(h, tokens, key="a"):
    return [owners_of(n)[key] for n in h.path(h.peek(tokens))]


def test_what_an_agent_has_left_behind_stays_its_own_but_is_not_on_its_latest_path(make):
    h = make()
    h.serve(LEFT, "a")
    assert on_latest_path(h, LEFT) == [True]
    h.serve(RIGHT, "a")
    h.audit()
    assert on_latest_path(h, LEFT) == [True, False]
    assert on_latest_path(h, RIGHT) == [True, True]
    assert owners_along(h, LEFT) == [{"a"}, {"a"}]


def test_an_agent_that_comes_back_to_what_it_had_left_leaves_the_other_branch(make):
    h = make()
    for tokens in (LEFT, RIGHT, LEFT):
        h.serve(tokens, "a")
        h.audit()
    assert all(on_latest_path(h, LEFT))
    assert on_latest_path(h, RIGHT) == [True, False]


def test_a_prompt_that_is_only_the_start_of_the_last_one_leaves_its_end_behind(make):
    h = make()
    h.serve(LEFT, "a")
    h.serve(SHARED, "a")
    h.audit()
    along = on_latest_path(h, LEFT)
    assert along[0] and not along[-1]


def test_what_one_agent_has_left_another_may_still_be_on(make):
    h = make()
    h.serve(LEFT, "a")
    h.serve(LEFT, "b")
    h.serve(RIGHT, "a")
    h.audit()
    assert not on_latest_path(h, LEFT, "a")[-1] and all(on_latest_path(h, LEFT, "b"))


def test_the_share_of_branches_that_are_read_again_counts_an_agent_until_it_first_goes_back(make):
    h = make()
    owners = h.cache.owners
    assert owners.return_share == 1.0
    for key in "abc":
        h.serve(LEFT, key)
        h.serve(RIGHT, key)
    assert owners.return_share == pytest.approx(1 / 4)
    for tokens in (LEFT, RIGHT, LEFT):
        h.serve(tokens, "a")  # back, and from then on it says nothing of others
    assert owners.return_share == pytest.approx(2 / 5)
    for key in map(str, range(200)):
        h.serve(LEFT, key)
        h.serve(RIGHT, key)
    assert owners.return_share == 0.02


def test_a_node_is_left_behind_once_all_its_owners_have_left_it_for_good(make):
    h = make()
    h.serve(LEFT, "a")
    h.serve(LEFT, "b")
    h.serve(RIGHT, "a")
    end = h.peek(LEFT)
    assert not h.cache.owners.is_left_behind(end)
    h.serve(RIGHT, "b")
    assert h.cache.owners.is_left_behind(end)
    h.serve(LEFT, "b")
    h.serve(RIGHT, "b")
    assert not h.cache.owners.is_left_behind(end), "b goes back and forth"
    h.cache.owners.forget("b")
    assert h.cache.owners.is_left_behind(end)
    h.serve(LEFT)
    assert not h.cache.owners.is_left_behind(end), "a request without an agent has read it"


def test_a_conversation_that_only_grows_leaves_nothing_behind(make):
    h = make(device_tokens=512)
    for length in (10, 40, 90, 170):
        h.serve([7] * length, "a")
    assert h.cache.owners.return_share == 1.0


def test_a_split_of_what_was_left_behind_leaves_two_such_pieces(make):
    h = make()
    h.serve(LEFT, "a")
    h.serve([5] * 32, "a")
    h.on_device(LEFT[:16] + [1])
    h.audit()
    assert on_latest_path(h, LEFT) == [False, False]


def test_the_end_of_a_path_is_found_however_many_nodes_it_has():
    root = node = SimpleNamespace(parent=None, key=[])
    for _ in range(5000):
        node = SimpleNamespace(parent=node, key=[1, 2, 3])
    assert (path_end(node), path_end(node.parent), path_end(root)) == (15_000, 14_997, 0)
