"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


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
