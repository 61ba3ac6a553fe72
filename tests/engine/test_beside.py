"""Short requests beside the rest of a long prompt, on the real cache: who is chosen, and who is passed over then."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from tests.engine.test_growth import request
from tests.engine.test_life_cycle import PROMPT, Server
from tests.engine.test_queue import queue
from tokencake_sglang.core.costs import Costs
from tokencake_sglang.core.spatial.chunks import balanced_chunk

COSTS = Costs(compute_token_s=2e-4)
MOST = 64


@pytest.fixture
def server(make, monkeypatch):
    monkeypatch.setattr("tokencake_sglang.core.spatial.beside.LONG_REST", 0)
    harness = make(device_tokens=384, host_tokens=512)
    harness.is_mixed_chunk = True
    server = Server(harness, chunks="balanced")
    server.extension.mover.costs = COSTS
    return server


def in_chunks(server, tokens=128):
    """A long prompt whose rest is not computed yet."""
    req = server.h.request(range(3000, 3000 + tokens), "long", "long")
    req.sampling_params.max_new_tokens = 4
    req.init_next_round_input(server.h.cache)
    req.set_extend_range(0, 16)
    server.h.chunked_req = req
    return req


def a_turn(server, agent="a", rid="turn", new=4):
    """The next request of an agent whose path is cached."""
    done = server.serve(PROMPT, agent)
    req = queue(server, agent, rid, [*done, *range(7000, 7000 + new)])
    req.sampling_params.max_new_tokens = 8
    return req


def build(server, long, most=MOST):
    """The calls that SGLang's scheduler makes for a batch; its size, and who was tried."""
    batch = SimpleNamespace(reqs=[], seq_lens_cpu=None)
    size = server.extension.limit_chunk(most, long, server.h.waiting_queue, batch)
    tried = [req.rid for req in server.h.waiting_queue if not server.extension.holds_back(req)]
    return size, tried


def test_a_turn_after_a_tool_goes_beside_a_long_prompt_and_those_that_do_not_fit_are_passed_over(server):
    long, turn = in_chunks(server), a_turn(server)
    queue(server, "b", "unseen", range(5000, 5100))
    assert build(server, long) == (MOST, ["turn"])
    page = server.h.page_size
    assert 4 <= server.extension.tokens_beside_chunk(long) <= 4 + 2 * page + page
    turn.set_extend_range(0, 4)
    server.extension.on_requests_admitted([long, turn])
    assert server.extension.beside.went == 1


def test_the_batch_grows_by_what_goes_beside_the_long_prompt(server):
    long, _ = in_chunks(server), a_turn(server)
    running = SimpleNamespace(reqs=[server.h.request(PROMPT[:8], "r")], seq_lens_cpu=None)
    size = server.extension.limit_chunk(4096, long, server.h.waiting_queue, running)
    beside = server.extension.tokens_beside_chunk(long)
    assert beside > 0 and size == beside + balanced_chunk(COSTS, 1, 8, 0)


def test_without_a_prompt_in_chunks_nobody_is_passed_over(server):
    a_turn(server)
    queue(server, "b", "unseen", range(5000, 5100))
    assert build(server, None) == (MOST, ["turn", "unseen"])
    assert server.extension.tokens_beside_chunk(None) == 0


def test_when_the_long_prompt_ends_with_this_batch_all_are_tried(server):
    long = in_chunks(server)
    a_turn(server)
    queue(server, "b", "unseen", range(5000, 5100))
    build(server, long)
    server.h.chunked_req = None  # SGLang has put the last of it into the batch
    assert [req.rid for req in server.h.waiting_queue if not server.extension.holds_back(req)] == ["turn", "unseen"]


def test_one_for_which_there_was_no_place_is_not_tried_beside_this_prompt_again(server):
    long = in_chunks(server)
    a_turn(server)
    assert build(server, long)[1] == ["turn"]
    server.extension.on_requests_admitted([long])
    build(server, long)
    assert server.extension.tokens_beside_chunk(long) == 0 and server.extension.beside.went == 0
    other = server.h.request(range(4000, 4128), "other", "other")
    other.init_next_round_input(server.h.cache)
    server.h.chunked_req = other
    build(server, other)
    assert server.extension.tokens_beside_chunk(other) > 0


def test_a_turn_waits_where_the_long_prompt_will_need_the_room(server):
    long = in_chunks(server)
    a_turn(server)
    taken = server.h.allocator.alloc(192)
    build(server, long)
    assert server.extension.tokens_beside_chunk(long) == 0
    server.h.allocator.free(taken)


def test_with_fixed_chunks_nothing_goes_beside(make, monkeypatch):
    monkeypatch.setattr("tokencake_sglang.core.spatial.beside.LONG_REST", 0)
    harness = make(device_tokens=384, host_tokens=512)
    server = Server(harness, chunks="fixed")
    long = in_chunks(server)
    a_turn(server)
    build(server, long)
    assert server.extension.tokens_beside_chunk(long) == 0


def test_what_runs_takes_the_room_that_it_needs_at_a_time(server):
    """The first gives back what it holds before the second has grown."""
    first, second = (server.run(request(server, name, prompt, left + 1)) for name, prompt, left in (
        ("b", range(1000, 1096), 3), ("c", range(2000, 2016), 90)))
    long, turn = in_chunks(server), a_turn(server)
    cache, page = server.h.cache, server.h.page_size
    free = cache.token_to_kv_pool_allocator.available_size() + cache.evictable_size() - 128 - 3 * page
    turn.sampling_params.max_new_tokens = free - (len(PROMPT) + 4 + 4) - 2 * 3 - 4 - 2 * (page - 1)
    assert server.extension.beside.choose(MOST, long, [turn], [first, second]) > 0
    turn.sampling_params.max_new_tokens += 90 + 2 * page
    assert server.extension.beside.choose(MOST, long, [turn], [first, second]) == 0
