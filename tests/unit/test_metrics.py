"""The metrics over the real prometheus_client, in a registry of their own, and through its files of many processes."""

from __future__ import annotations

import os
import subprocess
import sys

from prometheus_client import CollectorRegistry

from tests.unit.test_controller import Server
from tokencake_sglang.engine.metrics import INTERVAL_S, NAMES, Metrics

LABELS = {"model_name": "demo", "tp_rank": 0}
SHOWN = {"model_name": "demo", "tp_rank": "0"}


class Page:
    def __init__(self, **settings) -> None:
        self.server = Server(**settings)
        self.registry = CollectorRegistry()
        self.measured = 0
        self.metrics = Metrics(self.server.controller, self.measure, LABELS, self.registry)

    def measure(self):
        self.measured += 1
        return self.server.mechanism.pool()

    def value(self, name, **labels):
        return self.registry.get_sample_value(f"tokencake:{name}", {**SHOWN, **labels})


def test_the_names_are_those_that_are_registered():
    page = Page()
    counters = {f"{found.name}_total" for found in page.registry.collect() if found.type == "counter"}
    others = {found.name for found in page.registry.collect() if found.type != "counter"}
    assert counters | others == set(NAMES)


def test_counters_follow_the_controllers_and_are_not_counted_twice():
    page = Page()
    page.server.stalled()
    page.metrics.update(10.0)
    page.metrics.update(12.0)
    assert page.value("stalls_started_total") == page.value("offloads_started_total") == 1.0
    page.server.stall("a", call_id="c2")
    page.metrics.update(14.0)
    assert page.value("stalls_started_total") == 2.0


def test_declines_are_counted_by_reason():
    page = Page()
    page.server.mechanism.declines["offload"] = "host_full"
    page.server.stalled()
    page.metrics.update(10.0)
    assert page.value("declined_total", reason="host_full") == 1.0


def test_gauges_show_the_pool_and_the_agents():
    page = Page()
    page.server.stalled()
    page.metrics.update(10.0)
    assert (page.value("device_total"), page.value("device_free"), page.value("agents")) == (100_000.0, 10_000.0, 1.0)


def test_each_ended_stall_is_observed_once():
    page = Page()
    page.server.stalled("a", 20.0)
    page.server.controller.tick(110.0)
    page.server.finish()
    page.metrics.update(10.0)
    page.metrics.update(20.0)
    assert page.value("stall_forecast_ratio_count") == page.value("stall_restore_seconds_count") == 1.0
    assert page.value("stall_forecast_ratio_sum") == 0.5
    assert page.value("stall_late_seconds_bucket", le="0.0") == 1.0


def test_within_a_second_of_the_last_time_nothing_is_measured():
    page = Page()
    for now, measured in ((10.0, 1), (10.0 + INTERVAL_S / 2, 1), (10.0 + INTERVAL_S, 2)):
        page.metrics.update(now)
        assert page.measured == measured


PROGRAM = """
from tests.unit.test_controller import Server
from tokencake_sglang.engine.metrics import Metrics
import sys
assert "prometheus_client" not in sys.modules, "it must not be imported before the directory is set"
server = Server()
server.stalled()
Metrics(server.controller, server.mechanism.pool, {"tp_rank": 0}).update(1.0)
from prometheus_client import CollectorRegistry, multiprocess
registry = CollectorRegistry()
multiprocess.MultiProcessCollector(registry)
print(registry.get_sample_value("tokencake:stalls_started_total", {"tp_rank": "0"}),
      registry.get_sample_value("tokencake:device_free", {"tp_rank": "0"}))
"""


def test_another_process_reads_them_from_the_directory_that_sglang_sets(tmp_path):
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, env=environment, check=False)
    assert done.stdout == "1.0 10000.0\n", done.stderr
