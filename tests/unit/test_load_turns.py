"""Turns after a tool: what counts as ready at the return, and two runs of the same programs turn by turn."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tests.support.emulation import run_document
from tokencake_sglang.emulator.cells import Experiment, Grid
from tokencake_sglang.emulator.clients import CallRun, ProgramRun
from tokencake_sglang.emulator.clock import SECOND
from tokencake_sglang.emulator.load_turns import compared, turns_of
from tokencake_sglang.emulator.observe import Watch
from tokencake_sglang.emulator.profile import load_profile
from tokencake_sglang.emulator.program import Call, Program, Text
from tokencake_sglang.emulator.report import build_report
from tokencake_sglang.emulator.returns import AtReturn, summary
from tokencake_sglang.emulator.spec import Configuration
from tokencake_sglang.emulator.table import markdown

PROFILE = load_profile("qwen2.5-14b@a100-80gb?h2d_bytes_per_s=16e9")
LONG, SHORT = 10_000, 1_000  # tokens whose load takes 123 and 12 ms on this link
READY = AtReturn(30_000, 0, 0, 0, 0)


def turn(name: str, first_token_s: float | None, loaded: int = 0, tool_s: float | None = 5.0,
         found: AtReturn = READY) -> dict[str, Any]:
    return {"app_id": "a", "name": name, "submitted_s": 100.0, "after_tool_s": tool_s,
            "first_token_s": None if first_token_s is None else 100.0 + first_token_s, "cached_host_tokens": loaded,
            "at_return": found.to_dict() if tool_s else None}


def run_of(*calls: dict[str, Any]) -> dict[Any, Any]:
    return turns_of({"profile": PROFILE.to_dict(), "calls": list(calls)})


def test_kv_is_ready_when_nothing_is_missing_or_on_its_way():
    for found, ready, away in (
            (READY, True, False), (AtReturn(30_000, 0, 0, 0, 20_000), True, True),
            (AtReturn(10_000, 20_000, 0, 0, 0), False, True), (AtReturn(10_000, 0, 20_000, 0, 0), False, True),
            (AtReturn(10_000, 0, 0, 20_000, 0), False, True), (AtReturn(30_000, 0, 63, 0, 63), True, False),
            (AtReturn(30_000, 0, 64, 0, 0), False, True)):
        assert (found.is_ready, found.was_away) == (ready, away), found


def test_readiness_is_a_share_of_the_long_stalls_whose_kv_was_away():
    found = summary([
        turn("kept", 0.1), turn("back", 0.2, found=AtReturn(9, 0, 0, 0, 900)),
        turn("loading", 0.3, found=AtReturn(9, 900, 0, 0, 0)), turn("on host", 0.4, found=AtReturn(9, 0, 900, 0, 0)),
        turn("lost", 0.5, found=AtReturn(9, 0, 0, 900, 0)), turn("short tool", 0.6, tool_s=2.0),
        turn("no tool", 0.7, tool_s=None), turn("unanswered", None)])
    assert (found["stalls"], found["away"], found["ready"], found["ready_share"]) == (6, 4, 1, 0.25)
    assert (found["loading"], found["lost"], found["turns"]) == (1, 1, 6)
    assert found["first_token_p50_s"] == pytest.approx(0.3) and found["first_token_mean_s"] == pytest.approx(0.35)


def test_without_turns_there_is_no_share_and_no_median():
    found = summary([turn("no tool", 0.7, tool_s=None)])
    assert found["turns"] == found["stalls"] == 0
    assert found["ready_share"] is None and found["first_token_p50_s"] is None


def test_a_turn_is_compared_with_itself_and_sorted_by_whose_load_was_long():
    stock = run_of(turn("a", 0.9, LONG), turn("b", 0.7, LONG), turn("c", 0.2), turn("d", 0.1, SHORT), turn("e", 0.5))
    mine = run_of(turn("a", 0.3), turn("b", 0.1), turn("c", 0.8, LONG), turn("d", 0.1), turn("f", 9.0, LONG))
    found = compared(mine, stock)
    assert (found["stock_turns"], found["stock_p50_s"], found["stock_stock_p50_s"]) == (
        2, pytest.approx(0.1), pytest.approx(0.7))
    assert found["stock_ratio"] == pytest.approx(1 / 7)
    assert (found["either_turns"], found["either_p50_s"]) == (3, pytest.approx(0.3))
    assert (found["other_turns"], found["other_ratio"]) == (1, pytest.approx(1.0))


def test_a_kind_without_turns_has_no_ratio():
    found = compared(run_of(turn("a", 0.1)), run_of(turn("a", 0.2)))
    assert found["stock_turns"] == 0 and found["stock_ratio"] is None and found["other_ratio"] == pytest.approx(0.5)


def test_the_report_has_a_table_of_turns_only_where_there_are_turns():
    plan = Experiment("tool_turns", {}, Grid().cells(), (
        Configuration("hicache-lpm"), Configuration("tokencake", tokencake={})), "a-profile")

    def report(**calls: list[dict[str, Any]]) -> dict[str, Any]:
        results = {}
        for job in plan.jobs():
            made = calls.get(job.configuration.name.partition("-")[0], [])
            results[job.file] = run_document(job.spec, [5.0], offloads=1) | {
                "profile": PROFILE.to_dict(), "calls": made, "returns": summary(made)}
        return build_report(plan, results, [])

    with_turns = report(hicache=[turn("x", 0.8, LONG)], tokencake=[turn("x", 0.2, found=AtReturn(9, 0, 0, 0, 900))])
    runs = {run["configuration"]: run for run in with_turns["cells"][0]["runs"]}
    assert runs["tokencake"]["load_turns"]["stock_ratio"] == pytest.approx(0.25)
    row = next(line for line in markdown(with_turns).splitlines() if line.startswith("| tokencake | 1 | 0.20 "))
    assert row.split(" | ")[4:6] == ["0.20", "0.250"] and "100.0 %" in row
    assert "first token" not in markdown(report())
    assert report()["cells"][0]["runs"][1]["load_turns"] is None


def test_an_upload_is_idle_until_its_agents_call_is_scheduled_and_never_once_the_call_is_served():
    watch = Watch({}, lambda *event: None)
    watch.clock = SimpleNamespace(now_ns=0)
    call = CallRun(Call("x", "agent", "t", (Text("x", 10),), 4), ProgramRun(Program("app", ()), 0))
    watch._landed("app:agent", 100)
    watch.clock.now_ns = 2 * SECOND
    watch._returned(call)
    assert (watch.counts.wasted_token_ns, call.uploaded_tokens) == (200 * SECOND, 100)
    watch._landed("app:agent", 40)  # late: the call that waits for it runs
    watch.clock.now_ns = 9 * SECOND
    watch.close()
    assert (watch.counts.wasted_token_ns, call.uploaded_tokens) == (200 * SECOND, 140)


def test_an_upload_that_has_left_again_is_idle_only_while_it_lay_there():
    watch = Watch({}, lambda *event: None)
    watch.clock = SimpleNamespace(now_ns=0)
    watch._landed("app:agent", 100)
    watch.clock.now_ns = SECOND
    watch._landed("app:agent", 20)
    watch.clock.now_ns = 3 * SECOND
    watch._left(SimpleNamespace(agent_owners={"app:agent": None, "app:other": None}), 50)
    assert watch.counts.wasted_token_ns == (20 * 2 + 30 * 3) * SECOND
    watch._left(SimpleNamespace(), 50)  # nobody's
    watch.clock.now_ns = 4 * SECOND
    call = CallRun(Call("x", "agent", "t", (Text("x", 10),), 4), ProgramRun(Program("app", ()), 0))
    watch._returned(call)
    assert (watch.counts.wasted_token_ns, call.uploaded_tokens) == ((40 + 90 + 70 * 4) * SECOND, 70)
