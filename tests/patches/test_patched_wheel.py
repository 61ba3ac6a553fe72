"""The patched wheel: installable by pip, patched, honest about its version, and equal for equal input."""

from __future__ import annotations

import csv
import io
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from patch_lab import A3

from tokencake_sglang.patching import PatchState, status
from tokencake_sglang.patching.operations import record_digest

INFO = "sglang-0.5.17.dist-info/"
NAME = "sglang-0.5.17-py3-none-any.whl"


def pack(files: dict[str, bytes], target: Path) -> Path:
    """A wheel of the given files, with metadata."""
    entries = dict(files)
    entries[INFO + "METADATA"] = b"Metadata-Version: 2.1\nName: sglang\nVersion: 0.5.17\n\nVersion: of the text\n"
    entries[INFO + "WHEEL"] = b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    rows = [f"{name},{record_digest(content)},{len(content)}\n" for name, content in entries.items()]
    entries[INFO + "RECORD"] = ("".join(rows) + INFO + "RECORD,,\n").encode()
    with zipfile.ZipFile(target, "w") as wheel:
        for name, content in entries.items():
            wheel.writestr(name, content)
    return target


def pip_install(wheel: Path, target: Path) -> None:
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", str(target)]
    subprocess.run([*command, str(wheel)], check=True, env={**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"})


@pytest.fixture
def built(lab, tmp_path):
    source = pack(lab.pristine, tmp_path / NAME)
    assert lab.run("wheel", "--from", str(source), "--out", str(tmp_path / "out"), tree=False) == 0
    return tmp_path / "out" / "sglang-0.5.17+tokencake.3-py3-none-any.whl"


def test_the_wheel_installs_with_pip_and_is_patched_at_its_own_version(lab, built, tmp_path):
    pip_install(built, tmp_path / "site")
    found = status(tmp_path / "site", lab.patches)
    assert (found.state, found.version) == (PatchState.PATCHED, "0.5.17+tokencake.3")
    assert (tmp_path / "site/sglang/srt/a.py").read_bytes() == A3
    code = (
        "from importlib.metadata import version; import sglang._version as v; print(version('sglang'), v.version_tuple)"
    )
    shown = subprocess.check_output(
        [sys.executable, "-S", "-c", code], env={"PYTHONPATH": str(tmp_path / "site")}, text=True
    )
    assert shown.strip() == "0.5.17+tokencake.3 (0, 5, 17, 'tokencake.3')"


def test_stock_exported_from_an_installed_patched_wheel_is_the_pristine_package(lab, built, tmp_path):
    pip_install(built, tmp_path / "site")
    lab.tree = tmp_path / "site"
    assert lab.run("export-stock", str(tmp_path / "stock")) == 0
    exported = {
        p.relative_to(tmp_path / "stock").as_posix(): p.read_bytes()
        for p in (tmp_path / "stock").rglob("*")
        if p.is_file()
    }
    assert exported == lab.pristine


def test_reverting_an_installed_patched_wheel_says_that_its_version_still_reads_patched(lab, built, tmp_path, words):
    pip_install(built, tmp_path / "site")
    lab.tree = tmp_path / "site"
    assert lab.run("revert") == 0
    assert "still reads 0.5.17+tokencake.3" in words()


def test_the_record_names_every_file_with_its_hash_and_size(built):
    with zipfile.ZipFile(built) as wheel:
        assert wheel.testzip() is None
        info = "sglang-0.5.17+tokencake.3.dist-info/"
        rows = list(csv.reader(io.StringIO(wheel.read(info + "RECORD").decode())))
        assert sorted(row[0] for row in rows) == sorted(wheel.namelist())
        for name, digest, size in rows:
            if name != info + "RECORD":
                assert (record_digest(wheel.read(name)), len(wheel.read(name))) == (digest, int(size))
        metadata = wheel.read(info + "METADATA").decode()
    assert "\nVersion: 0.5.17+tokencake.3\n" in metadata and metadata.endswith("\nVersion: of the text\n")


def test_equal_input_gives_a_byte_identical_wheel(lab, built, tmp_path):
    first = built.read_bytes()
    source = pack(dict(reversed(lab.pristine.items())), tmp_path / NAME)
    assert lab.run("wheel", "--from", str(source), "--out", str(tmp_path / "out"), tree=False) == 0
    assert built.read_bytes() == first
    with zipfile.ZipFile(built) as wheel:
        assert {info.date_time for info in wheel.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_a_wheel_that_is_not_the_pristine_one_is_refused(lab, tmp_path, words):
    cases = {
        "not pristine": pack({**lab.pristine, "sglang/srt/b.py": b"mine\n"}, tmp_path / NAME),
        "which the series is made for": pack(lab.pristine, tmp_path / "sglang-0.5.18-py3-none-any.whl"),
    }
    (tmp_path / "cut").mkdir()
    cases["Cannot read the wheel"] = tmp_path / "cut" / NAME
    cases["Cannot read the wheel"].write_bytes(cases["not pristine"].read_bytes()[:-50])
    (tmp_path / "bad").mkdir()
    cases["is damaged"] = pack(lab.pristine, tmp_path / "bad" / NAME)
    with zipfile.ZipFile(cases["is damaged"], "a") as wheel:
        wheel.writestr("sglang/extra.py", b"")
    for reason, source in cases.items():
        assert lab.run("wheel", "--from", str(source), "--out", str(tmp_path / "out"), tree=False) == 2
        assert reason in words()
    assert not list((tmp_path / "out").glob("*"))


def test_the_real_wheel_builds_installs_and_is_patched(tmp_path):
    source = os.environ.get("TOKENCAKE_PRISTINE_WHEEL")
    if not source:
        pytest.skip("set TOKENCAKE_PRISTINE_WHEEL to the stock wheel of the supported SGLang release")
    from tokencake_sglang.patching.wheel import build_wheel

    pip_install(build_wheel(source, tmp_path / "out"), tmp_path / "site")
    found = status(tmp_path / "site")
    assert found.state is PatchState.PATCHED and "+tokencake." in found.version
