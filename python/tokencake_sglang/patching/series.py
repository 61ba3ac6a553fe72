"""The patch series as it lies in the ``patches`` directory: version, order, patches, expected hashes."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from tokencake_sglang.patching.errors import PatchError
from tokencake_sglang.patching.unidiff import FilePatch, apply_forward, apply_reverse, parse_diff

REQUIRED_FIELDS = ("Description", "Why-not-a-hook", "Forwarded", "Remove-when")


class FileHashes(NamedTuple):
    """sha256 (hex) of one file before the series (None: the file is new) and after all of it."""

    before: str | None
    after: str


@dataclass(frozen=True)
class Patch:
    """One patch file: its header fields and its file patches."""

    name: str
    header: dict[str, str]
    files: tuple[FilePatch, ...]


def default_directory() -> Path:
    """The ``patches`` directory of the checkout that this package runs from, else the copy inside the package."""
    package = Path(__file__).resolve().parent
    checkout = package.parents[2] / "patches"
    if package.parents[1].name == "python" and (checkout / "SGLANG_VERSION").is_file():
        return checkout
    return package / "data"


def sha256(content: bytes) -> str:
    """Hex digest of a file's bytes."""
    return hashlib.sha256(content).hexdigest()


class Series:
    """The series in one directory. Everything is read when it is first needed, so that a status check stays cheap."""

    def __init__(self, directory: str | Path | None = None):
        self.directory = Path(directory) if directory is not None else default_directory()
        if not (self.directory / "SGLANG_VERSION").is_file():
            raise PatchError(
                f"No patch series in {self.directory}: the file SGLANG_VERSION is missing. "
                "Reinstall tokencake-sglang, or name the directory with --patches DIR."
            )

    def _read(self, name: str) -> bytes:
        try:
            return (self.directory / name).read_bytes()
        except OSError as error:
            raise PatchError(f"Cannot read {name} of the patch series in {self.directory}: {error}.") from error

    @cached_property
    def version(self) -> str:
        """The one SGLang version that the series is made for."""
        return self._read("SGLANG_VERSION").decode().strip()

    @cached_property
    def revision(self) -> int:
        """Counts the published states of the series; becomes the N of ``+tokencake.N``."""
        text = self._read("REVISION").decode().strip()
        if not text.isdigit():
            raise PatchError(f"{self.directory / 'REVISION'} holds {text!r}; allowed is one whole number.")
        return int(text)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Patch file names in the order in which they are applied."""
        lines = (line.split("#")[0].strip() for line in self._read("series").decode().splitlines())
        return tuple(line for line in lines if line)

    @cached_property
    def hashes(self) -> dict[str, FileHashes]:
        """Expected hashes by path below the tree root (``sglang/...``)."""
        try:
            raw = json.loads(self._read("HASHES.json"))
            return {path: FileHashes(entry["before"], entry["after"]) for path, entry in sorted(raw.items())}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise PatchError(
                f"{self.directory / 'HASHES.json'} is damaged ({error!r}). "
                "Make it anew: python -m tokencake_sglang.patching hashes --pristine DIR"
            ) from error

    @cached_property
    def patches(self) -> tuple[Patch, ...]:
        """The parsed patches, in order."""
        return tuple(self._parse(name) for name in self.names)

    def _parse(self, name: str) -> Patch:
        header, files = parse_diff(self._read(name), name)
        if not files:
            raise PatchError(f"{name}: holds no diff.")
        return Patch(name, parse_header(header.decode("utf-8", "replace")), files)

    @cached_property
    def steps(self) -> dict[str, list[tuple[str, FilePatch]]]:
        """For each touched path the (patch name, file patch) pairs in order."""
        steps: dict[str, list[tuple[str, FilePatch]]] = {}
        for patch in self.patches:
            for file_patch in patch.files:
                steps.setdefault(file_patch.path, []).append((patch.name, file_patch))
        return steps

    def forward(self, path: str, content: bytes | None) -> bytes | None:
        """One file after the whole series. Raises PatchError naming the patch that does not fit."""
        for name, file_patch in self.steps.get(path, []):
            try:
                content = apply_forward(file_patch, content)
            except PatchError as error:
                raise PatchError(f"{name} does not apply: {error}") from error
        return content

    def backward(self, path: str, content: bytes | None) -> bytes | None:
        """One file before the whole series; None when the series creates it."""
        for name, file_patch in reversed(self.steps.get(path, [])):
            try:
                content = apply_reverse(file_patch, content)
            except PatchError as error:
                raise PatchError(f"{name} cannot be taken back: {error}") from error
        return content


def parse_header(text: str) -> dict[str, str]:
    """DEP-3 fields ``Name: value``; a line that starts with a space continues the field above it."""
    fields: dict[str, str] = {}
    current = None
    for line in text.splitlines():
        name, colon, value = line.partition(":")
        if line[:1] in (" ", "\t") and current:
            fields[current] = f"{fields[current]} {line.strip()}".strip()
        elif colon and name and " " not in name:
            current = name
            fields[current] = value.strip()
        else:
            current = None
    return fields
