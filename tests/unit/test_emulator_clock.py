"""Virtual time and the emulated device: what runs when, what waits for what."""

from __future__ import annotations

from tokencake_sglang.emulator.clock import SECOND, START_NS, VirtualClock
from tokencake_sglang.emulator.device import EmulatedDevice, VirtualEvent


def noted(clock: VirtualClock, *times: int) -> list[tuple[int, int]]:
    """Registers an event at each of `times` (after the start); what ran, as (its place in `times`, when)."""
    ran: list[tuple[int, int]] = []
    for index, time in enumerate(times):
        clock.at(START_NS + time, lambda index=index: ran.append((index, clock.now_ns - START_NS)))
    return ran


# -- the clock --------------------------------------------------------------------------------------------------


def test_events_run_in_order_of_time_and_those_of_one_time_in_order_of_registration():
    clock = VirtualClock()
    ran = noted(clock, 30, 10, 20, 10, 30)
    clock.advance_to(START_NS + 100)
    assert ran == [(1, 10), (3, 10), (2, 20), (0, 30), (4, 30)]
    assert clock.now_ns == START_NS + 100


def test_an_event_later_than_the_advance_waits_and_one_exactly_there_runs():
    clock = VirtualClock()
    ran = noted(clock, 50, 51)
    clock.advance_to(START_NS + 50)
    assert ran == [(0, 50)]


def test_an_event_that_an_event_registers_runs_in_the_same_advance_if_it_is_due():
    clock = VirtualClock()
    ran = []
    clock.at(START_NS + 10, lambda: clock.after(5, lambda: ran.append(clock.now_ns - START_NS)))
    clock.at(START_NS + 12, lambda: ran.append("between"))
    clock.advance_to(START_NS + 20)
    assert ran == ["between", 15]


def test_time_never_goes_back():
    clock = VirtualClock()
    clock.advance_to(START_NS + 100)
    clock.advance_to(START_NS + 50)
    assert clock.now_ns == START_NS + 100
    ran = noted(clock, 10)  # in the past: at the present, on the next advance
    assert ran == []
    clock.advance_to(clock.now_ns)
    assert ran == [(0, 100)]


def test_no_two_reads_are_equal():
    clock = VirtualClock()
    reads = [clock.read() for _ in range(1000)]
    assert reads == sorted(set(reads))
    clock.advance_to(reads[-1])
    assert clock.read() > reads[-1]


def test_an_idle_server_stops_for_the_next_event_that_wakes_and_not_for_observers():
    clock = VirtualClock()
    assert clock.next_wake_ns() is None
    clock.at(START_NS + 10, lambda: None, wakes=False)
    assert clock.next_wake_ns() is None
    noted(clock, 40, 30)
    assert clock.next_wake_ns() == START_NS + 30
    clock.advance_to(START_NS + 35)
    assert clock.next_wake_ns() == START_NS + 40
    clock.advance_to(START_NS + 40)
    assert clock.next_wake_ns() is None


def test_an_event_that_reads_of_the_clock_have_passed_still_wakes():
    """Otherwise an arrival that falls due between two reads of the scheduler waits for the next event after it."""
    clock = VirtualClock()
    ran = noted(clock, 2, 500)
    for _ in range(5):
        clock.read()
    assert clock.next_wake_ns() == START_NS + 2
    clock.advance_to(max(clock.next_wake_ns(), clock.now_ns))
    assert ran == [(0, 5)] and clock.next_wake_ns() == START_NS + 500


def test_the_clock_counts_seconds_from_its_start():
    clock = VirtualClock()
    assert clock.now_ns > 0  # SGLang takes a time of 0 for "not set"
    assert clock.elapsed_s() == 0.0
    clock.advance_to(START_NS + 3 * SECOND // 2)
    assert clock.elapsed_s() == 1.5


# -- the device -------------------------------------------------------------------------------------------------


def device() -> EmulatedDevice:
    return EmulatedDevice(VirtualClock())


def test_work_on_one_stream_runs_in_order_and_streams_run_side_by_side():
    gpu = device()
    one, other = gpu.Stream(), gpu.Stream()
    assert one.charge(100) == (START_NS, START_NS + 100)
    assert one.charge(50) == (START_NS + 100, START_NS + 150)
    assert other.charge(70) == (START_NS, START_NS + 70)
    assert (one.busy_ns, other.busy_ns) == (150, 70)


def test_an_idle_stream_starts_new_work_now():
    gpu = device()
    stream = gpu.Stream()
    stream.charge(10)
    gpu.clock.advance_to(START_NS + 500)
    assert stream.charge(10) == (START_NS + 500, START_NS + 510)


def test_an_event_is_pending_until_the_work_before_it_has_ended():
    gpu = device()
    stream = gpu.Stream()
    stream.charge(100)
    event = stream.record_event()
    stream.charge(100)  # after the event: it does not wait for this
    gpu.clock.advance_to(START_NS + 99)
    assert not event.query()
    gpu.clock.advance_to(START_NS + 100)
    assert event.query() and not stream.query()
    assert gpu.Event().query()  # never recorded


def test_recording_again_moves_an_event():
    gpu = device()
    stream, event = gpu.Stream(), gpu.Event()
    event.record(stream)
    assert event.query()
    stream.charge(100)
    event.record(stream)
    assert not event.query()


def test_a_stream_that_waits_starts_after_the_other():
    gpu = device()
    compute, copies, third = gpu.Stream(), gpu.Stream(), gpu.Stream()
    copies.charge(300)
    compute.wait_event(copies.record_event())
    assert compute.charge(10) == (START_NS + 300, START_NS + 310)
    third.wait_stream(compute)
    assert third.charge(5) == (START_NS + 310, START_NS + 315)
    copies.wait_event(VirtualEvent(gpu, START_NS + 50))  # done before its own work is: nothing changes
    assert copies.free_at_ns == START_NS + 300


def test_waiting_for_an_event_on_the_host_takes_time_and_runs_what_falls_due():
    gpu = device()
    stream = gpu.Stream()
    stream.charge(100)
    event = stream.record_event()
    ran = noted(gpu.clock, 60, 160)
    event.synchronize()
    assert gpu.clock.now_ns == START_NS + 100 and ran == [(0, 60)]
    stream.charge(100)
    stream.synchronize()
    assert gpu.clock.now_ns == START_NS + 200 and len(ran) == 2


def test_the_current_stream_is_the_innermost_one():
    gpu = device()
    stream, event = gpu.Stream(), gpu.Event()
    stream.charge(100)
    with gpu.stream(stream):
        assert gpu.current_stream() is stream
        event.record()
        with gpu.StreamContext(gpu.Stream()) as inner:
            assert gpu.current_stream() is inner
            event.wait()
            assert inner.free_at_ns == START_NS + 100
    assert gpu.current_stream() is gpu.streams[0] and len(gpu.streams) == 1
    assert event.done_at_ns == START_NS + 100


def test_the_time_between_events_is_in_milliseconds():
    gpu = device()
    stream = gpu.Stream()
    begin = stream.record_event()
    stream.charge(2_500_000)
    assert begin.elapsed_time(stream.record_event()) == 2.5
