"""Fixtures: a tiny tree with a series, and the real SGLang where one is at hand."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest
from patch_lab import A2, A3, B2, Lab

from tokencake_sglang.patching import PatchError, export_stock


@pytest.fixture
def lab(tmp_path) -> Lab:
    made = Lab(tmp_path)
    made.add_patch("0001-first.patch", {"sglang/srt/a.py": A2, "sglang/srt/new/deep/ext.py": b"EXT = True\n"})
    made.add_patch(
        "0002-second.patch", {"sglang/srt/a.py": A3, "sglang/srt/b.py": B2, "sglang/srt/new/deep/__init__.py": b""}
    )
    made.make_hashes()
    return made


@pytest.fixture(scope="session")
def stock_tree(tmp_path_factory) -> Path:
    """A directory with a pristine copy of the real package, for reading only."""
    dest = tmp_path_factory.mktemp("stock")
    given = os.environ.get("TOKENCAKE_PRISTINE_SGLANG")
    try:
        export_stock(dest, tree=given)
    except PatchError as error:
        pytest.skip(f"no pristine SGLang to test with (set TOKENCAKE_PRISTINE_SGLANG): {error}")
    return dest


@pytest.fixture
def real_copy(stock_tree, tmp_path) -> Path:
    """A pristine copy of the real package that a test may change."""
    shutil.copytree(stock_tree / "sglang", tmp_path / "real" / "sglang")
    return tmp_path / "real"


@pytest.fixture
def tiered(monkeypatch, request):
    """A cache of both tiers with room for as many tokens on the device as the module of the test says (ROOM)."""
    from tests.support.cache_fixture import CacheHarness
    from tests.support.transfer_clock import TransferClock

    clock = TransferClock()
    clock.install(monkeypatch)
    return CacheHarness(clock, device_tokens=request.module.ROOM)


@pytest.fixture
def words(capsys):
    """The printed text since the last call, spaces folded."""

    def read() -> str:
        captured = capsys.readouterr()
        return re.sub(r"\s+", " ", captured.out + captured.err)

    return read
