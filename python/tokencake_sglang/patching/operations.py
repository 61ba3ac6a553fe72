"""Apply and revert the series on a tree, make the expected hashes, export a stock copy."""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import shutil
from pathlib import Path

from tokencake_sglang.patching.errors import PatchError
from tokencake_sglang.patching.series import FileHashes, Series, sha256
from tokencake_sglang.patching.state import FileState, PatchState, PatchStatus, classify, read_file, tree_state
from tokencake_sglang.patching.target import find_version, installed_root, restamp, tree_root
from tokencake_sglang.patching.transaction import Change, write_all

_USABLE = (PatchState.PRISTINE, PatchState.PATCHED, PatchState.MIXED)


def find_root(tree: str | Path | None) -> Path:
    """Root of ``tree``, or of the installed SGLang. Raises PatchError when there is none."""
    root = tree_root(tree) if tree is not None else installed_root()
    if root is None:
        raise PatchError("SGLang is not installed. Install it, or name a tree with --tree DIR.")
    return root


def apply(tree: str | Path | None = None, patches: str | Path | None = None) -> str:
    """Bring the tree to the patched state, also from a half-patched one. Returns one sentence; raises PatchError."""
    return _bring_to(FileState.PATCHED, tree, patches)


def revert(tree: str | Path | None = None, patches: str | Path | None = None) -> str:
    """Bring the tree back to pristine bytes, also from a half-patched one. Returns one sentence; raises PatchError."""
    return _bring_to(FileState.PRISTINE, tree, patches)


def _bring_to(goal: FileState, tree: str | Path | None, patches: str | Path | None) -> str:
    series, root = Series(patches), find_root(tree)
    check_fits(series)
    if not series.names:
        return "The patch series is empty: nothing to do."
    found = tree_state(root, series)
    if found.state not in _USABLE:
        raise PatchError(found.message(tree))
    changes = plan(root, series, found, goal)
    if not changes:
        return f"SGLang {series.version} at {root} is {goal.value} already: nothing to do."
    write_all(root, changes)
    after = tree_state(root, series)
    if any(f.state is not goal for f in after.files):
        raise PatchError(f"Another program changed files at {root} meanwhile. {after.message(tree)}")
    note = ""
    if goal is FileState.PRISTINE and found.version not in (None, series.version):
        note = f" Its version still reads {found.version}; for stock: pip install --no-deps sglang=={series.version}"
    return f"SGLang {series.version} at {root} is {goal.value} now ({len(changes)} files changed).{note}"


def check_fits(series: Series) -> None:
    """Raise PatchError when the hashes were made for other patches than those in the series."""
    differing = sorted(set(series.steps) ^ set(series.hashes))
    if differing:
        raise PatchError(
            f"HASHES.json in {series.directory} does not fit the series: only one names {', '.join(differing)}. "
            "Make it anew: python -m tokencake_sglang.patching hashes --pristine DIR"
        )


def plan(root: Path, series: Series, found: PatchStatus, goal: FileState) -> list[Change]:
    """The changes that bring every file to ``goal``, worked out in memory and checked against the hashes."""
    changes = []
    for file in found.files:
        if file.state is goal:
            continue
        old = read_file(root, file.path)
        new = series.forward(file.path, old) if goal is FileState.PATCHED else series.backward(file.path, old)
        result = classify(file.path, new, file.expected)
        if result.state is not goal:
            raise PatchError(
                f"{file.path}: the series gives sha256 {result.found or 'no file'}, which is not the {goal.value} hash "
                "in HASHES.json. Nothing was changed. The series and its hashes do not belong together."
            )
        changes.append(Change(file.path, old, new))
    return changes


def pristine_contents(root: Path, series: Series) -> dict[str, bytes | None]:
    """Pristine bytes of every touched file of a pristine, patched or half-patched tree, without writing anything."""
    check_fits(series)
    found = tree_state(root, series)
    if found.state not in _USABLE:
        raise PatchError(found.message())
    contents = {file.path: read_file(root, file.path) for file in found.files}
    contents.update({c.path: c.new for c in plan(root, series, found, FileState.PRISTINE)})
    return contents


def compute_hashes(series: Series, contents: dict[str, bytes | None]) -> dict[str, FileHashes]:
    """Hashes before and after the series, from the pristine bytes of the touched files. Raises PatchError."""
    hashes = {}
    for path in sorted(series.steps):
        before = contents[path]
        after = series.forward(path, before)
        if series.backward(path, after) != before:
            raise PatchError(f"{path}: taking the series back does not give the same bytes.")
        hashes[path] = FileHashes(None if before is None else sha256(before), sha256(after))
    return hashes


def write_hashes(pristine: str | Path, patches: str | Path | None = None) -> str:
    """Write HASHES.json for a pristine tree (maintainers only). Returns one sentence; raises PatchError."""
    series, root = Series(patches), tree_root(pristine)
    version = find_version(root)
    if version is not None and version != series.version:
        raise PatchError(f"{root} is SGLang {version}; the series is made for {series.version}.")
    hashes = compute_hashes(series, {path: read_file(root, path) for path in series.steps})
    text = json.dumps({path: entry._asdict() for path, entry in hashes.items()}, indent=2) + "\n"
    (series.directory / "HASHES.json").write_text(text)
    return f"Wrote the hashes of {len(hashes)} files to {series.directory / 'HASHES.json'}."


def export_stock(dest: str | Path, tree: str | Path | None = None, patches: str | Path | None = None) -> Path:
    """Write a pristine copy of the package to ``dest/sglang`` and return that path.

    The touched files are checked against HASHES.json and, where pip's RECORD is at hand, all others against it.
    Put ``dest`` first on PYTHONPATH to run stock SGLang. Raises PatchError when the source is neither pristine nor
    patched, or ``dest/sglang`` exists.
    """
    series, root, target = Series(patches), find_root(tree), Path(dest) / "sglang"
    contents = pristine_contents(root, series)
    if target.exists():
        raise PatchError(f"{target} exists already. Remove it, or name another directory.")
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(dest) / "sglang.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        shutil.copytree(root / "sglang", partial / "sglang", ignore=shutil.ignore_patterns("__pycache__"))
        changes = [Change(path, read_file(partial, path), new) for path, new in contents.items()]
        write_all(partial, [change for change in changes if change.old != change.new])
        stamp = partial / "sglang" / "_version.py"
        version = find_version(root)
        if version is not None and stamp.is_file():
            stamp.write_bytes(restamp(stamp.read_bytes(), version, series.version))
        left = tree_state(partial, series)
        if any(f.state is not FileState.PRISTINE for f in left.files):
            raise PatchError(f"The copy is not pristine. {left.message(dest)}")
        _check_record(root, partial, set(contents) | {"sglang/_version.py"})
        (partial / "sglang").rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def _check_record(root: Path, copy: Path, skip: set[str]) -> None:
    """Compare the copy with the hashes in pip's RECORD, where there is one. Raises PatchError naming the files."""
    wrong = []
    for record in root.glob("sglang-*.dist-info/RECORD"):
        with open(record, newline="", encoding="utf-8") as lines:
            for path, digest, _ in csv.reader(lines):
                if path.startswith("sglang/") and path not in skip and digest.startswith("sha256="):
                    content = read_file(copy, path)
                    if content is None or record_digest(content) != digest:
                        wrong.append(path)
    if wrong:
        raise PatchError(
            f"{len(wrong)} files at {root} are not what pip installed: {', '.join(wrong[:5])}. "
            "Run: pip install --force-reinstall --no-deps sglang, then apply the patches again."
        )


def record_digest(content: bytes) -> str:
    """A hash as RECORD writes it."""
    return "sha256=" + base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
