"""Check the patch series itself: files, headers, budget, hashes, and that it applies and reverses without tolerance.

Run before a commit that touches patches/. Prints a table and every finding; exit code 0 when there is none, else 1.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "python"))

from tokencake_sglang.patching.errors import PatchError  # noqa: E402
from tokencake_sglang.patching.operations import compute_hashes, find_root, pristine_contents  # noqa: E402
from tokencake_sglang.patching.series import REQUIRED_FIELDS, Patch, Series  # noqa: E402
from tokencake_sglang.patching.state import read_file  # noqa: E402
from tokencake_sglang.patching.target import tree_root  # noqa: E402
from tokencake_sglang.patching.unidiff import ADDED, REMOVED  # noqa: E402
from tokencake_sglang.version import SGLANG_VERSION  # noqa: E402

MAX_CHANGED_LINES = 60
MAX_FILES = 3
OTHER_FILES = {"SGLANG_VERSION", "REVISION", "HASHES.json", "README.md", "series"}
NAME = re.compile(r"\d{4}-[a-z0-9]+(-[a-z0-9]+)*\.patch")
REMOVES_FIELD = "Removes-lines"  # its value says why the patch cannot be add-only
OVER_BUDGET_FIELD = "Over-budget"  # its value says why the patch cannot be smaller or split


def check_files(series: Series) -> list[str]:
    """Every patch is listed once, in numeric order, and nothing else lies in the directory."""
    present = {path.name for path in series.directory.iterdir()}
    names = list(series.names)
    found = [f"series lists {name} twice" for name in sorted({n for n in names if names.count(n) > 1})]
    found += [f"series lists {name}, which does not exist" for name in sorted(set(names) - present)]
    found += [
        f"{name} is neither listed in series nor one of the known files"
        for name in sorted(present - set(names) - OTHER_FILES)
    ]
    found += [f"{name} is not named NNNN-words-in-lower-case.patch" for name in names if not NAME.fullmatch(name)]
    if names != sorted(names):
        found.append("series is not in the order of the numbers")
    numbers = [name[:4] for name in set(names)]
    found += [f"number {n} is used twice" for n in sorted({n for n in numbers if numbers.count(n) > 1})]
    if series.version != SGLANG_VERSION:
        found.append(f"SGLANG_VERSION says {series.version}, the package's version.py says {SGLANG_VERSION}")
    return found


def size(patch: Patch) -> tuple[int, int, int]:
    """(files, added lines, removed lines)."""
    added, removed = (sum(len(f.texts(kind)) for f in patch.files) for kind in (ADDED, REMOVED))
    return len(patch.files), added, removed


def check_patch(patch: Patch) -> list[str]:
    """Header complete, add-only, small, and free of this project's name."""
    found = [f"header field {field} is missing" for field in REQUIRED_FIELDS if not patch.header.get(field)]
    files, added, removed = size(patch)
    if removed and not patch.header.get(REMOVES_FIELD):
        found.append(f"removes {removed} lines; a patch only adds, or says why not in the field {REMOVES_FIELD}")
    over = f"split it, or say why not in the field {OVER_BUDGET_FIELD}"
    if not patch.header.get(OVER_BUDGET_FIELD):
        if added + removed > MAX_CHANGED_LINES:
            found.append(
                f"changes {added + removed} lines, allowed are {MAX_CHANGED_LINES}; {over}"
            )
        if files > MAX_FILES:
            found.append(f"touches {files} files, allowed are {MAX_FILES}; {over}")
    for file in patch.files:
        if any(b"tokencake" in line.lower() for line in file.texts(ADDED)):
            found.append(f"names this project in {file.path}; it must make sense to an SGLang maintainer")
    return [f"{patch.name}: {finding}" for finding in found]


def check_against(series: Series, pristine: str | None) -> list[str]:
    """The series applies and reverses on the pristine bytes, compiles, and HASHES.json fits."""
    if pristine is not None:
        root = tree_root(pristine)
        contents = {path: read_file(root, path) for path in series.steps}
    else:
        contents = pristine_contents(find_root(None), series)
    found = []
    if compute_hashes(series, contents) != series.hashes:
        found.append("HASHES.json is out of date: python -m tokencake_sglang.patching hashes --pristine DIR")
    for path, content in contents.items():
        try:
            compile(series.forward(path, content), path, "exec", dont_inherit=True)
        except SyntaxError as error:
            found.append(f"{path} does not compile after the series: {error}")
    return found


def main(argv: list[str] | None = None) -> int:
    """Run all checks; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--patches", metavar="DIR", help="patch series (default: the one of this checkout)")
    parser.add_argument("--pristine", metavar="DIR", help="pristine tree (default: the installed SGLang)")
    args = parser.parse_args(argv)
    try:
        series = Series(args.patches)
        findings = check_files(series)
        if not findings:
            print(f"{'patch':50} files  added  removed")
            for patch in series.patches:
                print(f"{patch.name:50} {size(patch)[0]:5} {size(patch)[1]:6} {size(patch)[2]:8}")
                findings += check_patch(patch)
            findings += check_against(series, args.pristine)
    except PatchError as error:
        findings = [str(error)]
    for finding in findings:
        print(f"finding: {finding}")
    print(f"{len(findings)} findings")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
