"""`tokencake calibrate` against a real server, and against an Engine of its own; no time is judged."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.server import PACKAGE_ROOT, ServerProcess, demo_model_dir, other_model_archs
from tokencake_sglang.emulator import calibrate
from tokencake_sglang.emulator.profile import load_profile

pytestmark = pytest.mark.e2e

GRID = ["--new", "16,64,128,256", "--prefix", "0,128,256", "--batch", "1,2,4", "--context", "32,128"]
GRID += ["--decode-steps", "8"]
POOL = 4000


def check(path: Path, source: str) -> dict:
    """The file loads, its coefficients are none below zero and not all zero, and its errors are stated."""
    document = json.loads(path.read_text())
    profile = load_profile(str(path))
    assert profile.pool_tokens == POOL and profile.layers == 4
    assert profile.kv_bytes_per_token == 2 * 4 * 2 * 32 * 4  # K and V, layers, KV heads, head size, float32
    cost = {name: value for name, value in document["cost"].items() if name != "form"}
    assert min(cost.values()) >= 0
    assert profile.prefill_s([(256, 128)]) > 0 and profile.decode_s(4, 512) > 0
    calibration = document["calibration"]
    assert calibration["source"] == source
    assert calibration["held_out_errors"]["prefill"]["points"] >= 12
    assert calibration["held_out_errors"]["decode"]["points"] == 6
    for report in calibration["held_out_errors"].values():
        assert report["held_out"] >= 1
        assert 0 <= report["median_relative_error"] <= report["max_relative_error"]
    text = path.read_text()
    assert str(demo_model_dir().parent) not in text
    return document


def test_a_running_server_is_calibrated_over_its_url(tmp_path, capsys):
    out = tmp_path / "profile.json"
    flags = ("--enable-tokencake", "--max-total-tokens", str(POOL))
    with ServerProcess(*flags, module="tokencake_sglang.launch_server") as server:
        assert calibrate.main([server.base_url, *GRID, "--repeats", "2", "--out", str(out)]) == 0
    document = check(out, "url")
    assert document["step_overhead_s"] == 0.0
    assert any("step_overhead_s is 0" in line for line in document["calibration"]["assumed"])
    assert "median error" in capsys.readouterr().out


def test_an_engine_is_calibrated_in_process_with_its_copies_and_its_overhead(tmp_path):
    out = tmp_path / "profile.json"
    command = [sys.executable, "-m", "tokencake_sglang.cli", "calibrate", "--in-process", *GRID, "--repeats", "2",
               "--out", str(out), "--model-path", str(demo_model_dir()), "--max-total-tokens", str(POOL)]
    paths = [str(PACKAGE_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths),
           "SGLANG_DISABLED_MODEL_ARCHS": other_model_archs(), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    document = check(out, "in-process")
    assert document["step_overhead_s"] > 0
    assert {"copy d2h", "copy h2d"} <= set(document["calibration"]["held_out_errors"])
    assert document["calibration"]["assumed"] == []
