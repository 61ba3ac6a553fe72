"""Uploads in pieces on the real classes: planned across agents, cut, cancelled, joined, never in the queue's way."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from tests.engine.test_life_cycle import Server
from tests.engine.test_upload import LEFT, RIGHT, SHARED, away
from tokencake_sglang.core.costs import Costs
from tokencake_sglang.core.plan import Upload

LONG = list(range(500, 596))  # 96 tokens


def piece(m, key, most, least=10, displaces=False):
    return m.mover.execute(key, Upload(most, None, displaces, min_tokens=least))


# -- one piece --------------------------------------------------------------------------------------------------


def test_a_node_is_cut_where_it_does_not_fit_and_its_first_part_helps_already(moving, page):
    m = away(moving, LONG, device_tokens=160)
    assert piece(m, "a", 40).tokens == 40 // page * page
    m.h.audit()
    m.h.settle()
    m.h.audit()
    there = m.h.match(LONG)
    assert len(there.device_indices) == 40 // page * page and there.host_hit_length == 96 - 40 // page * page
    m.h.expect_slots(there.device_indices, LONG[: 40 // page * page])
    assert piece(m, "a", 1000).tokens == 96 - 40 // page * page
    m.h.settle()
    m.h.audit()
    m.h.expect_slots(m.h.match(LONG).device_indices, LONG)
    assert m.h.cache.owners.footprint("a").restore_tokens == 0


def test_whole_nodes_are_not_cut_when_they_are_long_enough(moving):
    m = moving(device_tokens=160)
    m.h.serve(LONG[:32], "a")
    m.h.serve(LONG, "a")
    m.send_away("a")
    nodes = len(m.h.nodes())
    assert piece(m, "a", 50, least=30).tokens == 32 and len(m.h.nodes()) == nodes
    m.h.settle()
    assert piece(m, "a", 50, least=34).tokens in (50, 48) and len(m.h.nodes()) == nodes + 1
    m.h.settle()
    m.h.audit()


@pytest.mark.parametrize(("most", "least"), [(40, 50), (9, 10), (0, 10)])
def test_less_than_is_worth_an_operation_is_declined_and_cuts_nothing(moving, most, least):
    m = away(moving, LONG)
    nodes = len(m.h.nodes())
    assert piece(m, "a", most, least).reason in ("no_room", "below_load_threshold")
    assert len(m.h.nodes()) == nodes and m.h.cache.loads_in_flight() == 0


def test_what_has_landed_leaves_again_without_a_copy(moving):
    m = away(moving, LONG)
    assert piece(m, "a", 48).tokens == 48
    m.h.settle()
    m.h.audit()
    assert m.h.cache.protected_size() == 0
    assert m.h.evict(48) == 48 and not m.h.writes.queue
    m.h.audit()
    assert (m.h.on_device(LONG), m.h.on_host(LONG)) == (0, 96)


# -- a request that comes early ---------------------------------------------------------------------------------


def loaded_tokens(harness):
    """What is copied to the device from now on, as it grows."""
    copied, load = [0], harness.cache.cache_controller.load

    def counting(host_indices, *args, **kwargs):
        copied[0] += len(host_indices)
        return load(host_indices, *args, **kwargs)

    harness.cache.cache_controller.load = counting
    return copied


def test_a_request_that_comes_during_its_upload_joins_it_and_loads_only_the_rest(moving):
    m = away(moving, LONG, device_tokens=192)
    copied = loaded_tokens(m.h)
    assert piece(m, "a", 48).tokens == 48
    req = m.h.request(LONG + [1], "a")
    assert m.h.admit(req) and req.cached == 96
    m.h.forward(req)  # waits for both, then reads
    m.h.result(req)
    m.h.finish(req)
    m.h.settle()
    m.h.audit()
    assert copied == [96]


def test_a_request_that_comes_when_all_of_it_is_on_its_way_loads_nothing(moving):
    m = away(moving, LONG, device_tokens=192)
    copied = loaded_tokens(m.h)
    assert piece(m, "a", 1000).tokens == 96
    req = m.h.request(LONG + [1], "a")
    assert m.h.admit(req) and req.cached == 96 and copied == [96]
    m.h.forward(req)


def test_a_batch_waits_for_the_loads_that_it_met_and_not_for_later_ones(moving):
    m = moving(device_tokens=256)
    prompts = {"a": LONG[:48], "b": [5] * 48, "c": [6] * 48}
    for key, tokens in prompts.items():
        m.h.serve(tokens, key)
        m.send_away(key)
    for key in prompts:
        assert piece(m, key, 48).tokens == 48
    req = m.h.request(prompts["b"] + [1], "b")
    assert m.h.admit(req)
    m.h.forward(req)
    _, landing = m.h.clock.pending_slots(m.h.loads)
    assert landing == set(m.h.peek(prompts["c"]).value.tolist())
    m.h.settle()
    m.h.audit()


def test_the_second_part_of_a_cut_node_is_not_waited_for_by_who_needs_the_first(moving):
    m = away(moving, LONG, device_tokens=256)
    piece(m, "a", 48)
    m.h.serve([7] * 16, "b")  # the first part lands
    m.h.settle()
    assert piece(m, "a", 48).tokens == 48
    req = m.h.request(LONG[:48] + [1], "c")
    assert m.h.admit(req) and (req.cached, req.consumer) == (48, -1)
    m.h.forward(req)
    m.h.settle()
    m.h.audit()


# -- planned across agents --------------------------------------------------------------------------------------


@pytest.fixture
def busy(make):
    """A server with the policy cost, whose link carries 32 tokens in a piece."""
    def build(upload="timer", device_tokens=192, **agents):
        server = Server(make(device_tokens=device_tokens, host_tokens=512, write_through=True, upload=upload),
                        offload_policy="cost", upload=upload)
        server.extension.mover.costs = Costs(upload_base_s=0.0, upload_token_s=0.25 / 32)
        for key, tokens in agents.items():
            server.serve(tokens, key, steps=0)
        server.h.evict(10**6)
        return server

    return build


def leaves(server, **stalls):
    for key, seconds in stalls.items():
        server.stall(key, seconds)


def on_device(server, key):
    return server.h.cache.owners.footprint(key).device_tokens


def test_an_upload_comes_piece_by_piece_root_side_first(busy):
    server = busy(a=LONG)
    leaves(server, a=0.1)
    grown = []
    for _ in range(5):
        server.wait(0.01)
        grown.append(on_device(server, "a"))
    assert grown[:3] == [32, 64, 96] and server.counters["uploads_completed"] >= 3
    assert server.counters["uploads_declined"] == 0 and server.h.on_device(LONG) == 96
    server.back()
    assert server.counters["uploads_on_time"] == 1


def test_the_link_goes_to_the_agent_that_is_back_first_and_then_to_the_other(busy):
    server = busy(a=LONG, b=[5] * 64)
    leaves(server, a=3.0, b=0.05)
    for _ in range(2):
        server.wait(0.01)
    assert (on_device(server, "b"), on_device(server, "a")) == (64, 0)


def test_a_more_urgent_agent_passes_between_two_pieces(busy):
    server = busy(a=LONG, b=[5] * 64)
    leaves(server, a=1.0, b=600.0)
    server.wait(0.01)
    assert (on_device(server, "a"), on_device(server, "b")) == (32, 0)
    server.control("event", event="stall_finished", agent_id="b", call_id=None, outcome="error")  # it teaches nothing
    server.wait(0.01)
    server.wait(0.01)
    assert (on_device(server, "a"), on_device(server, "b")) == (32, 64)


def test_an_upload_stops_when_its_agent_has_ended_and_what_has_landed_is_dead_kv(busy):
    server = busy(a=LONG)
    leaves(server, a=0.1)
    server.wait(0.01)
    server.wait(0.01)
    assert server.control("event", event="agent_finished", agent_id="a")[0] == 200
    for _ in range(5):
        server.wait(0.01)
    dead = server.h.cache.owners.dead_evictable_tokens(10**6)
    assert dead == 64 and server.h.cache.protected_size() == 0
    assert not server.controller.uploads.queue and server.controller.next_wake is None


def test_an_upload_stops_when_its_request_is_here_and_the_request_loads_the_rest(busy):
    server = busy(a=LONG)
    leaves(server, a=0.1)
    server.wait(0.01, land=False)
    copied = loaded_tokens(server.h)
    req = server.queue(LONG + [1])
    for _ in range(3):
        server.wait(0.01)
    assert copied == [0] and on_device(server, "a") == 32
    server.run(req)
    assert copied == [64] and req.cached == 96
    server.h.finish(req)


def test_an_upload_stops_when_the_head_of_the_queue_wants_the_memory_and_goes_on_after_that(busy):
    server = busy(a=LONG)
    runs = server.run(server.queue(list(range(80)), "x"))
    leaves(server, a=0.1)
    server.wait(0.01)
    assert on_device(server, "a") == 32
    head = server.queue(list(range(1000, 1020)), "head")  # it needs more than is left beside x
    for _ in range(4):
        server.wait(0.01)
    assert on_device(server, "a") == 32 and not admitted_at_once(server, head)
    server.h.finish(runs)
    for _ in range(4):
        server.wait(0.3)
    assert on_device(server, "a") == 96


@pytest.mark.parametrize(("upload", "before", "after"), [
    ("timer", 0, 96), ("at-return", 0, 96), ("at-stall", 96, 96), ("hybrid", 96, 96), ("none", 0, 0)])
def test_the_setting_says_when_kv_is_back(busy, upload, before, after):
    server = busy(upload=upload, a=LONG)
    leaves(server, a=600.0)
    for _ in range(5):
        server.wait(0.01)
    assert on_device(server, "a") == before
    server.back("a")
    for _ in range(5):
        server.wait(0.01)
    assert on_device(server, "a") == after


def test_what_is_not_due_leaves_a_share_of_the_device_free(busy):
    server = busy(upload="at-stall", device_tokens=128, a=LONG)
    leaves(server, a=600.0)
    for _ in range(8):
        server.wait(0.01)
    assert 64 <= on_device(server, "a") <= 96
    assert server.h.allocator.available_size() >= 0.2 * 128


# -- nothing that was loaded is in the queue's way --------------------------------------------------------------


def admitted_at_once(server, req) -> bool:
    """What SGLang's own admission says of the first waiting request."""
    from sglang.srt.managers.schedule_policy import PrefillAdder

    h = server.h
    running = SimpleNamespace(reqs=[r for r in h.running_batch.reqs], batch_size=lambda: len(h.running_batch.reqs))
    adder = PrefillAdder(h.page_size, h.cache, h.allocator, running, h.new_token_ratio_tracker.current, 10_000, None)
    req.init_next_round_input(h.cache)
    adder.add_one_req(req, has_chunked_req=False, truncation_align_size=None)
    return adder.can_run_list == [req]


def test_the_head_is_admitted_at_once_although_58_percent_of_the_device_is_kv_of_stalled_agents(busy):
    """Published: 58.4 % of the run stood still, because loaded KV held the memory that the head waited for."""
    server = busy(a=LONG[:64], b=[5] * 48)
    runs = server.run(server.queue(list(range(32)), "x"))
    leaves(server, a=0.1, b=0.1)
    for _ in range(6):
        server.wait(0.01)
    held = on_device(server, "a") + on_device(server, "b")
    assert held == 112 and held / 192 > 0.58
    head = server.queue(list(range(1000, 1020)), "head")
    growth = 0.7 * 63 + 20 + 64
    assert growth > server.h.allocator.available_size() >= 48 - 16, "it fits without the stalled agents' memory"
    assert admitted_at_once(server, head)
    server.h.finish(runs)


@pytest.mark.parametrize("upload", ["timer", "at-stall", "hybrid"])
def test_an_upload_on_its_way_leaves_the_head_what_it_needs(busy, upload):
    """The KV of a piece is locked until it has landed; none starts that the head of the queue would wait for."""
    server = busy(upload=upload, a=LONG[:64], b=[5] * 48)
    runs = server.run(server.queue(list(range(32)), "x"))
    head = server.queue(list(range(1000, 1020)), "head")
    leaves(server, a=0.1, b=0.1)
    for _ in range(8):
        server.wait(0.01, land=False)
        assert admitted_at_once(server, head)
    server.h.finish(runs)


# -- a late tool ------------------------------------------------------------------------------------------------


def test_kv_of_a_tool_that_is_late_goes_back_to_the_host_at_no_cost_and_restores_at_the_return(busy):
    server = busy(a=LONG)
    leaves(server, a=0.5)
    for _ in range(4):
        server.wait(0.1)
    assert on_device(server, "a") == 96
    server.wait(4.6)  # ten times as long as was said
    assert server.h.cache.protected_size() == 0 and server.h.cache.owners.protected == {}
    writes = server.counters["backups_started"]
    others = server.serve(list(range(2000, 2150)), "x", steps=1)  # needs the memory
    assert on_device(server, "a") < 96 and server.h.on_device(others) == len(others)
    assert server.h.match(LONG).host_hit_length + on_device(server, "a") == 96
    assert server.counters["backups_started"] == writes
    server.control("event", event="agent_finished", agent_id="x")
    server.back()
    for _ in range(6):
        server.wait(0.1)
    assert on_device(server, "a") == 96
    server.h.expect_slots(server.h.match(LONG).device_indices, LONG)


def test_shared_kv_is_uploaded_once_for_two_agents(busy):
    server = busy(a=LEFT, b=RIGHT)
    copied = loaded_tokens(server.h)
    leaves(server, a=0.1, b=0.1)
    for _ in range(8):
        server.wait(0.01)
    assert copied == [len(SHARED) + 32 + 32]
    assert server.h.on_device(LEFT) == server.h.on_device(RIGHT) == 64
