"""The host tier under many moves keeps its size; every slot is free or in use; no memory is asked for."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from tokencake_sglang.core.plan import Backup, Release

AGENTS = {f"a{number}": [100 + number] * (32 + 16 * (number % 3)) for number in range(6)}  # 288 tokens in all
HOST, DEVICE, LIVES = 128, 320, 320

EVENTS = (*["serve"] * 3, *["offload"] * 4, "backup", *["upload"] * 3, *["release"] * 3, *["land"] * 3, "forget")


def free_list(host) -> list[int]:
    return [slot for part in (host.free_slots, *host.release_slots) for slot in part.tolist()]


def expect_whole_pool(m) -> None:
    """Every slot of the host pool is free once or in use once, and those in use are the tree's."""
    host = m.h.host
    free, used = free_list(host), host.slot_used.nonzero().flatten().tolist()
    assert sorted(free + used) == list(range(HOST)), "a slot is in the free list twice, or in none"
    in_tree = [slot for node in m.h.nodes() if node.host_value is not None for slot in node.host_value.tolist()]
    assert sorted(in_tree) == used and host.size == HOST
    assert host.available_size() == len(free)


def live(m, rng: random.Random) -> str:
    """One thing that happens to one agent: what happened, and whether it was done or declined."""
    what = rng.choice(EVENTS)
    away = [key for key in AGENTS if m.mover.footprint(key).restore_tokens]
    key = rng.choice(away if what == "upload" and away else list(AGENTS))
    if what == "serve":
        if len(m.mover.moves_in_flight()) > 2:
            m.h.settle()
        m.h.serve(AGENTS[key], key)
    elif what == "offload":
        return f"offload {m.offload(key).reason or 'done'}"
    elif what == "backup":
        return f"backup {m.mover.execute(key, Backup()).reason or 'done'}"
    elif what == "upload":
        return f"upload {m.upload(key).reason or 'done'}"
    elif what == "release":
        m.mover.execute(key, Release())
    elif what == "forget":
        m.mover.forget(key)
    else:
        m.h.settle()
    return what


@pytest.mark.parametrize("write_through", [False, True], ids=["selective", "write_through"])
def test_however_many_moves_there_are_every_host_slot_is_free_or_in_use_and_none_is_added(
        moving, monkeypatch, write_through):
    """A host tier of less than half of what the agents hold, so that copies push out copies."""
    m = moving(device_tokens=DEVICE, host_tokens=HOST, write_through=write_through)
    refuse_host_memory(monkeypatch)
    where = [buffer.data_ptr() for buffer in (*m.h.host.k_buffer, *m.h.host.v_buffer)]
    rng, seen = random.Random(22), Counter()
    for _ in range(LIVES):
        seen[live(m, rng)] += 1
        expect_whole_pool(m)
    m.h.settle()
    m.h.audit()
    expect_whole_pool(m)
    assert [buffer.data_ptr() for buffer in (*m.h.host.k_buffer, *m.h.host.v_buffer)] == where
    assert seen["offload done"] >= 10 and seen["upload done"] >= 5, seen
    assert m.h.host.available_size() < HOST / 2, "the tier was never short"


def refuse_host_memory(monkeypatch) -> None:
    """From now on nobody may have memory for the host tier: it was all taken at the start."""
    from sglang.srt.mem_cache.pool_host import base, common

    def refuse(*args, **kwargs):
        raise AssertionError("memory for the host tier is asked for after the start")

    for device in list(common.ALLOC_MEMORY_FUNCS):
        monkeypatch.setitem(common.ALLOC_MEMORY_FUNCS, device, refuse)
    monkeypatch.setattr(base.HostKVCache, "init_kv_buffer", refuse, raising=False)


def test_slots_of_a_copy_are_taken_off_the_free_list_without_a_copy_of_it(moving):
    """So a move costs by its own length, not by the size of the host tier."""
    m = moving(device_tokens=DEVICE, host_tokens=HOST)
    m.h.serve(AGENTS["a0"], "a0")
    free = m.h.host.free_slots
    assert m.offload("a0").accepted
    taken = len(AGENTS["a0"])
    assert m.h.host.free_slots.data_ptr() == free[taken:].data_ptr(), "the free list was copied"
    assert sorted(m.h.host.slot_used.nonzero().flatten().tolist()) == sorted(free[:taken].tolist())


def test_at_the_end_of_all_agents_the_free_list_is_whole_again(moving):
    m = moving(device_tokens=DEVICE, host_tokens=HOST)
    rng = random.Random(23)
    for _ in range(40):
        live(m, rng)
    m.h.settle()
    for key in AGENTS:
        m.mover.forget(key)
    m.h.evict(10**6)
    m.h.cache.evict_host(10**6)
    assert sorted(free_list(m.h.host)) == list(range(HOST)) and m.h.nodes() == []
