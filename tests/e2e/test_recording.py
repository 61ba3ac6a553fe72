"""A day of a real server as a trace: with stock cache and with TokenCake, killed in the middle, read back."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from tests.e2e.test_launcher_modes import environment
from tests.e2e.test_outputs_equal import LAUNCHER
from tests.support.scenario import tokens
from tests.support.server import ServerProcess, demo_model_dir

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

POOL = ("--max-total-tokens", "4096", "--hicache-ratio", "2")
TOKENCAKE = ("--enable-tokencake", "--tokencake-offload-policy", "eager", "--tokencake-stall-floor-s", "0.1",
             "--tokencake-min-offload-tokens", "16")
TOOL_S = 0.5
SEEN_LATE_MS = 2000  # by which a client on a busy machine sees an answer after the server has written its end
TURNS = 3
AGENTS = ("ada", "bob")


def event(server: ServerProcess, **fields: object) -> None:
    server.post("/v1/tokencake/events", fields)


def day(server: ServerProcess) -> list[dict]:
    """Two agents in turns, with a tool after each turn but the last; returns what the client saw of each request."""
    seen = []
    history = {agent: tokens("system", 530) + tokens(agent, 77) for agent in AGENTS}
    for turn in range(TURNS):
        for agent in AGENTS:
            prompt = history[agent]
            answer = server.generate(prompt, 9 + turn, sampling_params={"ignore_eos": True},
                                     tokencake={"agent_id": agent, "agent_type": "coder"})
            meta = answer["meta_info"]
            seen.append({"agent": agent, "turn": turn, "output": answer["output_ids"], "cached": meta["cached_tokens"],
                         "lengths": (meta["prompt_tokens"], meta["completion_tokens"]), "end": time.monotonic()})
            history[agent] = prompt + answer["output_ids"] + tokens((agent, turn), 60)
            event(server, event="stall_started", agent_id=agent, kind="search", estimated_duration_s=0.8)
        time.sleep(TOOL_S)
        for agent in AGENTS:
            event(server, event="stall_finished", agent_id=agent)
    return seen


def kill(server: ServerProcess) -> None:
    """End the scheduler as SGLang does, without a word before."""
    for child in server.children():
        child.kill()


def rows_of(path) -> list[dict]:
    if path.suffix == ".csv":
        with open(path, newline="") as file:
            return [{name: int(value) for name, value in row.items()} for row in csv.DictReader(file)]
    return [json.loads(line) for line in path.read_text().splitlines()]


def check_against_client(rows: list[dict], seen: list[dict]) -> None:
    """A row for each request, in order, with its session, lengths and waits."""
    assert len(rows) == len(seen) == TURNS * len(AGENTS)
    ends: dict[str, dict] = {}
    for row, call in zip(rows, seen, strict=True):
        assert (row["session_id"], row["round_idx"]) == (AGENTS.index(call["agent"]), call["turn"])
        prompt = row["input_length"] if "input_length" in row else row["prefix_len"] + row["input_len"]
        output = row["output_length"] if "output_length" in row else row["output_len"]
        assert (prompt, output) == call["lengths"]
        before = ends.get(call["agent"])
        assert row["prefix_len"] == (sum(before["call"]["lengths"]) if before else 0)
        if before:
            waited = before["row"]["tool_wait_after_ms"]
            between_answers = (call["end"] - before["call"]["end"]) * 1000
            assert TOOL_S * 1000 <= waited <= between_answers + SEEN_LATE_MS
        ends[call["agent"]] = {"call": call, "row": row}
    assert [row["tool_wait_after_ms"] for row in rows[-len(AGENTS):]] == [0] * len(AGENTS)


@pytest.fixture(scope="module")
def plain() -> list[dict]:
    with ServerProcess(*POOL, module=LAUNCHER) as server:
        return day(server)


def test_stock_serving_is_recorded_with_sessions_found_by_prefix_and_survives_a_kill(plain, tmp_path):
    path = tmp_path / "day.csv"
    with ServerProcess(*POOL, "--record", str(path), module=LAUNCHER) as server:
        assert ": OFF" in server.log() and str(path) in server.log()
        seen = day(server)
        assert server.get("/v1/tokencake/state")[0] == 503
        time.sleep(0.2)
        kill(server)
    assert [call["output"] for call in seen] == [call["output"] for call in plain]
    assert [call["cached"] for call in seen] == [call["cached"] for call in plain]
    check_against_client(rows_of(path), seen)


def test_tokencake_is_recorded_with_agents_tools_and_blocks_and_stopped_by_sigterm(plain, tmp_path):
    path = tmp_path / "day.jsonl"
    with ServerProcess(*POOL, *TOKENCAKE, "--tokencake-record", str(path), module=LAUNCHER) as server:
        seen = day(server)
        aborted = server.post("/generate", {"text": "never", "rid": "x", "sampling_params": {"max_new_tokens": 0}})[0]
        assert aborted in (200, 400) and server.get("/health_generate")[0] == 200
        time.sleep(0.2)
        os.kill(server.process.pid, signal.SIGTERM)
        server.process.wait(timeout=60)
    assert [call["output"] for call in seen] == [call["output"] for call in plain]
    rows = rows_of(path)
    check_against_client(rows, seen)
    assert [row["cached_tokens"] for row in rows] == [call["cached"] for call in seen]
    assert {row["agent_type"] for row in rows} == {"coder"}
    told = [(row["tool_kind"], row["tool_forecast_ms"]) for row in rows]
    assert told == [("search", 800)] * 4 + [(None, None)] * 2
    assert all(TOOL_S * 1000 <= row["tool_ms"] <= row["tool_wait_after_ms"] for row in rows[:4])
    assert {row["hash_ids"][0] for row in rows} == {0} and all(len(row["hash_ids"]) == 2 for row in rows)
    assert [row["timestamp"] for row in rows] == sorted(row["timestamp"] for row in rows)
    text = path.read_text()
    assert not any(agent in text for agent in AGENTS)


@pytest.mark.parametrize(("flags", "said"), [
    (["--record", "day.txt"], ".csv, .jsonl"), (["--record", "/proc/day.csv"], "cannot be written"),
    (["--record", "day.csv", "--dp-size", "2"], "--dp-size 2")])
def test_what_cannot_be_recorded_is_refused_at_the_start(flags, said, tmp_path):
    command = [sys.executable, "-m", LAUNCHER, "--model-path", str(demo_model_dir()), *flags]
    done = subprocess.run(command, env=environment(), cwd=tmp_path, capture_output=True, text=True, timeout=300)
    lines = [line for line in done.stderr.splitlines() if line.startswith("tokencake: ")]
    assert done.returncode == 2 and len(lines) == 1 and said in lines[0]
    assert list(tmp_path.iterdir()) == []
