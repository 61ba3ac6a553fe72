"""An installed package finds its own copy of the series."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]


def test_a_built_package_carries_the_series_and_reads_it_from_there(tmp_path):
    source, built = tmp_path / "source", tmp_path / "built"
    source.mkdir()
    for name in ("setup.py", "README.md", "pyproject.toml"):
        shutil.copy(REPO / name, source)
    for name in ("patches", "python"):
        shutil.copytree(REPO / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    # A package root without this file would not be found, and shipping is what is tested here.
    (source / "python/tokencake_sglang/__init__.py").touch()
    (source / "python/tokencake_sglang/patching/__init__.py").touch()
    subprocess.run([sys.executable, "setup.py", "-q", "build_py", "-d", str(built)], cwd=source, check=True)
    shutil.rmtree(source)
    code = "from tokencake_sglang.patching.series import Series; s = Series(); print(s.directory, s.version, s.names)"
    shown = subprocess.check_output(
        [sys.executable, "-S", "-c", code], env={"PYTHONPATH": str(built)}, cwd=tmp_path, text=True
    )
    data = built / "tokencake_sglang/patching/data"
    names = tuple(
        line.strip() for line in (REPO / "patches/series").read_text().splitlines() if line[:1] not in ("", "#")
    )
    assert shown.strip() == f"{data} 0.5.17 {names}"
    assert sorted(os.listdir(data)) == sorted(os.listdir(REPO / "patches"))
