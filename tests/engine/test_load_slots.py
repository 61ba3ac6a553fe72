"""More loads in flight than SGLang's three, and who waits for which."""

from __future__ import annotations

from sglang.srt.managers.cache_controller import LayerDoneCounter
from tokencake_sglang.engine.load_slots import WideLayerDoneCounter


def test_the_cache_and_the_device_pool_share_one_wide_counter(make):
    h = make(load_slots=7)
    counter = h.cache.cache_controller.layer_done_counter
    assert isinstance(counter, WideLayerDoneCounter) and counter.num_counters == len(counter.events) == 7
    assert h.pool.layer_transfer_counter is counter


def test_where_sglang_stops_at_the_fourth_load_the_wide_counter_takes_as_many_as_it_has(clock):
    import pytest

    narrow, wide, stream = LayerDoneCounter(2), WideLayerDoneCounter(2, 6), clock.Stream()

    def start_load(counter):
        slot = counter.update_producer()
        with clock.stream(stream):
            for layer in range(2):
                counter.events[slot].complete(layer)
        return slot

    assert [start_load(narrow) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(AssertionError, match="Producer finish event"):
        start_load(narrow)
    assert [start_load(wide) for _ in range(6)] == [0, 1, 2, 3, 4, 5]
    oldest = wide.events[0].finish_event
    assert not oldest.query()
    assert wide.update_producer() == 0 and oldest.query()


def test_never_fewer_slots_than_sglang(clock):
    assert WideLayerDoneCounter(2, 3).num_counters == 3
