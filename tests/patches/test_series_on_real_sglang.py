"""The real series on a copy of the real package."""

from __future__ import annotations

import subprocess
import sys

from tokencake_sglang.patching import PatchState, operations, status
from tokencake_sglang.patching.series import Series


def contents(root):
    return {p.relative_to(root): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def test_the_series_applies_to_the_real_package_and_reverts_to_the_same_bytes(real_copy):
    before, paths = contents(real_copy), set(Series().hashes)
    operations.apply(real_copy)
    assert status(real_copy).state is PatchState.PATCHED
    changed = {p.as_posix() for p, content in contents(real_copy).items() if before.get(p) != content}
    assert changed == paths
    for path in paths:
        compile((real_copy / path).read_bytes(), path, "exec", dont_inherit=True)
    operations.revert(real_copy)
    assert contents(real_copy) == before


def test_git_agrees_with_our_applier_about_every_patch(real_copy, tmp_path):
    series = Series()
    operations.apply(real_copy)
    ours = {path: (real_copy / path).read_bytes() for path in series.hashes}
    operations.revert(real_copy)
    for name in series.names:
        subprocess.run(
            ["git", "apply", "--unsafe-paths", f"--directory={real_copy}", str(series.directory / name)],
            cwd="/",
            check=True,
        )
    assert {path: (real_copy / path).read_bytes() for path in series.hashes} == ours


def test_the_command_line_runs_as_a_module(real_copy):
    command = [sys.executable, "-m", "tokencake_sglang.patching"]
    for arguments in (["apply"], ["check", "-v"]):
        subprocess.run([*command, *arguments, "--tree", real_copy], check=True)
