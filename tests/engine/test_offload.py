"""Offloads: what leaves the device, when, and what never does."""

from __future__ import annotations

from tokencake_sglang.core.plan import MoveDone

SHARED = list(range(200, 232))
LEFT, RIGHT = SHARED + list(range(300, 332)), SHARED + list(range(400, 432))


def test_an_offload_frees_exactly_the_unshared_tokens_and_leaves_the_shared_prefix(moving):
    m = moving()
    m.h.serve(LEFT, "a")
    m.h.serve(RIGHT, "b")
    free = m.h.allocator.available_size()
    assert m.offload("a").tokens == 32
    m.h.settle()
    m.h.audit()
    assert m.done == [MoveDone("a", "offload", 32)]
    assert m.h.allocator.available_size() == free + 32
    assert m.h.on_device(LEFT) == 32 and m.h.on_host(LEFT) == 32
    assert m.h.on_device(RIGHT) == 64


def test_slots_stay_taken_until_every_copy_is_acknowledged(moving):
    m = moving()
    h = m.h
    req = h.start(LEFT[:48], "a")
    h.decode(req, 40)
    h.finish(req)
    free = h.allocator.available_size()
    m.offload("a")
    copies = 0
    while h.clock.complete_one(h.writes):
        assert h.allocator.available_size() == free and not m.done
        copies += 1
        h.audit()
        if h.writes.queue:
            h.step()
    assert copies == 2
    h.step()
    assert m.done == [MoveDone("a", "offload", h.allocator.available_size() - free)] and m.done[0].tokens >= 80
    h.audit()


def test_kv_that_left_and_came_back_with_the_next_request_is_bit_identical(moving):
    m = moving()
    done = m.h.serve(LEFT, "a", steps=20)
    m.send_away("a")
    m.h.serve([7] * 96, "b")  # other KV takes the freed slots
    m.h.evict(64)
    req = m.h.start(done + [1], "a")  # reads all of its prefix
    assert req.cached == len(done)
    m.h.audit()


def test_a_node_that_a_running_request_uses_stays_and_the_rest_leaves(moving):
    m = moving()
    req = m.h.start(LEFT[:32], "a")
    m.h.serve(LEFT, "a")
    assert m.offload("a").accepted
    m.h.settle()
    assert m.done == [MoveDone("a", "offload", 32)]
    m.h.audit()
    m.h.decode(req, 5)
    m.h.finish(req)
    m.h.audit()


def test_a_request_that_comes_during_the_copies_keeps_the_whole_path(moving):
    m = moving()
    m.h.serve(LEFT, "a")
    m.offload("a")
    req = m.h.start(LEFT + [1], "a")
    assert req.cached == 64
    m.h.settle()
    assert m.done == [MoveDone("a", "offload", 0)]
    m.h.decode(req, 3)
    m.h.audit()


def test_another_agent_that_shares_the_kv_during_the_copies_keeps_it(moving):
    m = moving()
    m.h.serve(LEFT, "a")
    m.offload("a")
    m.h.serve(RIGHT, "b")  # splits the node that is being copied
    m.h.settle()
    m.h.audit()
    assert m.h.on_device(RIGHT) == 64 and m.h.on_device(LEFT) == 32
    assert m.done == [MoveDone("a", "offload", 32)]


def test_kv_that_another_agent_has_used_whole_during_the_copies_stays(moving):
    m = moving()
    m.h.serve(LEFT, "a")
    m.offload("a")
    m.h.serve(LEFT + [1], "b")  # served to its end: no lock is left, only its ownership
    m.h.settle()
    m.h.audit()
    assert m.h.on_device(LEFT) == 64 and m.done == [MoveDone("a", "offload", 0)]


def test_a_cancelled_offload_leaves_everything_on_the_device_and_can_start_again(moving):
    m = moving()
    m.h.serve(LEFT, "a")
    m.offload("a")
    m.h.clock.complete_one(m.h.writes)
    assert m.cancel("a").accepted and not m.cancel("a").accepted
    m.h.settle()
    m.h.audit()
    assert m.done == [MoveDone("a", "offload", 0)] and m.h.on_device(LEFT) == 64
    m.send_away("a")
    assert m.h.on_device(LEFT) == 0 and m.h.on_host(LEFT) == 64


def test_a_full_host_declines_the_offload_and_nothing_is_lost(moving):
    m = moving(host_tokens=64)
    m.h.serve([3] * 48, "b")
    m.send_away("b")
    m.done.clear()
    m.h.serve(LEFT, "a")
    m.h.cache.owners.protected["b"] = None
    outcome = m.offload("a")
    assert (outcome.accepted, outcome.reason) == (False, "host_full")
    m.h.settle()
    m.h.audit()
    assert m.h.on_device(LEFT) == 64 and m.h.on_host([3] * 48) == 48 and m.done == []


def test_room_on_the_host_is_made_from_unprotected_copies_only(moving):
    m = moving(device_tokens=160, host_tokens=128)
    for token, key in ((3, "keep"), (4, "ordinary")):
        m.h.serve([token] * 48, key)
        m.send_away(key)
    m.h.cache.owners.unprotect("ordinary")
    m.h.serve(LEFT, "a")
    assert m.offload("a").accepted  # 32 free, 48 ordinary, 64 wanted
    m.h.settle()
    m.h.audit()
    assert m.h.on_host([3] * 48) == 48, "protected KV was pushed off the host although ordinary KV was there"
    assert m.h.on_host([4] * 48) == 0
    assert m.h.on_host(LEFT) == 64


def test_an_agent_without_kv_on_the_device_has_nothing_to_move(moving):
    m = moving()
    assert m.offload("nobody").reason == "nothing_to_move"
    m.h.serve(LEFT, "a")
    m.send_away("a")
    assert m.offload("a").reason == "nothing_to_move"


def test_with_write_through_the_copies_are_there_already_and_their_acknowledgement_is_still_waited_for(moving):
    m = moving(write_through=True)
    m.h.serve(LEFT, "a")
    assert m.offload("a").accepted
    m.h.step()
    assert m.done == [] and m.h.on_device(LEFT) == 64
    m.h.settle()
    assert m.done == [MoveDone("a", "offload", 64)]
    m.h.audit()


def test_an_agent_that_ends_during_its_offload_leaves_ordinary_dead_kv(moving):
    m = moving()
    m.h.serve(LEFT, "a")
    m.offload("a")
    m.mover.forget("a")
    m.h.settle()
    m.h.audit()
    assert m.h.on_device(LEFT) == 64
    assert m.h.cache.owners.dead_evictable_tokens(1000) == 64
    assert m.h.cache.owners.protected == {} and m.mover.moves_in_flight() == []


def test_a_flush_with_an_offload_waiting_for_its_copies_drops_it(moving):
    m = moving()
    m.h.serve(LEFT, "a")
    m.offload("a")
    m.h.clock.complete_all(m.h.writes)
    m.h.cache.writing_check()  # idle for SGLang, not yet finished for the mover
    m.h.flush()
    m.h.step()
    m.h.audit()
    assert [(d.kind, d.tokens) for d in m.done] == [("offload", 0)] and m.mover.moves_in_flight() == []
    m.h.serve(LEFT, "a")
    m.send_away("a")


def test_a_retracted_request_can_be_sent_away_and_comes_back_right(moving):
    m = moving(device_tokens=160)
    req = m.h.start(LEFT, "a")
    m.h.decode(req, 20)
    m.h.retract(req)
    m.h.audit()
    m.send_away("a")
    assert m.h.admit(req)
    m.h.forward(req)
    m.h.result(req)
    m.h.decode(req, 4)
    m.h.finish(req)
    m.h.settle()
    m.h.audit()


def test_dead_kv_that_continues_an_agents_path_does_not_keep_it_on_the_device(moving):
    m = moving(device_tokens=160)
    m.h.serve(LEFT, "a")
    m.h.settle()
    m.h.serve(LEFT + [8] * 48, "b")
    m.mover.forget("b")  # b has ended; its 48 tokens hang below the path that is a's alone now
    m.h.settle()
    assert m.offload("a").tokens == 64
    m.h.settle()
    m.h.audit()
    assert m.done == [MoveDone("a", "offload", 64)]
    assert m.h.on_device(LEFT + [8] * 48) == 0 and m.h.on_host(LEFT) == 64
