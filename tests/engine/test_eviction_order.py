"""Dead KV goes first, then ordinary, then protected; inside a class SGLang's own policy decides."""

from __future__ import annotations

import pytest

POLICIES = ["lru", "lfu", "fifo", "mru", "filo", "priority", "slru"]
KEYS = {name: [base] * 32 for name, base in zip(("one", "two", "three"), (11, 12, 13), strict=True)}


def evicted_in_turn(h):
    order, left = [], set(KEYS)
    while left:
        assert h.evict(1) == 32
        h.audit()
        gone = {name for name in left if h.peek(KEYS[name]) is h.cache.root_node}
        order += gone
        left -= gone
    return order


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("dead,ordinary,protected", [("one", "two", "three"), ("three", "one", "two"),
                                                     ("two", "three", "one")])
def test_dead_goes_before_ordinary_and_ordinary_before_protected(make, policy, dead, ordinary, protected):
    h = make(eviction_policy=policy)
    for name, tokens in KEYS.items():
        h.serve(tokens, name)
    h.cache.owners.forget(dead)
    h.cache.owners.protected[protected] = None
    assert evicted_in_turn(h) == [dead, ordinary, protected]


def test_inside_a_class_the_least_recently_used_goes_first(make):
    h = make()
    for name, tokens in KEYS.items():
        h.serve(tokens, name)
        h.cache.owners.protected[name] = None
    h.match(KEYS["one"])
    assert h.evict(1) == 32
    assert h.on_device(KEYS["two"]) == 0
    assert h.on_device(KEYS["one"]) == h.on_device(KEYS["three"]) == 32


def test_protection_never_refuses_all_of_it_can_be_evicted(make):
    h = make()
    for name, tokens in KEYS.items():
        h.serve(tokens, name)
        h.cache.owners.protected[name] = None
    assert h.cache.evictable_size() == 96
    assert h.evict(96) == 96
    h.audit()
    assert h.allocator.available_size() == 128
