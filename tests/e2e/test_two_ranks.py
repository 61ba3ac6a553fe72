"""Two tensor-parallel ranks on the CPU (gloo) fold the same events and decide the same."""

from __future__ import annotations

import json

import pytest

from tests.e2e.test_outputs_equal import LAUNCHER, POOL, TOKENCAKE, check_answers, settled_state
from tests.support.scenario import Player
from tests.support.server import ServerProcess

pytestmark = pytest.mark.e2e


def test_two_ranks_decide_alike_and_answer_as_without_tokencake(tmp_path):
    two = (*POOL, "--tp", "2")
    with ServerProcess(*two, module=LAUNCHER) as server:
        expected = Player(server, "off").play(concurrency=1)
    log = tmp_path / "decisions"
    with ServerProcess(*two, *TOKENCAKE, "--tokencake-decision-log", str(log), module=LAUNCHER) as server:
        player = Player(server, "on")
        assert player.play(concurrency=4) == expected
        check_answers(player)
        state = settled_state(server)
    assert state["counters"]["offloads_completed"] > 0 and state["counters"]["uploads_completed"] > 0
    first, second = (read_log(log, rank) for rank in (0, 1))
    assert first == second
    assert {"Offload", "Upload"} <= {line["action"] for line in first}


def read_log(path, rank: int) -> list[dict]:
    return [json.loads(line) for line in open(f"{path}.rank{rank}")]
