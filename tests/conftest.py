"""Fixtures shared by all tests."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# Drawn anew in long runs only: a green commit stays green, and a new find is looked at by whoever went looking for it.
# How long an example takes says how busy the machine is, and never fails a test.
settings.register_profile(
    "here", derandomize=os.environ.get("TOKENCAKE_STATEFUL") != "long", deadline=None,
    suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("here")


@pytest.fixture(scope="session")
def stock_tree(tmp_path_factory) -> Path:
    """A folder holding the pristine sglang package; TOKENCAKE_STOCK_TREE names one that exists already."""
    given = os.environ.get("TOKENCAKE_STOCK_TREE")
    if given:
        return Path(given)
    from tokencake_sglang.patching import export_stock

    target = tmp_path_factory.mktemp("stock")
    export_stock(target)
    return target


@pytest.fixture(scope="session", autouse=True)
def interrupts_are_heard() -> None:
    """A shell has what it starts in the background ignore interrupts; the tests that send themselves one need it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
