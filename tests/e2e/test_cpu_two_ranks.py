"""Two tensor-parallel ranks on gloo, with nothing set by hand."""

from __future__ import annotations

import random

import pytest

from tests.support.server import ServerProcess

pytestmark = pytest.mark.e2e


def test_two_ranks_serve_evict_and_load_back_with_equal_outputs():
    prompts = [random.Random(seed).choices(range(300, 4000), k=500) for seed in range(6)]
    flags = ("--tp", "2", "--page-size", "16", "--max-total-tokens", "2048")
    hicache = ("--enable-hierarchical-cache", "--hicache-ratio", "4")
    env = {"OMP_NUM_THREADS": None, "SGLANG_CPU_OMP_THREADS_BIND": None, "SGLANG_NCCL_SO_PATH": None}
    with ServerProcess(*flags, *hicache, env=env) as server:
        ranks = [child for child in server.children() if "scheduler_TP" in child.name() + " ".join(child.cmdline())]
        first = [server.generate(tokens, 16) for tokens in prompts]
        again = [server.generate(tokens, 16) for tokens in prompts]
    assert len(ranks) == 2
    assert [a["output_ids"] for a in again] == [f["output_ids"] for f in first]
    assert sum(a["meta_info"]["cached_tokens_details"]["host"] > 0 for a in again) >= 3
