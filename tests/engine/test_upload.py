"""Uploads: KV comes back bit-identical, hurts nobody, and is never read before it has landed."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from tokencake_sglang.core.plan import MoveDone

SHARED = list(range(200, 232))
LEFT, RIGHT = SHARED + list(range(300, 332)), SHARED + list(range(400, 432))


def away(moving, tokens=LEFT, **kwargs):
    m = moving(**kwargs)
    m.h.serve(tokens, "a")
    m.send_away("a")
    m.done.clear()
    return m


def test_uploaded_kv_is_bit_identical_at_its_new_slots(moving):
    m = moving(device_tokens=160)
    done = m.h.serve(LEFT, "a", steps=20)
    old = m.h.match(done).device_indices.tolist()
    m.send_away("a")
    m.h.serve([5] * 48, "b")
    assert m.upload("a").tokens == len(done)
    m.h.audit()
    m.h.settle()
    m.h.audit()
    slots = m.h.match(done).device_indices
    assert set(slots.tolist()) != set(old)
    m.h.expect_slots(slots, done)
    assert m.done[-1] == MoveDone("a", "upload", len(done))
    assert m.mover.moves_in_flight() == [] and m.h.cache.uploading == {}


@pytest.mark.parametrize("quota", [0, 9, 16, 48, 10**6])
def test_an_upload_evicts_neither_the_kv_of_live_agents_nor_anonymous_kv_whatever_the_quota(moving, quota):
    m = away(moving)
    m.h.serve([5] * 48, "b")
    m.h.serve([6] * 48)
    before = m.h.cache.evictable_size()
    free = m.h.allocator.available_size()
    outcome = m.upload("a", quota)
    m.h.settle()
    m.h.audit()
    assert m.h.on_device([5] * 48) == m.h.on_device([6] * 48) == 48
    assert not outcome.accepted and free - m.h.allocator.available_size() == 0
    assert m.h.cache.evictable_size() == before


def test_an_upload_takes_the_room_of_dead_kv_and_only_as_much_as_it_needs(moving):
    m = away(moving, device_tokens=128)
    m.h.serve([4] * 32, "dead")
    m.h.serve([5] * 32, "dead")
    m.h.serve([6] * 32, "b")
    m.h.cache.owners.forget("dead")
    assert m.h.allocator.available_size() == 32
    assert m.upload("a").accepted
    m.h.settle()
    m.h.audit()
    assert m.h.on_device([6] * 32) == 32
    assert m.h.on_device([4] * 32) + m.h.on_device([5] * 32) == 32
    m.h.expect_slots(m.h.match(LEFT).device_indices, LEFT)


def test_an_upload_stays_within_its_quota_and_brings_the_root_side_first(moving):
    m = moving()
    m.h.serve(LEFT[:32], "a")
    m.h.serve(LEFT, "a")
    m.send_away("a")
    assert m.upload("a", 40).tokens == 32
    m.h.settle()
    assert m.h.on_device(LEFT) == 32 and m.h.on_host(LEFT) == 32
    assert m.upload("a", 40).tokens == 32
    m.h.settle()
    m.h.audit()
    m.h.expect_slots(m.h.match(LEFT).device_indices, LEFT)


def test_a_batch_that_met_loading_kv_waits_and_one_that_did_not_does_not(moving):
    m = away(moving, device_tokens=192)
    m.upload("a")
    other = m.h.request([5] * 20, "b")
    assert m.h.admit(other) and other.consumer == -1
    req = m.h.request(LEFT + [1], "a")
    assert m.h.admit(req) and req.consumer == m.h.cache.cache_controller.layer_done_counter.producer_index
    m.h.forward(req)  # waits, then reads
    m.h.result(req)
    after = m.h.request([6] * 20, "b")
    assert m.h.admit(after) and after.consumer == -1
    for r in (other, after):
        m.h.forward(r)
    m.h.settle()
    m.h.audit()


def test_a_batch_after_the_load_has_been_acknowledged_does_not_wait(moving):
    m = away(moving)
    m.upload("a")
    m.h.settle()
    req = m.h.request(LEFT + [1], "a")
    assert m.h.admit(req) and req.consumer == -1
    m.h.forward(req)


def test_a_batch_that_met_one_half_of_a_split_loading_node_waits_too(moving):
    m = away(moving, device_tokens=192)
    m.upload("a")
    req = m.h.request(LEFT[:48] + [1, 2, 3], "b")
    assert m.h.admit(req) and req.consumer >= 0 and len(req.prefix_indices) == 48
    again = m.h.request(LEFT[:32] + [4], "c")
    assert m.h.admit(again) and again.consumer >= 0
    for r in (req, again):
        m.h.forward(r)
    m.h.settle()
    m.h.audit()


def test_many_loads_in_flight_out_of_batch_and_in_batch_read_nothing_unlanded(moving):
    m = moving(device_tokens=400, host_tokens=512, load_slots=8)
    h = m.h
    prompts = {f"a{i}": [10 + i] * 32 for i in range(7)}
    for key, tokens in prompts.items():
        h.serve(tokens, key)
        m.send_away(key)
    uploaded = [m.upload(f"a{i}") for i in range(5)]
    assert all(outcome.accepted for outcome in uploaded)
    assert m.upload("a5").reason == "load_slots_busy" and h.cache.loads_in_flight() == 5
    requests = []
    for key in ("a6", "a2", "a5", "a0"):  # a batch load, a met load, a batch load, a met load
        req = h.request(prompts[key] + [1] * 17, key)
        assert h.admit(req) and req.consumer >= 0
        requests.append(req)
        h.audit()
    assert h.cache.loads_in_flight() == 7
    for req in requests[::-1]:
        h.forward(req)
        h.result(req)
        h.decode(req, 2)
        h.finish(req)
    h.settle()
    h.audit()
    assert h.cache.loads_in_flight() == 0 and len(m.done) == 12


def test_loads_that_a_batch_had_queued_go_along_with_an_upload_and_are_waited_for(moving):
    m = moving(device_tokens=256)
    h = m.h
    for token, key in ((4, "a"), (5, "b")):
        h.serve([token] * 32, key)
        m.send_away(key)
    from sglang.srt.mem_cache.base_prefix_cache import InitLoadBackParams

    left = h.request([4] * 32 + [1], "a")
    left.init_next_round_input(h.cache)
    h.cache.init_load_back(InitLoadBackParams(left.best_match_node, left.host_hit_length, req=left))
    assert m.upload("b").accepted
    assert h.cache.cache_controller.load_queue == []
    req = h.request([4] * 32 + [1], "a")
    assert h.admit(req) and req.consumer >= 0
    h.forward(req)
    h.settle()
    h.audit()
    last = h.request([6] * 20)
    assert h.admit(last) and last.consumer == -1


def test_a_loading_node_is_neither_evicted_nor_offloaded_nor_loaded_twice(moving):
    m = away(moving)
    m.upload("a")
    assert m.upload("a").reason == m.offload("a").reason == "a move is under way"
    assert m.h.evict(128) == 0
    m.mover.forget("a")
    m.h.serve(LEFT[:32] + [1], "a")  # known again while its old upload is under way
    assert m.offload("a").reason == "a move is under way"
    m.h.settle()
    m.h.audit()
    assert m.h.cache.evictable_size() >= 64


def test_an_upload_leaves_its_ancestors_on_the_device(moving):
    m = moving(device_tokens=128)
    m.h.serve(LEFT, "a")
    m.h.serve(RIGHT, "b")
    m.send_away("a")
    m.h.cache.owners.forget("b")
    m.h.serve([9] * 32, "c")
    m.h.audit()
    assert m.upload("a").accepted
    m.h.settle()
    m.h.audit()
    assert m.h.on_device(LEFT) == 64
    m.h.expect_slots(m.h.match(LEFT).device_indices, LEFT)


def test_too_little_to_load_is_declined_as_sglang_would(moving):
    m = moving()
    m.h.serve(LEFT[:32], "a")
    assert m.upload("a").reason == "no_room"
    m.send_away("a")
    assert m.upload("a", 16).reason == "no_room"


def test_a_request_that_recomputed_a_prefix_which_is_uploaded_meanwhile_reads_no_unlanded_kv(moving):
    """Its own slots for the prefix are replaced by those that an upload is still filling."""
    m = moving(device_tokens=256)
    h = m.h
    for tokens in (SHARED, LEFT):
        h.serve(tokens, "a")
    m.send_away("a")
    h.cache.load_back_threshold = 40  # SGLang does not load so little back for the request: it computes it again
    req = h.request(SHARED + [1] * 17, "b")
    assert h.admit(req) and len(req.prefix_indices) == 0
    assert m.upload("a").tokens == 64  # while the pass runs
    h.forward(req)
    h.result(req)
    h.decode(req, 2)
    h.finish(req)
    h.settle()
    h.audit()


def test_a_flush_after_an_upload_has_landed_leaves_nothing_behind(moving):
    m = away(moving)
    m.upload("a")
    m.h.clock.complete_all(m.h.loads)
    m.h.cache.loading_check()
    m.h.flush()
    m.h.step()
    assert m.done == [MoveDone("a", "upload", 0)]
    assert m.h.cache.uploading == {} and m.mover.moves_in_flight() == []
    m.h.serve(LEFT, "a")
    m.send_away("a")
    assert m.upload("a").accepted
    m.h.settle()
    m.h.audit()


def test_an_upload_leaves_room_for_the_next_decode_steps_of_running_requests(moving):
    """KV on its way is locked: a decode step in a mixed batch that finds no memory stops SGLang's server."""
    m = away(moving, device_tokens=160)
    req = m.h.start([5] * 81, "b")
    assert m.h.allocator.available_size() >= len(LEFT)
    assert not m.upload("a").accepted
    m.h.finish(req)
    assert m.upload("a").tokens == len(LEFT)


def test_an_upload_leaves_room_for_the_first_decode_steps_of_a_request_whose_prompt_has_just_been_computed(moving):
    """It is in the batch before, and joins the running ones when that one's result is there."""
    m = away(moving, device_tokens=160)
    req = m.h.start([5] * 81, "b")
    m.h.running_batch.reqs, m.h.last_batch = [], SimpleNamespace(reqs=[req])
    assert not m.upload("a").accepted
    m.h.running_batch.reqs, m.h.last_batch = [req], None
    m.h.finish(req)
    assert m.upload("a").tokens == len(LEFT)


def test_an_upload_leaves_room_for_the_rest_of_a_prompt_that_is_computed_in_chunks(moving):
    m = away(moving, device_tokens=160)
    m.h.chunked_req = SimpleNamespace(origin_input_ids=[0] * 200, output_ids=[], prefix_indices=[0] * 100)
    assert not m.upload("a").accepted
    m.h.chunked_req = None
    assert m.upload("a").tokens == len(LEFT)
