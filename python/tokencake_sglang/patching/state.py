"""What state an SGLang tree is in, compared with the patch series. Reads a handful of files and imports no SGLang."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from pathlib import Path

from tokencake_sglang.patching.errors import PatchError
from tokencake_sglang.patching.series import FileHashes, Series, sha256
from tokencake_sglang.patching.target import find_version, installed_root, is_expected, tree_root

COMMAND = "python -m tokencake_sglang.patching"


class PatchState(enum.Enum):
    """State of a whole tree."""

    PATCHED = "patched"
    PRISTINE = "pristine"
    MIXED = "half-patched"
    FOREIGN = "foreign"
    NO_SGLANG = "no sglang"
    WRONG_VERSION = "wrong version"


class FileState(enum.Enum):
    """State of one file that the series touches."""

    PATCHED = "patched"
    PRISTINE = "pristine"
    FOREIGN = "foreign"
    MISSING = "missing"


@dataclass(frozen=True)
class TouchedFile:
    """One file of the series: its path below the root, what it is, the hash found (None: absent) and those expected."""

    path: str
    state: FileState
    found: str | None
    expected: FileHashes


@dataclass(frozen=True)
class PatchStatus:
    """State of a tree. ``files`` is empty when the state was decided before any file was looked at."""

    state: PatchState
    root: Path | None
    version: str | None
    expected_version: str
    files: tuple[TouchedFile, ...] = ()

    @property
    def ok(self) -> bool:
        """True when the engine may start on this tree."""
        return self.state is PatchState.PATCHED

    def count(self, state: FileState) -> int:
        """Number of files in one state."""
        return sum(f.state is state for f in self.files)

    def message(self, tree: str | Path | None = None) -> str:
        """What was expected, what was found, and the command that mends it."""
        where = f" --tree {tree}" if tree is not None else ""
        of_all = f"of {len(self.files)} files at {self.root}"
        version = f"sglang=={self.expected_version}"
        reinstall = f"pip install --force-reinstall --no-deps {version}"
        if self.state is PatchState.NO_SGLANG:
            return f"SGLang is not installed; the patch series needs {version}. Run: pip install {version}"
        if self.state is PatchState.WRONG_VERSION:
            return (
                f"The SGLang at {self.root} is version {self.version}; the patch series is made for exactly "
                f"{self.expected_version}. Run: pip install {version}"
            )
        if self.state is PatchState.PATCHED:
            shown = self.version or self.expected_version
            return f"SGLang {shown} at {self.root} is patched ({len(self.files)} files)."
        if self.state is PatchState.PRISTINE:
            return f"The SGLang at {self.root} is not patched. Run: {COMMAND} apply{where}"
        if self.state is PatchState.MIXED:
            return (
                f"SGLang is half-patched: {self.count(FileState.PATCHED)} {of_all} are patched and "
                f"{self.count(FileState.PRISTINE)} are pristine. To finish run: {COMMAND} apply{where}  "
                f"To go back run: {COMMAND} revert{where}"
            )
        strange = [f for f in self.files if f.state in (FileState.FOREIGN, FileState.MISSING)]
        lines = [f"SGLang is modified by something else: {len(strange)} {of_all} are neither pristine nor patched."]
        lines += [describe(f) for f in strange]
        if any(f.expected.before is None for f in strange):
            lines.append("A file that must not exist in a pristine tree has to be removed by hand; pip leaves it.")
        mend = reinstall if tree is None else f"check out the files of {version} again"
        return "\n".join([*lines, f"Keep your changes elsewhere, then: {mend}  and then: {COMMAND} apply{where}"])


def describe(file: TouchedFile) -> str:
    """One line about one file."""
    if file.state in (FileState.PATCHED, FileState.PRISTINE):
        return f"{file.state.value:9} {file.path}"
    return (
        f"{file.state.value:9} {file.path}: found sha256 {file.found or 'no file'}, expected "
        f"{file.expected.before or 'no file'} (pristine) or {file.expected.after} (patched)"
    )


def read_file(root: Path, path: str) -> bytes | None:
    """Bytes of a file below the root; None when it does not exist. Raises PatchError for anything but a file."""
    try:
        return (root / path).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise PatchError(f"Cannot read {root / path}: {error}.") from error


def classify(path: str, content: bytes | None, expected: FileHashes) -> TouchedFile:
    """Compare one file with its two expected hashes."""
    found = sha256(content) if content is not None else None
    if found == expected.after:
        state = FileState.PATCHED
    elif found == expected.before:
        state = FileState.PRISTINE
    else:
        state = FileState.MISSING if found is None else FileState.FOREIGN
    return TouchedFile(path, state, found, expected)


def tree_state(root: Path, series: Series) -> PatchStatus:
    """State of the tree at ``root``; an empty series counts as patched."""
    version = find_version(root)
    if version is not None and not is_expected(version, series.version):
        return PatchStatus(PatchState.WRONG_VERSION, root, version, series.version)
    files = tuple(classify(path, read_file(root, path), hashes) for path, hashes in series.hashes.items())
    states = {f.state for f in files}
    if states & {FileState.FOREIGN, FileState.MISSING}:
        state = PatchState.FOREIGN
    elif states <= {FileState.PATCHED}:
        state = PatchState.PATCHED
    else:
        state = PatchState.PRISTINE if states == {FileState.PRISTINE} else PatchState.MIXED
    return PatchStatus(state, root, version, series.version, files)


def status(tree: str | Path | None = None, patches: str | Path | None = None) -> PatchStatus:
    """State of the installed SGLang, or of ``tree``.

    tree: a directory that holds ``sglang/``, or a source checkout. patches: another series than the packaged one.
    Raises PatchError when the series is damaged or ``tree`` is no SGLang tree. Reads only the touched files.
    """
    series = Series(patches)
    root = tree_root(tree) if tree is not None else installed_root()
    if root is None:
        return PatchStatus(PatchState.NO_SGLANG, None, None, series.version)
    return tree_state(root, series)


def require_patched(tree: str | Path | None = None, patches: str | Path | None = None) -> PatchStatus:
    """The status when the tree is patched; else PatchError with what was found and the command that mends it."""
    found = status(tree, patches)
    if not found.ok:
        raise PatchError(found.message(tree))
    if not found.files:
        raise PatchError("The patch series in use is empty, so nothing is patched. Reinstall tokencake-sglang.")
    return found
