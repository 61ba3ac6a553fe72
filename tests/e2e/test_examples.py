"""Both example programs run against the real server, stock and with TokenCake, as `scripts/demo.sh` runs them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.server import demo_model_dir, other_model_archs

pytestmark = pytest.mark.e2e

COMPARE = Path(__file__).resolve().parents[2] / "examples" / "compare.py"


def test_the_examples_give_the_same_outputs_stock_and_with_moves(stock_tree, tmp_path):
    results = tmp_path / "results.json"
    command = [sys.executable, str(COMPARE), "--model-path", str(demo_model_dir()), "--stock-tree", str(stock_tree),
               "--apps", "1", "--concurrency", "1", "--tool-delay", "1.0", "--log-dir", str(tmp_path),
               "--require-moves", "--out", str(results)]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, "SGLANG_DISABLED_MODEL_ARCHS": other_model_archs()})
    assert done.returncode == 0, done.stdout[-4000:]
    assert "PASS" in done.stdout and "outputs byte-equal between stock-hicache and tokencake" in done.stdout
    assert json.loads(results.read_text())
