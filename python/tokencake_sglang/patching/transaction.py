"""Write several files so that either all of them change or none does."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from tokencake_sglang.patching.errors import PatchError


@dataclass(frozen=True)
class Change:
    """New content of one file below the root; None as ``old`` or ``new`` means that the file does not exist."""

    path: str
    old: bytes | None
    new: bytes | None


def write_all(root: Path, changes: list[Change]) -> None:
    """Make all changes or none. Raises PatchError with the cause; the tree is then as it was.

    First every new content is written to a temporary file beside its target (a full disk or a read-only directory
    shows here), then the files are swapped in one by one with ``os.replace``. A swap also leaves alone what other
    trees share with this one through hard links, as some installers make them.
    """
    staged: dict[Change, Path] = {}
    done: list[Change] = []
    try:
        for change in changes:
            if change.new is not None:
                staged[change] = _stage(root / change.path, change.new)
        for change in changes:
            done.append(change)
            _swap(root, change, staged.pop(change, None))
    except BaseException as error:
        for temporary in staged.values():
            temporary.unlink(missing_ok=True)
        stuck = [change.path for change in reversed(done) if not _undo(root, change)]
        for change in changes:
            _prune(root, (root / change.path).parent)
        if stuck:
            raise PatchError(f"Writing below {root} failed ({error}), and so did putting back {stuck}.") from error
        if isinstance(error, OSError):
            raise PatchError(f"Writing below {root} failed ({error}); every file is as it was before.") from error
        raise
    for change in changes:
        if change.new is None:
            _forget_bytecode(root / change.path)
            _prune(root, (root / change.path).parent)


def _stage(target: Path, content: bytes) -> Path:
    """Write ``content`` beside ``target`` with its mode and a later modification time."""
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent)
    temporary = Path(name)
    try:
        with open(handle, "wb") as file:
            file.write(content)
        modified = int(time.time())
        if target.exists():
            shutil.copymode(target, temporary)
            # Python recompiles when size or whole-second mtime differ, so the time must move on by a second.
            modified = max(modified, int(target.stat().st_mtime) + 1)
        else:
            temporary.chmod(0o644)
        os.utime(temporary, (modified, modified))
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return temporary


def _swap(root: Path, change: Change, temporary: Path | None) -> None:
    target = root / change.path
    if temporary is None:
        target.unlink()
        return
    try:
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _undo(root: Path, change: Change) -> bool:
    """Put the old content back where a swap was made or tried; False when that fails too."""
    target = root / change.path
    try:
        if change.old is None:
            target.unlink(missing_ok=True)
        elif not target.is_file() or target.read_bytes() != change.old:
            os.replace(_stage(target, change.old), target)
    except OSError:
        return False
    return True


def _forget_bytecode(source: Path) -> None:
    """Remove the compiled forms of a source file that is gone."""
    for compiled in (source.parent / "__pycache__").glob(f"{source.stem}.*.pyc"):
        compiled.unlink(missing_ok=True)


def _prune(root: Path, folder: Path) -> None:
    """Remove folders that are left with nothing but an empty bytecode cache, up to the package."""
    while folder != root / "sglang" and (root / "sglang") in folder.parents:
        try:
            cache = folder / "__pycache__"
            if cache.is_dir():
                cache.rmdir()
            folder.rmdir()
        except OSError:
            return
        folder = folder.parent
