"""The split of a step's real time between SGLang, eviction, TokenCake and the emulator."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from tokencake_sglang.emulator import cost_meter
from tokencake_sglang.emulator.cost_meter import CostMeter


@pytest.fixture
def spend(monkeypatch):
    """Real time that passes only when the test spends it, in microseconds."""
    clock = SimpleNamespace(ns=0)
    monkeypatch.setattr(cost_meter, "time", SimpleNamespace(thread_time_ns=lambda: clock.ns))

    def spend(us: float) -> None:
        clock.ns += int(us * 1000)

    return spend


class FakeServer:
    """A step: pull (5 us of emulator), hooks of ours (7), a pass (11) in which a clock event takes 1, then SGLang (30),
    which evicts: 100 leaves are ranked (3), and a hook of ours is called (2)."""

    def __init__(self, spend) -> None:
        self.spend = spend
        self.clock = SimpleNamespace(now_ns=0, advance_to=lambda t: spend(1))
        self.on_output = self.on_request_added = lambda *a: None
        cache = SimpleNamespace(
            on_step=self.hooks, on_request_ended=lambda *a: None, on_node_inserted=lambda n: None,
            on_node_split=lambda *a: None, on_node_removed=lambda n: spend(2), evict=self.evict,
            on_request_finished=lambda r: None, write_backup=lambda n: spend(4), load_back=lambda n: None,
            eviction_strategy=SimpleNamespace(get_priority=lambda n: spend(0.03)))
        controller = SimpleNamespace(event=lambda p: None, tick=lambda t: None)
        self.extension = SimpleNamespace(
            controller=controller, cache=cache, extend_received=lambda r: r, on_request_added=lambda r: None,
            order_waiting_queue=lambda q: None, parks_chunk=lambda *a: False, on_requests_admitted=lambda r: None)
        self.scheduler = SimpleNamespace(extensions=[self.extension, SimpleNamespace()], tree_cache=cache)

    def hooks(self) -> None:
        """Ours takes 7, of which SGLang's start of a copy, which comes on top, is none."""
        self.spend(7)
        self.extension.cache.write_backup("node")

    def evict(self) -> None:
        for leaf in range(100):
            self.extension.cache.eviction_strategy.get_priority(leaf)
        self.extension.cache.on_node_removed("node")

    def pull(self) -> None:
        self.spend(5)

    def forward(self) -> None:
        self.spend(11)
        self.clock.advance_to(1)

    def step(self, with_pass: bool = True) -> None:
        self.pull()
        self.extension.cache.on_step()
        if with_pass:
            self.forward()
        self.spend(10)
        self.scheduler.tree_cache.evict()
        self.spend(20)


def metered(spend, since_ns: int = 0) -> tuple[FakeServer, CostMeter]:
    server, meter = FakeServer(spend), CostMeter(since_ns)
    meter.attach(server)
    server.pull()
    return server, meter


def test_time_inside_a_call_counts_for_whoever_is_called(spend):
    server, meter = metered(spend)
    for _ in range(4):
        server.step()
    server.pull()
    report = meter.report()
    assert report["steps_measured"] == 4
    assert report["step_us_tokencake"] == pytest.approx(7 + 2)
    assert report["step_us_eviction"] == pytest.approx(3)
    assert report["step_us_emulator"] == pytest.approx(5 + 11 + 1)
    assert report["step_us_sglang"] == report["step_us_sglang_p50"] == pytest.approx(30 + 4)


def test_no_clock_is_read_for_a_single_leaf(spend, monkeypatch):
    """A read of the thread's clock takes longer than the rank of a leaf."""
    server, _ = metered(spend)
    read, reads = cost_meter.time.thread_time_ns, []
    monkeypatch.setattr(cost_meter, "time", SimpleNamespace(thread_time_ns=lambda: reads.append(1) or read()))
    server.step()
    assert len(reads) < 20


def test_iterations_without_a_pass_and_those_before_the_start_are_left_out(spend):
    server, meter = metered(spend, since_ns=100)
    server.step()
    server.clock.now_ns = 100
    server.step(with_pass=False)
    server.pull()
    assert meter.report()["steps_measured"] == 1  # the step that ended at the start or later
    server.step(with_pass=False)
    server.step()
    server.pull()
    assert meter.report()["steps_measured"] == 2


def test_a_run_without_steps_reports_zeros(spend):
    _, meter = metered(spend)
    assert meter.report()["step_us_tokencake_p99"] == 0.0
