"""Read and apply unified diffs without any tolerance.

Every context line and every removed line must stand at exactly the line number that the hunk states, byte for byte.
There is no search for a near-by place: a patch that does not fit was made for another file. Lines end at ``\\n`` only.
Supported are changed files and new files (from ``/dev/null``, or an empty one as git writes it). A patch that deletes,
renames or changes the mode of a file is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from tokencake_sglang.patching.errors import PatchError

CONTEXT, ADDED, REMOVED = b" ", b"+", b"-"
_HUNK = re.compile(rb"@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@")
_NO_NEWLINE = b"\\ No newline at end of file"
_GIT = re.compile(rb"diff --git a/(\S+) b/(\S+)\n?")


@dataclass(frozen=True)
class Hunk:
    """One hunk; ``lines`` are (kind, text with its line end) and the starts are 1-based as in the diff."""

    old_start: int
    new_start: int
    lines: tuple[tuple[bytes, bytes], ...]

    def reversed(self) -> Hunk:
        """The hunk that undoes this one."""
        swap = {CONTEXT: CONTEXT, ADDED: REMOVED, REMOVED: ADDED}
        return Hunk(self.new_start, self.old_start, tuple((swap[kind], text) for kind, text in self.lines))


@dataclass(frozen=True)
class FilePatch:
    """The hunks for one file. ``creates``: the file does not exist before."""

    path: str
    creates: bool
    hunks: tuple[Hunk, ...]

    def texts(self, kind: bytes) -> list[bytes]:
        """All lines of one kind (``ADDED``, ``REMOVED``, ``CONTEXT``), in order."""
        return [text for hunk in self.hunks for k, text in hunk.lines if k == kind]


def split_lines(content: bytes) -> list[bytes]:
    """Lines with their ends; only ``\\n`` ends a line, the last one may lack it."""
    lines = content.split(b"\n")
    ended = [line + b"\n" for line in lines[:-1]]
    return ended + [lines[-1]] if lines[-1] else ended


def apply_forward(patch: FilePatch, content: bytes | None) -> bytes:
    """The file after the patch. ``content`` None means that the file does not exist. Raises PatchError."""
    if patch.creates and content is not None:
        raise PatchError(f"{patch.path}: the patch creates this file, but it exists already.")
    if not patch.creates and content is None:
        raise PatchError(f"{patch.path}: the patch changes this file, but it does not exist.")
    return _apply_hunks(patch.path, patch.hunks, content or b"")


def apply_reverse(patch: FilePatch, content: bytes | None) -> bytes | None:
    """The file before the patch; None when the patch created it. Raises PatchError."""
    if content is None:
        raise PatchError(f"{patch.path}: the patch cannot be taken back, the file does not exist.")
    before = _apply_hunks(patch.path, [hunk.reversed() for hunk in patch.hunks], content)
    if not patch.creates:
        return before
    if before:
        raise PatchError(f"{patch.path}: the patch created this file, but it holds more than the patch wrote.")
    return None


def _apply_hunks(path: str, hunks: Iterable[Hunk], content: bytes) -> bytes:
    lines, out, position = split_lines(content), [], 0
    for hunk in hunks:
        start = _index(hunk.old_start, any(kind != ADDED for kind, _ in hunk.lines))
        if not position <= start <= len(lines):
            raise PatchError(
                f"{path}: a hunk starts at line {start + 1}, but it must lie between line {position + 1} "
                f"and the end of the file (line {len(lines)})."
            )
        out.extend(lines[position:start])
        position = start
        if len(out) != _index(hunk.new_start, any(kind != REMOVED for kind, _ in hunk.lines)):
            raise PatchError(f"{path}: the hunk at line {start + 1} states a wrong line number in the new file.")
        for kind, text in hunk.lines:
            if kind != ADDED:
                if position >= len(lines) or lines[position] != text:
                    found = lines[position] if position < len(lines) else b"<end of file>"
                    raise PatchError(f"{path}: line {position + 1}: expected {text!r}, found {found!r}.")
                position += 1
            if kind != REMOVED:
                out.append(text)
    out.extend(lines[position:])
    if any(not line.endswith(b"\n") for line in out[:-1]):
        raise PatchError(f"{path}: the patch continues after a line that has no line end.")
    return b"".join(out)


def _index(start: int, has_lines: bool) -> int:
    """0-based index of a 1-based hunk start; an empty side names the line before it."""
    return start - 1 if has_lines else start


def parse_diff(data: bytes, name: str) -> tuple[bytes, tuple[FilePatch, ...]]:
    """Split a patch file into its free-text header and its file patches. ``name`` is used in messages."""
    reader = _Reader(split_lines(data), name)
    header = []
    while not reader.at_file():
        if reader.done():
            break
        header.append(reader.take())
    files = []
    while not reader.done():
        if reader.peek().strip() == b"":
            reader.take()
        elif reader.at_file():
            files.append(reader.file_patch())
        else:
            raise reader.error("unexpected line after a hunk")
    paths = [f.path for f in files]
    if len(set(paths)) != len(paths):
        raise PatchError(f"{name}: a file is patched twice in the same patch.")
    return b"".join(header), tuple(files)


class _Reader:
    def __init__(self, lines: list[bytes], name: str):
        self.lines, self.name, self.position = lines, name, 0

    def done(self) -> bool:
        return self.position >= len(self.lines)

    def peek(self, ahead: int = 0) -> bytes:
        index = self.position + ahead
        return self.lines[index] if index < len(self.lines) else b""

    def take(self) -> bytes:
        self.position += 1
        return self.lines[self.position - 1]

    def error(self, what: str) -> PatchError:
        return PatchError(f"{self.name}:{self.position + 1}: {what}: {self.peek()!r}.")

    def at_file(self) -> bool:
        plain = self.peek().startswith(b"--- ") and self.peek(1).startswith(b"+++ ")
        return plain or self.peek().startswith(b"diff --git ")

    def file_patch(self) -> FilePatch:
        git_path, new_file = None, False
        if self.peek().startswith(b"diff --git "):
            match = _GIT.fullmatch(self.peek())
            if match is None or match[1] != match[2]:
                raise self.error("a file may not be renamed, and its path may not hold spaces")
            git_path = self._path(b"a/" + match[1], b"a/")
            self.take()
            while self.peek().startswith((b"index ", b"new file mode 100644")):
                new_file = self.take().startswith(b"new file") or new_file
        if not self.peek().startswith(b"--- "):
            if new_file and git_path and (self.done() or not self.peek().strip() or self.at_file()):
                return FilePatch(git_path, True, ())
            raise self.error("only changed files and new files (mode 100644) are supported")
        old, new = self._name(b"--- "), self._name(b"+++ ")
        creates = old == b"/dev/null"
        if new == b"/dev/null":
            raise self.error("a patch may not delete a file")
        path = self._path(new, b"b/")
        if (not creates and self._path(old, b"a/") != path) or git_path not in (None, path):
            raise self.error(f"the paths of {path} before and after differ")
        hunks = []
        while self.peek().startswith(b"@@ "):
            hunks.append(self._hunk())
        if not hunks:
            raise self.error(f"{path} has no hunk")
        if creates and (len(hunks) != 1 or any(kind != ADDED for kind, _ in hunks[0].lines)):
            raise self.error(f"{path} is a new file, but its hunks hold more than added lines")
        return FilePatch(path, creates, tuple(hunks))

    def _name(self, prefix: bytes) -> bytes:
        if not self.peek().startswith(prefix):
            raise self.error(f"expected a line that starts with {prefix.decode()!r}")
        return self.take()[len(prefix) :].split(b"\t")[0].rstrip(b"\r\n")

    def _path(self, name: bytes, prefix: bytes) -> str:
        path = name[len(prefix) :].decode("utf-8", "replace")
        if not name.startswith(prefix + b"sglang/") or any(part in ("", ".", "..") for part in path.split("/")):
            raise self.error(f"paths must look like {prefix.decode()}sglang/..., found {name!r}")
        return path

    def _hunk(self) -> Hunk:
        match = _HUNK.match(self.peek())
        if match is None:
            raise self.error("not a hunk header")
        self.take()
        old_left, new_left = (int(n) if n is not None else 1 for n in (match[2], match[4]))
        lines: list[tuple[bytes, bytes]] = []
        while old_left > 0 or new_left > 0:
            kind, text = self.peek()[:1], self.peek()[1:]
            if kind not in (CONTEXT, ADDED, REMOVED) or not text.endswith(b"\n"):
                raise self.error("the hunk is shorter than its header says, or damaged")
            old_left -= kind != ADDED
            new_left -= kind != REMOVED
            if old_left < 0 or new_left < 0:
                raise self.error("the hunk does not fit the line counts in its header")
            self.take()
            if self.peek().startswith(_NO_NEWLINE):
                self.take()
                text = text[:-1]
            lines.append((kind, text))
        return Hunk(int(match[1]), int(match[3]), tuple(lines))
