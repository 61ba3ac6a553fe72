"""What the examples count and how they compare two runs."""

from __future__ import annotations

import io
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
sys.path.insert(0, str(EXAMPLES))

from common import apps  # noqa: E402
from common.apps import AppResult, Call  # noqa: E402
from common.cli import end_on_signal  # noqa: E402
from common.measure import equal_outputs, summary, table  # noqa: E402
from common.progress import Board  # noqa: E402
from common.server import UPLOAD_LEAD_S, ServerOptions  # noqa: E402


def result(name: str, **outputs: str) -> AppResult:
    return AppResult(name, seconds=2.0, outputs=dict(outputs))


def test_outputs_are_equal_only_if_both_runs_have_all_of_them():
    same, total, different = equal_outputs([result("a", x="1", y="2")], [result("a", x="1", y="2")])
    assert (same, total, different) == (2, 2, [])
    same, total, different = equal_outputs([result("a", x="1", y="2")], [result("a", x="1", z="2")])
    assert (same, total, different) == (1, 3, ["a/y", "a/z"])


def test_outputs_of_another_application_do_not_count_as_equal():
    assert equal_outputs([result("a", x="1")], [result("b", x="1")])[0] == 0


def test_summary_counts_recomputed_tokens_and_what_was_aborted():
    app = result("a")
    app.calls = [Call("w", "x", prompt_tokens=100, cached_tokens=60, host_tokens=20, completion_tokens=5, retractions=1,
                      finish="stop"),
                 Call("w", "y", prompt_tokens=50, cached_tokens=0, host_tokens=0, completion_tokens=5, retractions=0,
                      finish="abort")]
    failed = AppResult("b", seconds=99.0, error="boom")
    column = summary([app, failed], 3.0, {}, {"offloads_completed": 4})
    assert column["prompt tokens recomputed"] == 90
    assert column["prompt tokens loaded on demand"] == 20
    assert column["generations aborted"] == 1 and column["retractions"] == 1
    assert column["applications failed"] == 1 and column["app latency, max (s)"] == 2.0
    assert column["offloads completed"] == 4


def test_table_shows_a_dash_for_what_a_configuration_does_not_have():
    text = table({"stock": {"offloads": None, "seconds": 1.5}, "tokencake": {"offloads": 3, "seconds": 1.25}})
    rows = {line.split()[0]: line.split()[1:] for line in text.splitlines()[2:]}
    assert rows == {"offloads": ["-", "3"], "seconds": ["1.50", "1.25"]}


def test_progress_names_what_every_agent_does_until_its_application_is_done():
    stream = io.StringIO()
    with Board("demo", 2, stream) as board:
        board.set("app-0", "writer", "writing report")
        assert "writer: writing report" in "\n".join(board.lines(0.0))
        board.set("app-0", "writer", "")
        assert "writer" not in "\n".join(board.lines(0.0))
        board.app_done("app-0", 1.0, "fine")
    assert "app-0" in stream.getvalue() and "(1 of 2 done)" in stream.getvalue()
    assert "\x1b" not in stream.getvalue()


def test_the_stock_server_gets_the_same_pool_and_host_tier_but_nothing_of_tokencake():
    options = ServerOptions("model", stock_tree="/stock")
    stock, ours = options.command("stock-hicache", 1), options.command("tokencake", 1)
    assert set(ours) - set(stock) == {
        "tokencake_sglang.launch_server", "--enable-tokencake", "--tokencake-offload-policy", "eager",
        "--tokencake-upload-lead-s", UPLOAD_LEAD_S}
    assert set(stock) - set(ours) == {"sglang.launch_server"}
    assert set(options.command("tokencake-default", 1)) == set(ours) - {
        "--tokencake-offload-policy", "eager", "--tokencake-upload-lead-s", UPLOAD_LEAD_S}
    assert set(options.command("stock-hicache-lpm", 1)) - set(stock) == {"--schedule-policy", "lpm"}
    assert "--enable-hierarchical-cache" not in options.command("stock", 1)
    assert options.environment("stock-hicache")["PYTHONPATH"].startswith("/stock")
    for mode in ("tokencake", "tokencake-default"):
        assert not options.environment(mode).get("PYTHONPATH", "").startswith("/stock")


def test_a_termination_signal_waits_for_no_application_and_starts_none(monkeypatch):
    begun, ended, go_on = [], [], threading.Event()

    def app(title, url, app, number, board, free, prefill):
        begun.append(number)
        time.sleep(0.2)  # the main thread waits for the results
        signal.pthread_kill(threading.main_thread().ident, signal.SIGTERM)
        go_on.wait(20)
        ended.append(number)

    monkeypatch.setattr(apps, "_run_one", app)
    before = signal.getsignal(signal.SIGTERM)
    end_on_signal()
    try:
        with pytest.raises(SystemExit):
            apps.run_apps("demo", "http://127.0.0.1:1", app, count=3, concurrency=1, free=False)
        assert (begun, ended) == ([0], [])
    finally:
        signal.signal(signal.SIGTERM, before)
        go_on.set()
