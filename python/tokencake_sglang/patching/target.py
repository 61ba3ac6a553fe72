"""Find the SGLang tree to work on, and its version, without importing SGLang."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

from tokencake_sglang.patching.errors import PatchError

_ASSIGNED = re.compile(r"^__version__\s*=\s*(?:version\s*=\s*)?['\"]([^'\"]+)['\"]", re.MULTILINE)


def installed_root() -> Path | None:
    """The directory that holds the ``sglang`` package Python would import; None when there is none."""
    try:
        spec = find_spec("sglang")
    except ValueError:  # a module named sglang without a spec
        return None
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).parent.parent


def tree_root(tree: str | Path) -> Path:
    """The root inside ``tree``: itself when it holds ``sglang/``, else its ``python/``. Raises PatchError."""
    for root in (Path(tree), Path(tree) / "python"):
        if (root / "sglang").is_dir():
            return root
    raise PatchError(
        f"{tree} is not an SGLang tree: neither {Path(tree) / 'sglang'} nor {Path(tree) / 'python' / 'sglang'} is a "
        "directory. Name the directory that contains the package `sglang`, or a source checkout."
    )


def find_version(root: Path) -> str | None:
    """Version of the tree: its pip metadata, else a version file with a plain value; None when nothing says it."""
    versions = sorted({_metadata_version(info) for info in root.glob("sglang-*.dist-info")} - {None})
    if versions:
        return " and ".join(versions)
    for name in ("_version.py", "version.py"):
        try:
            match = _ASSIGNED.search((root / "sglang" / name).read_text(errors="replace"))
        except OSError:
            continue
        if match:
            return match[1]
    return None


def _metadata_version(info: Path) -> str | None:
    try:
        with open(info / "METADATA", encoding="utf-8", errors="replace") as lines:
            for line in lines:
                if line.startswith("Version:"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return None


def is_expected(found: str, expected: str) -> bool:
    """True for the expected version itself and for a wheel that this tool built from it."""
    return re.fullmatch(rf"{re.escape(expected)}(\+tokencake\.\d+)?", found) is not None


def restamp(version_file: bytes, found: str, wanted: str) -> bytes:
    """The text of ``_version.py`` with another version in it; unchanged when it does not carry ``found``."""
    text = version_file.decode()
    text = re.sub(rf"^(__version__ = .*)(['\"]){re.escape(found)}\2", rf"\g<1>\g<2>{wanted}\g<2>", text, flags=re.M)
    return text.replace(repr(_version_tuple(found)), repr(_version_tuple(wanted))).encode()


def _version_tuple(version: str) -> tuple[int | str, ...]:
    release, _, local = version.partition("+")
    numbers = tuple(int(n) if n.isdigit() else n for n in release.split("."))
    return (*numbers, local) if local else numbers
