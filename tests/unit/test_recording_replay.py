"""What the recorder writes is what the emulator's trace readers read."""

from __future__ import annotations

import random
from array import array

import pytest

from tokencake_sglang.core.recording import Recording
from tokencake_sglang.core.types import AgentIdentity
from tokencake_sglang.emulator import workloads
from tokencake_sglang.emulator.spec import WorkloadSpec
from tokencake_sglang.engine.trace_file import TraceFile

AGENTS, TURNS, WAIT_S = 3, 4, 9.5


def recorded(path) -> str:
    """Agents in turns of one second, each with a wait of `WAIT_S` before its next one."""
    recording, chooser = Recording(TraceFile(str(path))), random.Random(1)
    history: dict[int, array] = {}
    for turn in range(TURNS):
        for agent in range(AGENTS):
            prompt = history.get(agent, array("q")) + array("q", chooser.choices(range(50_000), k=700))
            output, at = array("q", chooser.choices(range(50_000), k=20)), turn * (WAIT_S + 1) + agent
            recording.added(at, f"{agent}-{turn}", prompt, AgentIdentity(agent_id=f"a{agent}", agent_type="coder"))
            recording.finished(at + 1, f"{agent}-{turn}", output, 0)
            history[agent] = prompt + output
    return str(path)


@pytest.mark.parametrize(("name", "ending", "more"), [
    ("tracelab", "csv", {}), ("mooncake", "jsonl", {"closed_loop": True})])
def test_sessions_lengths_arrivals_and_waits_come_back(tmp_path, name, ending, more):
    path = recorded(tmp_path / f"day.{ending}")
    programs = workloads.build(WorkloadSpec(name, params={"path": path, **more})).programs
    assert [program.arrival_s for program in programs] == [0.0, 1.0, 2.0]
    for program in programs:
        assert [call.output_tokens for call in program.calls] == [20] * TURNS
        assert [call.tool.duration_s if call.tool else None for call in program.calls] == [WAIT_S] * 3 + [None]


def test_every_request_is_one_program_with_its_own_time_where_sessions_are_not_followed(tmp_path):
    path = recorded(tmp_path / "day.jsonl")
    programs = workloads.build(WorkloadSpec("mooncake", params={"path": path})).programs
    assert [program.arrival_s for program in programs] == sorted(
        turn * (WAIT_S + 1) + agent for turn in range(TURNS) for agent in range(AGENTS))
