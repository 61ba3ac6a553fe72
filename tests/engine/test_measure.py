"""Measured costs: where samples come from, what a measurement leaves behind, and that every rank sees the same."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from sglang.srt.managers import cache_controller
from sglang.srt.model_executor.forward_batch_info import ForwardMode
from sglang.utils import TypeBasedDispatcher

from tests.support.cache_fixture import CacheHarness
from tests.support.transfer_clock import FakeEvent, TransferClock
from tokencake_sglang.core.config import TokenCakeConfig
from tokencake_sglang.core.costs import Costs
from tokencake_sglang.engine import measure
from tokencake_sglang.engine.extension import TokenCakeExtension
from tokencake_sglang.engine.ipc import TokenCakeControlReq, TokenCakeTickReq
from tokencake_sglang.engine.measure import DECODES_BETWEEN, TELL_EVERY_S, CostMeasure, PromptPass, Stopwatch

PROMPT = list(range(300, 364))
COPY_MS = 40.0


@pytest.fixture
def taking(monkeypatch):
    """Every copy takes COPY_MS by the device's events."""
    monkeypatch.setattr(FakeEvent, "elapsed_time", lambda self, other: COPY_MS)


@pytest.fixture
def untimed(monkeypatch):
    """Events that cannot time, and a host clock that the test turns."""
    monkeypatch.setattr(cache_controller, "_timing_events_supported", lambda: False)
    clock = SimpleNamespace(now=0.0, perf_counter=lambda: clock.now)
    monkeypatch.setattr(measure, "time", clock)
    return clock


def extension_of(harness, rank=0, **settings):
    harness._request_dispatcher = TypeBasedDispatcher([])
    harness.ps, harness.tree_cache = SimpleNamespace(tp_rank=rank, dp_rank=None), harness.cache
    return TokenCakeExtension(harness, TokenCakeConfig(**settings))


def moved(harness):
    """One backup of PROMPT's KV and one load of it; returns the numbers of tokens."""
    done = harness.serve(PROMPT)
    harness.back_up_all()
    harness.evict(len(done))
    req = harness.request([*done, 1])
    assert harness.admit(req)
    harness.settle()
    return len(done), req.cached


def test_backups_and_loads_of_sglang_itself_are_samples_of_their_size(make, taking, monkeypatch):
    harness = make()
    measuring = CostMeasure(harness.cache)
    seen = []
    monkeypatch.setattr(measuring.learner, "copy", lambda *sample: seen.append(sample))
    harness.cache.on_step = measuring.collect
    backed_up, loaded = moved(harness)
    assert sum(tokens for kind, tokens, *_ in seen if kind == "offload") == backed_up
    assert [sample for sample in seen if sample[0] == "upload"] == [("upload", loaded, 1, COPY_MS / 1000)]


def test_a_copy_is_told_when_it_has_landed_and_not_before(make, taking):
    harness = make()
    measuring = CostMeasure(harness.cache)
    harness.cache.on_step = measuring.collect
    harness.serve(PROMPT)
    assert harness.cache.write_backup(harness.nodes()[0]) > 0
    harness.step()
    assert measuring.learner.samples == 0
    harness.settle()
    assert measuring.learner.samples == 1


def test_without_timing_events_a_copy_counts_up_to_the_step_that_finds_it_done(make, untimed):
    harness = make()
    measuring = CostMeasure(harness.cache)
    harness.cache.on_step = measuring.collect
    done = harness.serve(PROMPT)
    assert harness.cache.write_backup(harness.nodes()[0]) > 0
    untimed.now = 0.25
    harness.settle()
    assert measuring.learner.costs().offload_s(len(done)) == pytest.approx(0.25, rel=0.01)


@pytest.mark.parametrize(("finished", "late", "told"), [(True, False, [0.5]), (False, False, []), (False, True, [2.0])])
def test_work_that_events_cannot_time_takes_as_long_as_its_call_if_it_is_done_then(
        monkeypatch, untimed, finished, late, told):
    event = SimpleNamespace(record=lambda: None, query=lambda: event.done, done=finished)
    monkeypatch.setattr(cache_controller, "make_timing_event_pair", lambda: (event, event, False))
    seen = []
    watch = Stopwatch(lambda what, seconds: seen.append(seconds), late=late)
    begun = watch.begin()
    untimed.now = 0.5
    watch.end(begun, "work")
    untimed.now, event.done = 2.0, True
    watch.collect()
    assert seen == told and not watch.under_way


def test_the_measurement_at_the_start_fills_both_directions_and_leaves_no_trace(clock, page, taking):
    harness = CacheHarness(clock, page_size=page, device_tokens=192, host_tokens=256)
    harness.pool.k_buffer[0].normal_()
    kept = [buffer.clone() for buffer in (*harness.pool.k_buffer, *harness.pool.v_buffer)]
    pages, host_slots = harness.allocator.free_pages.clone(), harness.host.free_slots.clone()
    measuring = CostMeasure(harness.cache)
    measuring.measure_copies()
    assert measuring.learner.samples == 2 * (1 + len({192 // 16 // page * page, 192 // 4 // page * page, 192} - {0}))
    assert measuring.learner.costs().offload_s(192) == pytest.approx(COPY_MS / 1000, rel=0.3)
    assert harness.allocator.free_pages.equal(pages) and harness.host.free_slots.equal(host_slots)
    for buffer, before in zip((*harness.pool.k_buffer, *harness.pool.v_buffer), kept, strict=True):
        assert buffer.equal(before)
    controller = harness.cache.cache_controller
    assert not controller.ack_write_queue and not controller.ack_load_queue
    assert controller.layer_done_counter.producer_index == -1
    harness.audit()
    moved(harness)
    harness.audit()


def test_the_measurement_at_the_start_leaves_a_pool_in_use_alone(make, taking):
    harness = make(device_tokens=192)
    harness.serve(PROMPT)
    measuring = CostMeasure(harness.cache)
    measuring.measure_copies()
    assert measuring.learner.samples == 0


def batch(mode=ForwardMode.EXTEND, new=(100, 50), before=(0, 200), decoding=0, consumer=-1):
    return SimpleNamespace(
        forward_mode=mode, extend_lens=[*new, *[1] * decoding], prefix_lens=[*before, *[900] * decoding],
        decoding_reqs=[None] * decoding or None, hicache_consumer_index=consumer,
        seq_lens_cpu=torch.tensor([900, 600]))


@pytest.mark.parametrize(("made", "seen"), [
    (batch(), PromptPass(((100, 0), (50, 200)))),
    (batch(mode=ForwardMode.DECODE), None),
    (batch(consumer=1), None),
    (batch(mode=ForwardMode.MIXED, decoding=2), PromptPass(((100, 0), (50, 200)), (900, 900))),
])
def test_a_pass_that_computes_prompts_tells_its_parts_and_what_decodes_beside_them(made, seen):
    assert PromptPass.of(made) == seen


@pytest.mark.parametrize(("decoding", "prefill"), [
    (0, [((100, 0), (50, 200))]), (2, [((100, 0), (50, 200), (1, 900), (1, 900))]), (30, [])])
def test_a_pass_is_a_sample_of_prefill_if_few_decode_beside_it_and_always_one_of_arithmetic(
        make, taking, monkeypatch, decoding, prefill):
    worker = SimpleNamespace(forward_batch_generation=lambda batch: batch)
    measuring = CostMeasure(make().cache, worker)
    prefills, batches = [], []
    monkeypatch.setattr(measuring.learner, "prefill", lambda *sample: prefills.append(sample))
    monkeypatch.setattr(measuring.learner, "compute", lambda *sample: batches.append(sample))
    mode = ForwardMode.MIXED if decoding else ForwardMode.EXTEND
    worker.forward_batch_generation(batch(mode=mode, decoding=decoding))
    measuring.collect()
    seconds = COPY_MS / 1000
    assert prefills == [(parts, seconds) for parts in prefill]
    assert batches == [(((100, 0), (50, 200)), decoding, decoding * 901, seconds)]


def test_a_forward_pass_is_timed_and_gives_its_result(make, taking):
    worker = SimpleNamespace(forward_batch_generation=lambda batch, *args, **kwargs: (batch, args, kwargs))
    measuring = CostMeasure(make().cache, worker)
    made = batch()
    assert worker.forward_batch_generation(made, 1, two=2) == (made, (1,), {"two": 2})
    worker.forward_batch_generation(batch(mode=ForwardMode.DECODE))
    measuring.collect()
    assert measuring.learner.samples == 2, "of prefill and of arithmetic"
    assert measuring.learner.costs().prefill_s(150, 0) == pytest.approx(COPY_MS / 1000, rel=0.1)


def test_of_decode_steps_one_in_a_few_is_timed_with_the_contexts_of_its_requests(make, taking, monkeypatch):
    worker = SimpleNamespace(forward_batch_generation=lambda batch: batch)
    measuring = CostMeasure(make().cache, worker)
    seen = []
    monkeypatch.setattr(measuring.learner, "decode", lambda *sample: seen.append(sample))
    decode = batch(mode=ForwardMode.DECODE)
    for _ in range(3 * DECODES_BETWEEN):
        assert worker.forward_batch_generation(decode) is decode
        worker.forward_batch_generation(batch(mode=ForwardMode.IDLE))
    measuring.collect()
    assert seen == 3 * [(2, 1500, COPY_MS / 1000)]
    decode.seq_lens_cpu = None
    for _ in range(DECODES_BETWEEN):
        worker.forward_batch_generation(decode)
    measuring.collect()
    assert len(seen) == 3


# -- the way to the policies ------------------------------------------------------------------------------------


def test_costs_are_told_at_first_when_they_changed_and_at_most_once_a_second(make):
    measuring = CostMeasure(make().cache)
    first = measuring.news(10.0)
    assert Costs.from_tuple(first) == measuring.learner.costs()
    assert measuring.news(20.0) == []
    measuring.learner.copy("upload", 1000, 1, 5.0)
    assert measuring.news(20.1) != []
    measuring.learner.copy("offload", 1000, 1, 9.0)
    assert measuring.news(20.1 + TELL_EVERY_S / 2) == []
    assert measuring.news(20.1 + TELL_EVERY_S) != []
    told = measuring.learner.costs()
    measuring.learner.copy("offload", 1000, 1, told.offload_s(1000) * 1.01)
    assert measuring.news(30.0) == []


def test_ranks_fed_with_the_same_ticks_have_equal_costs_whatever_they_measured(monkeypatch, page, taking):
    ranks = []
    for rank in (0, 1):
        clock = TransferClock()
        clock.install(monkeypatch)
        ranks.append(extension_of(CacheHarness(clock, page_size=page, device_tokens=192), rank))
    first, second = ranks
    assert second.measure is None and first.mover.costs == second.mover.costs == Costs()
    for now, seconds in ((1.0, 0.3), (3.0, 2.0), (5.0, 2.0)):
        first.measure.learner.copy("upload", 5000, 1, seconds)
        first.measure.learner.prefill(((2000, 0),), seconds)
        for message in first.extend_received([object()])[:1]:
            assert isinstance(message, TokenCakeTickReq)
            tick = TokenCakeTickReq(now=now, costs=message.costs)
            for extension in ranks:
                extension.scheduler._request_dispatcher(tick)
        assert first.mover.costs == second.mover.costs != Costs()
        first.measure._tell_at = 0.0
    assert first.mover.costs == first.measure.learner.costs()


def test_what_a_rank_measures_itself_changes_nothing_before_a_tick(make, taking):
    extension = extension_of(make(device_tokens=192))
    moved(extension.scheduler)
    extension.measure.collect()
    assert extension.measure.learner.samples > 0
    assert extension.mover.pool().costs == Costs()
    extension._on_tick(TokenCakeTickReq(now=1.0, costs=extension.measure.news(1.0)))
    extension._on_tick(TokenCakeTickReq(now=2.0))
    assert extension.mover.measure_pool().costs == extension.measure.learner.costs() != Costs()
    answer = extension.scheduler._request_dispatcher(TokenCakeControlReq(control_id="c", op="state", payload="{}"))
    assert Costs(**json.loads(answer.body)["pool"]["costs"]) == extension.mover.costs
