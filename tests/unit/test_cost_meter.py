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
            eviction_strategy=SimpleNamespace(get_priority=lambda n: spend(0.03)),
            owners=SimpleNamespace(footprint=lambda key: None),
            device_victims=SimpleNamespace(push=lambda n: None), host_victims=SimpleNamespace(push=lambda n: None))
        controller = SimpleNamespace(
            event=lambda p: None, tick=lambda t: None, request_added=lambda *a: spend(6),
            policy=SimpleNamespace(decide=lambda *a: None), forecaster=SimpleNamespace(predict=lambda *a: None))
        self.extension = SimpleNamespace(
            controller=controller, cache=cache, extend_received=lambda r: r, on_request_added=self.added,
            order_waiting_queue=lambda q: spend(8), parks_chunk=lambda *a: False, limit_chunk=lambda *a: None,
            running_growth=lambda *a: 0.0, new_request_growth=lambda *a: 0.0, on_requests_admitted=lambda r: None,
            queue=SimpleNamespace(holds_back=lambda r: False))
        self.scheduler = SimpleNamespace(extensions=[self.extension, SimpleNamespace()], tree_cache=cache)

    def added(self, req: str) -> None:
        """The spatial half takes 1, and tells the temporal half, which takes 6."""
        self.spend(1)
        self.extension.controller.request_added(req)

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
    assert report["step_us_temporal"] == pytest.approx(7) and report["step_us_spatial"] == pytest.approx(2)
    assert report["step_us_tokencake"] == pytest.approx(7 + 2)
    assert report["step_us_eviction"] == pytest.approx(3)
    assert report["step_us_emulator"] == pytest.approx(5 + 11 + 1)
    assert report["step_us_sglang"] == report["step_us_sglang_p50"] == pytest.approx(30 + 4)


def test_a_request_that_comes_is_told_to_both_halves_and_each_pays_for_its_own_part(spend):
    server, meter = metered(spend)
    server.pull()
    server.extension.on_request_added("r")
    server.extension.order_waiting_queue([])
    server.forward()
    server.pull()
    report = meter.report()
    assert report["step_us_temporal"] == pytest.approx(6) and report["step_us_spatial"] == pytest.approx(1 + 8)
    assert report["step_us_tokencake"] == report["step_us_tokencake_p50"] == pytest.approx(15)


def test_what_a_step_does_is_counted_beside_its_time(spend):
    server, meter = metered(spend)
    ours = server.extension
    for decisions in (1, 3):
        server.step()
        for number in range(decisions):
            ours.controller.policy.decide()
            ours.controller.forecaster.predict()
            ours.cache.owners.footprint("a")
            ours.queue.holds_back(number)
            ours.cache.device_victims.push("leaf")
            ours.cache.host_victims.push("leaf")
    server.pull()
    report = meter.report()
    for what in ("decisions", "forecasts", "footprints", "asked"):
        assert (report[f"step_{what}"], report[f"step_{what}_max"]) == (2.0, 3), what
    assert (report["step_victims"], report["step_victims_max"]) == (4.0, 6)


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
