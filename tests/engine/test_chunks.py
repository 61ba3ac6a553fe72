"""The size of the next batch's prompt chunk, and prompts in chunks that wait for room."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from tests.engine.test_life_cycle import PROMPT, Server
from tests.engine.test_queue import queue
from tokencake_sglang.core.costs import Costs
from tokencake_sglang.core.spatial.chunks import balanced_chunk


@pytest.fixture
def server(make):
    return Server(make(device_tokens=192, host_tokens=256))


def balanced(make, mixed=True, **settings):
    harness = make(device_tokens=192, host_tokens=256)
    harness.is_mixed_chunk = mixed
    return Server(harness, **{"chunks": "balanced", **settings})


def running(server, *lengths, told=True):
    reqs = [server.h.request(range(2000, 2000 + length), "a") for length in lengths]
    return SimpleNamespace(reqs=reqs, seq_lens_cpu=torch.tensor(lengths) if told else None)


@pytest.mark.parametrize("order", ["program", "sglang"])
def test_a_chunk_is_balanced_with_what_decodes_beside_it_by_the_costs_of_all_ranks(make, order):
    server = balanced(make, order=order)
    server.extension.mover.costs = costs = Costs(compute_token_s=2e-5, compute_pair_s=1e-7, decode_token_s=1e-4)
    waiting = queue(server, "b", "b1", range(1000, 1100))
    chunked = server.h.request(range(3000, 3150), "c")
    chunked.prefix_indices = torch.arange(48)

    def limit(chunked_req, queue, batch):
        return server.extension.limit_chunk(4096, chunked_req, queue, batch)

    batch = running(server, 70, 50)
    assert limit(chunked, [waiting], batch) == balanced_chunk(costs, 2, 120, 48)
    assert limit(None, [waiting], batch) == balanced_chunk(costs, 2, 120, 100) < limit(chunked, [waiting], batch)
    assert limit(None, [], running(server, 70, 50, told=False)) == balanced_chunk(costs, 2, 120, 0)
    server.extension.mover.costs = replace(costs, decode_base_s=9.0)
    assert limit(chunked, [waiting], batch) == 4096, "never more than the server's"


def test_where_nothing_decodes_or_nothing_is_in_chunks_the_size_is_the_servers(make):
    server = balanced(make)
    assert server.extension.limit_chunk(4096, None, [], running(server)) == 4096
    assert server.extension.limit_chunk(None, None, [], running(server, 70)) is None


@pytest.mark.parametrize(("mixed", "chunks"), [(False, "balanced"), (True, "fixed"), (True, "auto")])
def test_without_mixed_batches_and_without_the_setting_it_is_too(make, mixed, chunks):
    server = balanced(make, mixed, chunks=chunks)
    assert server.extension.limit_chunk(4096, None, [], running(server, 70)) == 4096


def test_a_prompt_in_chunks_waits_for_room_while_others_can_give_it(server):
    h = server.h
    server.extension.scheduler.chunked_prefill_size = 32
    req = h.request(range(1000, 1128))
    h.admit(running := h.request(PROMPT, "a"))
    req.init_next_round_input(h.cache)
    room = h.allocator.available_size() + h.cache.evictable_size()
    batch = SimpleNamespace(reqs=[running])
    assert not server.extension.parks_chunk(req, batch) and server.extension.parking.parked == 0
    taken = h.allocator.alloc(room // h.page_size * h.page_size)
    assert server.extension.parks_chunk(req, batch)
    assert not server.extension.parks_chunk(req, SimpleNamespace(reqs=[])), "nobody could ever make room for it"
    h.allocator.free(taken)


@pytest.mark.parametrize(("most", "waits"), [(16, False), (64, True)])
def test_it_waits_for_the_room_of_its_next_chunk_and_not_of_more(server, monkeypatch, most, waits):
    h = server.h
    monkeypatch.setattr(server.extension.parking, "limit_chunk", lambda *_: most)
    server.extension.scheduler.chunked_prefill_size = 64
    req = queue(server, "b", "long", range(1000, 1128))
    h.admit(running := h.request(PROMPT, "a"))
    req.init_next_round_input(h.cache)
    room = h.allocator.available_size() + h.cache.evictable_size()
    taken = h.allocator.alloc((room - 48) // h.page_size * h.page_size)
    assert server.extension.parks_chunk(req, SimpleNamespace(reqs=[running])) is waits
    h.allocator.free(taken)
