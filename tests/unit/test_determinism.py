"""Equal events lead to equal decisions: on two controllers, and in two processes with another hash order."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.replay import random_events, replay
from tokencake_sglang import core

ROOT = Path(__file__).resolve().parents[2]


@settings(deadline=None)
@given(st.randoms(use_true_random=False), st.integers(1, 80))
def test_two_controllers_reach_the_same_from_the_same_events(rng, length):
    events = random_events(rng, length)
    assert replay(events) == replay(events)


@settings(deadline=None)
@given(st.randoms(use_true_random=False), st.integers(1, 80))
def test_a_longer_log_only_adds_to_what_a_shorter_one_led_to(rng, length):
    events = random_events(rng, length)
    short, whole = replay(events[: length // 2]), replay(events)
    assert whole["log"][: len(short["log"])] == short["log"]
    assert whole["replies"][: len(short["replies"])] == short["replies"]


def test_the_order_of_hashes_does_not_matter():
    package = str(Path(core.__file__).resolve().parents[2])
    printed = set()
    for seed in ("1", "2", "3"):
        env = dict(os.environ, PYTHONHASHSEED=seed, PYTHONPATH=os.pathsep.join([package, str(ROOT)]))
        command = [sys.executable, "-m", "tests.support.replay"]
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=True)
        printed.add(done.stdout)
    assert len(printed) == 1
    assert int(printed.pop().split()[0]) > 500
