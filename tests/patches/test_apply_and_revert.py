"""Apply and revert on a tree: all or nothing, repeatable, and back to the same bytes."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from patch_lab import A1, A3

from tokencake_sglang.core.errors import TokenCakeError
from tokencake_sglang.patching import PatchError, PatchState, operations, require_patched, status


def test_apply_then_revert_gives_the_same_tree(lab, words):
    folders = {p for p in lab.tree.rglob("*") if p.is_dir()}
    assert lab.run("check") == 1
    assert lab.run("apply") == 0
    assert lab.contents() == lab.patched
    assert lab.run("check") == 0
    assert lab.run("revert") == 0
    assert lab.contents() == lab.pristine
    assert {p for p in lab.tree.rglob("*") if p.is_dir()} == folders
    assert lab.run("check") == 1


def test_a_second_apply_and_a_second_revert_say_so_and_change_nothing(lab, words):
    lab.run("apply")
    times = {p: p.stat().st_mtime_ns for p in lab.tree.rglob("*.py")}
    words()
    assert lab.run("apply") == 0
    assert "patched already: nothing to do" in words()
    assert {p: p.stat().st_mtime_ns for p in lab.tree.rglob("*.py")} == times
    assert lab.run("revert") == 0
    words()
    assert lab.run("revert") == 0
    assert "pristine already: nothing to do" in words()


def test_a_changed_file_stops_apply_and_revert_and_the_message_says_what_to_do(lab, words):
    target = lab.tree / "sglang/srt/b.py"
    for state, command in ((lab.pristine, "apply"), (lab.patched, "revert")):
        target.write_bytes(b"mine\n")
        before = lab.contents()
        assert lab.run("check") == 2
        words()
        assert lab.run(command) == 2
        said = words()
        assert "sglang/srt/b.py: found sha256 " in said and "(pristine) or " in said
        assert lab.contents() == before
        target.write_bytes(state["sglang/srt/b.py"])
        lab.run("apply")


def test_for_the_installed_package_the_message_names_the_reinstall_command(lab):
    (lab.tree / "sglang/srt/b.py").write_bytes(b"mine\n")
    message = status(lab.tree, lab.patches).message()
    assert "pip install --force-reinstall --no-deps sglang==0.5.17" in message


def test_a_missing_file_and_an_unknown_new_file_are_foreign(lab, words):
    (lab.tree / "sglang/srt/a.py").unlink()
    stray = lab.tree / "sglang/srt/new/deep/ext.py"
    stray.parent.mkdir(parents=True)
    stray.write_bytes(b"something else\n")
    assert lab.run("check", "-v") == 2
    said = words()
    assert "missing sglang/srt/a.py: found sha256 no file" in said
    assert "foreign sglang/srt/new/deep/ext.py" in said and "removed by hand" in said


@pytest.mark.parametrize("command", ["apply", "revert"])
def test_a_half_patched_tree_is_told_and_mended(lab, words, command):
    (lab.tree / "sglang/srt/a.py").write_bytes(A3)
    assert lab.run("check", "-v") == 2
    said = words()
    assert "half-patched" in said and "patched sglang/srt/a.py" in said and "pristine sglang/srt/b.py" in said
    with pytest.raises(PatchError, match="half-patched"):
        require_patched(lab.tree, lab.patches)
    assert lab.run(command) == 0
    assert lab.contents() == (lab.patched if command == "apply" else lab.pristine)


@pytest.mark.parametrize(("command", "failing"), [*(("apply", n) for n in (1, 2, 3, 4)), ("revert", 1), ("revert", 2)])
def test_when_a_write_fails_every_file_is_put_back(lab, words, monkeypatch, command, failing):
    if command == "revert":
        lab.run("apply")
    before = lab.contents()
    real, calls = os.replace, []

    def replace(source, target):
        calls.append(target)
        if len(calls) == failing:
            raise OSError(28, "No space left on device")
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    assert lab.run(command) == 2
    monkeypatch.undo()
    assert len(calls) >= failing
    assert "No space left" in words()
    assert lab.contents() == before


def test_when_a_folder_cannot_be_made_nothing_changes_and_no_temporary_file_is_left(lab, words):
    (lab.tree / "sglang/srt/new").write_bytes(b"a file where the series needs a folder\n")
    before = lab.contents()
    assert lab.run("apply") == 2
    assert "every file is as it was before" in words()
    assert lab.contents() == before


def test_hashes_of_another_series_stop_apply_before_anything_is_written(lab, words):
    hashes = json.loads((lab.patches / "HASHES.json").read_text())
    hashes["sglang/srt/b.py"]["after"] = "0" * 64
    (lab.patches / "HASHES.json").write_text(json.dumps(hashes))
    assert lab.run("apply") == 2
    assert "do not belong together" in words()
    assert lab.contents() == lab.pristine
    del hashes["sglang/srt/b.py"]
    (lab.patches / "HASHES.json").write_text(json.dumps(hashes))
    assert lab.run("apply") == 2
    assert "only one names sglang/srt/b.py" in words()
    assert lab.contents() == lab.pristine


def test_python_never_runs_stale_bytecode_after_apply_or_revert(lab):
    def value():
        code = "import sglang.srt.b as b, importlib.util as u; print(b.VALUE, u.find_spec('sglang.srt.new') is None)"
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        return subprocess.check_output(
            [sys.executable, "-S", "-c", code], env={**environment, "PYTHONPATH": str(lab.tree)}, text=True
        ).strip()

    seen = []
    for command in ("check", "apply", "revert", "apply", "revert"):
        lab.run(command)
        seen.append(value())
    assert list((lab.tree / "sglang/srt/__pycache__").glob("b.*.pyc"))
    assert seen == ["1 True", "2 False", "1 True", "2 False", "1 True"]


def test_the_bytecode_of_a_removed_new_file_goes_with_it(lab):
    lab.run("apply")
    subprocess.run([sys.executable, "-m", "compileall", "-q", str(lab.tree)], check=True)
    assert list(lab.tree.glob("sglang/srt/new/deep/__pycache__/*.pyc"))
    lab.run("revert")
    assert not (lab.tree / "sglang/srt/new").exists()


def test_modes_are_kept_and_files_shared_by_hard_link_stay_as_they_are(lab, tmp_path):
    target, shared = lab.tree / "sglang/srt/a.py", tmp_path / "cache.py"
    target.chmod(0o640)
    os.link(target, shared)
    lab.run("apply")
    assert target.stat().st_mode & 0o777 == 0o640
    assert shared.read_bytes() == A1 and target.read_bytes() == A3


def test_a_source_checkout_is_a_tree_and_needs_no_version_file(lab, tmp_path):
    checkout = tmp_path / "checkout" / "python"
    checkout.parent.mkdir()
    lab.tree.rename(checkout)
    (checkout / "sglang/_version.py").unlink()
    assert "patched now" in operations.apply(checkout.parent, lab.patches)
    assert (checkout / "sglang/srt/a.py").read_bytes() == A3


@pytest.mark.parametrize("where", ["metadata", "_version.py", "two metadata"])
def test_another_version_is_refused_whatever_the_files_hold(lab, words, where):
    if where == "_version.py":
        (lab.tree / "sglang/_version.py").write_text("__version__ = version = '0.5.18'\n")
    versions = {"metadata": ["0.5.18"], "two metadata": ["0.5.17", "0.5.18"]}.get(where, [])
    for version in versions:
        info = lab.tree / f"sglang-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Name: sglang\nVersion: {version}\n\nVersion: 9\n")
    before = lab.contents()
    found = status(lab.tree, lab.patches)
    assert found.state is PatchState.WRONG_VERSION and "0.5.18" in found.version
    assert lab.run("check") == 2 and lab.run("apply") == 2
    assert "pip install sglang==0.5.17" in words()
    assert lab.contents() == before


def test_require_patched_raises_the_common_error_with_the_command_and_passes_when_patched(lab):
    with pytest.raises(TokenCakeError, match="python -m tokencake_sglang.patching apply"):
        require_patched(lab.tree, lab.patches)
    lab.run("apply")
    assert require_patched(lab.tree, lab.patches).ok


def test_a_folder_without_sglang_is_refused(lab, tmp_path, words):
    assert main_on(tmp_path / "nothing", lab) == 2
    assert "is not an SGLang tree" in words()


def main_on(tree, lab):
    from tokencake_sglang.patching.__main__ import main

    return main(["check", "--tree", str(tree), "--patches", str(lab.patches)])


def test_an_empty_series_is_patched_and_apply_does_nothing(lab, words):
    (lab.patches / "series").write_text("# none yet\n")
    (lab.patches / "HASHES.json").write_text("{}\n")
    assert lab.run("check") == 0
    assert lab.run("apply") == 0
    assert "empty" in words()
    with pytest.raises(PatchError, match="series in use is empty"):
        require_patched(lab.tree, lab.patches)
    assert lab.contents() == lab.pristine


def test_export_stock_writes_the_pristine_package_from_any_good_state(lab, tmp_path, words):
    for number, command in enumerate(("check", "apply")):
        lab.run(command)
        before = lab.contents()
        dest = tmp_path / f"stock{number}"
        assert lab.run("export-stock", str(dest)) == 0
        assert {p.relative_to(dest).as_posix() for p in dest.rglob("*") if p.is_file()} == set(lab.pristine)
        assert all((dest / path).read_bytes() == content for path, content in lab.pristine.items())
        assert lab.contents() == before
        assert lab.run("export-stock", str(dest)) == 2
    (lab.tree / "sglang/srt/b.py").write_bytes(b"mine\n")
    assert lab.run("export-stock", str(tmp_path / "stock9")) == 2
    assert not (tmp_path / "stock9").exists()


def test_export_stock_refuses_when_an_untouched_file_is_not_what_pip_installed(lab, tmp_path, words):
    info = lab.tree / "sglang-0.5.17.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Version: 0.5.17\n")
    good = operations.record_digest(b"")
    (info / "RECORD").write_text(f"sglang/__init__.py,{good},0\nsglang/srt/a.py,sha256=other,1\n")
    assert lab.run("export-stock", str(tmp_path / "good")) == 0
    (lab.tree / "sglang/__init__.py").write_text("# changed\n")
    assert lab.run("export-stock", str(tmp_path / "bad")) == 2
    assert "not what pip installed: sglang/__init__.py" in words()
    assert list((tmp_path / "bad").iterdir()) == []


def test_status_of_the_installed_package_imports_neither_sglang_nor_torch(lab):
    code = (
        "import sys; from tokencake_sglang.patching import status; s = status(patches=sys.argv[1]);"
        "print(s.state.name, s.root, sorted({'sglang', 'torch'} & set(sys.modules)))"
    )
    found = subprocess.check_output(
        [sys.executable, "-c", code, str(lab.patches)],
        env={**os.environ, "PYTHONPATH": f"{lab.tree}{os.pathsep}{os.pathsep.join(sys.path)}"},
        text=True,
    )
    assert found.strip() == f"PRISTINE {lab.tree} []"


def test_without_sglang_the_state_says_so(lab):
    code = "import sys; from tokencake_sglang.patching import status; print(status(patches=sys.argv[1]).message())"
    package = os.path.dirname(os.path.dirname(os.path.dirname(operations.__file__)))
    found = subprocess.check_output(
        [sys.executable, "-S", "-c", code, str(lab.patches)], env={"PYTHONPATH": package}, cwd="/", text=True
    )
    assert "SGLang is not installed" in found and "pip install sglang==0.5.17" in found
