"""Two tensor-parallel ranks on the CPU (gloo), with nothing set by hand: they serve, evict and load back, write one
trace, and with TokenCake fold the same events and decide the same.

A start with two ranks takes half a minute of two cores, so one server without TokenCake does for three tests.
"""

from __future__ import annotations

import json
import random
import time
from types import SimpleNamespace

import pytest

from tests.e2e.test_outputs_equal import LAUNCHER, POOL, TOKENCAKE, check_answers, settled_state
from tests.support.scenario import Player
from tests.support.server import ServerProcess, hicache_flags

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

TWO = (*POOL, "--tp", "2", "--page-size", "16")
NOTHING_BY_HAND = {"OMP_NUM_THREADS": None, "SGLANG_CPU_OMP_THREADS_BIND": None, "SGLANG_NCCL_SO_PATH": None}
NEW_TOKENS = 16
GRAPH = {"nodes": [{"name": "plan", "kind": "llm", "agent_type": "plan"},
                   {"name": "write", "kind": "llm", "agent_type": "write"}], "edges": [["plan", "write"]]}
PROMPTS = [random.Random(seed).choices(range(300, 3900), k=500) for seed in range(6)]


@pytest.fixture(scope="module")
def without(tmp_path_factory) -> SimpleNamespace:
    """What a server without TokenCake said: of prompts that do not fit together, twice; of the day of agents."""
    trace = tmp_path_factory.mktemp("two-ranks") / "day.csv"
    flags = (*TWO, *hicache_flags(), "--record", str(trace))
    with ServerProcess(*flags, module=LAUNCHER, env=NOTHING_BY_HAND) as server:
        ranks = [child for child in server.children() if "scheduler_TP" in child.name() + " ".join(child.cmdline())]
        first, again = ([server.generate(tokens, NEW_TOKENS) for tokens in PROMPTS] for _ in range(2))
        time.sleep(0.2)
        rows = trace.read_text().splitlines()[1:]
        return SimpleNamespace(ranks=len(ranks), first=first, again=again, rows=rows,
                               day=Player(server, "off").play(concurrency=4))


def test_two_ranks_serve_evict_and_load_back_with_equal_outputs(without):
    assert without.ranks == 2
    assert [a["output_ids"] for a in without.again] == [f["output_ids"] for f in without.first]
    assert sum(a["meta_info"]["cached_tokens_details"]["host"] > 0 for a in without.again) >= 3


def test_two_ranks_write_one_trace(without):
    assert len(without.rows) == 2 * len(PROMPTS)


def test_two_ranks_decide_alike_and_answer_as_without_tokencake(without, tmp_path):
    log = tmp_path / "decisions"
    flags = (*TWO, *TOKENCAKE, "--tokencake-decision-log", str(log))
    with ServerProcess(*flags, module=LAUNCHER, env=NOTHING_BY_HAND) as server:
        player = Player(server, "on")
        assert player.play(concurrency=4) == without.day
        check_answers(player)
        run_a_graph(server)
        state = settled_state(server)
    assert state["counters"]["offloads_completed"] > 0 and state["counters"]["uploads_completed"] > 0
    first, second = (read_log(log, rank) for rank in (0, 1))
    assert first == second
    assert {"Offload", "Upload"} <= {line["action"] for line in first}
    assert [line["agent"] for line in first if line["agent"].startswith("of-the-graph")], "no decision in its run"


def run_a_graph(server) -> None:
    """Both ranks follow the run of a graph: a rank that did not would find other places, and other decisions."""
    status, text = server.post("/v1/tokencake/graphs", GRAPH)
    assert status == 200, text
    graph_id = json.loads(text)["graph_id"]
    for node in ("plan", "write"):
        agent = f"of-the-graph-{node}"
        metadata = {"app_id": "run", "graph_id": graph_id, "node_id": node, "agent_id": agent, "agent_type": node}
        server.generate(PROMPTS[0], NEW_TOKENS, tokencake=metadata)
        runs = json.loads(server.get("/v1/tokencake/state")[1])["runs"]
        assert [(run["graph_id"], run["program"]) for run in runs] == [(graph_id, "run")]
        for event in ({"event": "stall_started", "kind": "search", "estimated_duration_s": 1.0},
                      {"event": "stall_finished"}):
            status, text = server.post("/v1/tokencake/events", {**event, "agent_id": agent})
            assert status == 200, text
    status, text = server.post("/v1/tokencake/events", {"event": "program_finished", "agent_id": agent})
    assert status == 200, text


def read_log(path, rank: int) -> list[dict]:
    return [json.loads(line) for line in open(f"{path}.rank{rank}")]
