"""A tiny SGLang tree with a tiny patch series."""

from __future__ import annotations

import difflib
from pathlib import Path

from tokencake_sglang.patching.__main__ import main
from tokencake_sglang.patching.unidiff import split_lines

HEADER = "Description: {name}\n more words\nWhy-not-a-hook: none\nForwarded: no\nRemove-when: never\n\n"
A1 = b"".join(b"# line %d\n" % n for n in range(1, 31))
A2 = A1.replace(b"# line 5\n", b"# line 5\n# added early\n").replace(b"# line 25\n", b"# line 25\n# added late\n")
A3 = A2.replace(b"# line 6\n", b"# line 6\n# added by the second\n")
B1 = b"VALUE = 1\n"
B2 = b"VALUE = 2\n"  # the same size, so that only the mtime tells Python to recompile


def unified(path: str, before: bytes | None, after: bytes) -> bytes:
    """The unified diff of one file, as git writes it."""
    git = f"diff --git a/{path} b/{path}\n".encode()
    if before is None:
        git += b"new file mode 100644\nindex 000000000..e69de29bb\n"
        if not after:
            return git
    old = b"/dev/null" if before is None else b"a/" + path.encode()
    body = difflib.diff_bytes(
        difflib.unified_diff, split_lines(before or b""), split_lines(after), old, b"b/" + path.encode()
    )
    return git + b"".join(s if s.endswith(b"\n") else s + b"\n\\ No newline at end of file\n" for s in body)


class Lab:
    """``tree`` holds a package, ``patches`` a series for it; ``pristine`` and ``patched`` are the expected contents."""

    def __init__(self, home: Path):
        self.tree, self.patches = home / "tree", home / "patches"
        self.pristine: dict[str, bytes] = {
            "sglang/__init__.py": b"",
            "sglang/_version.py": b"__version__ = version = '0.5.17'\n__version_tuple__ = version_tuple = (0, 5, 17)\n",
            "sglang/srt/a.py": A1,
            "sglang/srt/b.py": B1,
        }
        self.patched = dict(self.pristine)
        for path, content in self.pristine.items():
            (self.tree / path).parent.mkdir(parents=True, exist_ok=True)
            (self.tree / path).write_bytes(content)
        self.patches.mkdir()
        (self.patches / "SGLANG_VERSION").write_text("0.5.17\n")
        (self.patches / "REVISION").write_text("3\n")
        (self.patches / "series").write_text("# the order\n")
        (self.patches / "HASHES.json").write_text("{}\n")

    def add_patch(self, name: str, files: dict[str, bytes], header: str = HEADER) -> None:
        """Append a patch that brings the files to the given contents."""
        diffs = [unified(path, self.patched.get(path), content) for path, content in files.items()]
        (self.patches / name).write_bytes(header.format(name=name).encode() + b"".join(diffs))
        with open(self.patches / "series", "a") as series:
            series.write(name + "\n")
        self.patched.update(files)

    def make_hashes(self) -> None:
        assert self.run("hashes", "--pristine", str(self.tree), tree=False) == 0

    def contents(self) -> dict[str, bytes]:
        """All files of the tree, bytecode left out."""
        files = (p for p in self.tree.rglob("*") if p.is_file() and p.suffix != ".pyc")
        return {p.relative_to(self.tree).as_posix(): p.read_bytes() for p in files}

    def run(self, *command: str, tree: bool = True) -> int:
        """Exit code of the command line on this tree and series."""
        where = ["--tree", str(self.tree)] if tree else []
        return main([*command, "--patches", str(self.patches), *where])
