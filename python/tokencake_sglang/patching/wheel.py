"""Build a patched SGLang wheel, for machines where the installed package shall not be changed in place."""

from __future__ import annotations

import csv
import io
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from tokencake_sglang.patching.errors import PatchError
from tokencake_sglang.patching.operations import check_fits, record_digest
from tokencake_sglang.patching.series import Series
from tokencake_sglang.patching.state import FileState, classify, describe
from tokencake_sglang.patching.target import restamp

_TIME = (1980, 1, 1, 0, 0, 0)  # the earliest that a zip file can hold: equal input gives an equal wheel
_FILE_MODE = 0o100644 << 16


def build_wheel(source: str | Path | None, out: str | Path, patches: str | Path | None = None) -> Path:
    """Write ``sglang-<version>+tokencake.<revision>-<tags>.whl`` below ``out`` and return its path.

    source: a pristine wheel; None downloads it with pip. The result is byte-identical for equal input. Raises
    PatchError when the wheel is not the pristine one of the expected version.
    """
    series = Series(patches)
    check_fits(series)
    if source is not None:
        return _build(Path(source), Path(out), series)
    with tempfile.TemporaryDirectory() as folder:
        return _build(_download(series.version, Path(folder)), Path(out), series)


def _download(version: str, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "-d", str(folder)]
    result = subprocess.run([*command, f"sglang=={version}"], capture_output=True, text=True)
    wheels = list(folder.glob("*.whl"))
    if result.returncode or len(wheels) != 1:
        raise PatchError(
            f"pip could not download the wheel of sglang=={version}:\n{result.stderr.strip()}\n"
            "Name a wheel that you have with --from WHEEL."
        )
    return wheels[0]


def _build(source: Path, out: Path, series: Series) -> Path:
    match = re.fullmatch(r"sglang-([^-]+)-(.+)\.whl", source.name)
    if match is None or match[1] != series.version:
        raise PatchError(f"{source} is not a wheel of sglang {series.version}, which the series is made for.")
    version = f"{series.version}+tokencake.{series.revision}"
    try:
        with zipfile.ZipFile(source) as wheel:
            entries = {i.filename: (wheel.read(i), i.external_attr) for i in wheel.infolist() if not i.is_dir()}
    except (OSError, zipfile.BadZipFile) as error:
        raise PatchError(f"Cannot read the wheel {source}: {error}.") from error
    _check_record(source, series, entries)
    _patch(source, series, entries)
    entries = _rename(entries, series.version, version)
    out.mkdir(parents=True, exist_ok=True)
    target = out / f"sglang-{version}-{match[2]}.whl"
    partial = target.with_suffix(".partial")
    try:
        with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as wheel:
            for name, (content, attributes) in entries.items():
                info = zipfile.ZipInfo(name, _TIME)
                info.create_system, info.external_attr, info.compress_type = 3, attributes, zipfile.ZIP_DEFLATED
                wheel.writestr(info, content)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    return target


def _check_record(source: Path, series: Series, entries: dict[str, tuple[bytes, int]]) -> None:
    """Every file of the wheel must be the one its RECORD names."""
    record = f"sglang-{series.version}.dist-info/RECORD"
    if record not in entries:
        raise PatchError(f"{source} holds no {record}: it is damaged, or not a wheel of sglang {series.version}.")
    rows = {row[0]: row[1] for row in csv.reader(io.StringIO(entries[record][0].decode())) if row}
    wrong = [n for n, (content, _) in entries.items() if n != record and rows.get(n) != record_digest(content)]
    wrong += sorted(set(rows) - set(entries))
    if wrong:
        raise PatchError(f"{source} is damaged: its RECORD does not fit {', '.join(wrong[:5])}. Download it again.")


def _patch(source: Path, series: Series, entries: dict[str, tuple[bytes, int]]) -> None:
    for path, expected in series.hashes.items():
        content, attributes = entries.get(path, (None, _FILE_MODE))
        before = classify(path, content, expected)
        if before.state is not FileState.PRISTINE:
            raise PatchError(f"{source} is not pristine: {describe(before)}")
        patched = series.forward(path, content)
        after = classify(path, patched, expected)
        if after.state is not FileState.PATCHED:
            raise PatchError(f"The series and HASHES.json do not belong together: {describe(after)}")
        entries[path] = (patched, attributes)


def _rename(entries: dict[str, tuple[bytes, int]], old: str, new: str) -> dict[str, tuple[bytes, int]]:
    """Set the new version everywhere; returns the entries sorted, the metadata last, with RECORD made anew."""
    old_info, new_info = f"sglang-{old}.dist-info/", f"sglang-{new}.dist-info/"
    renamed = {}
    for name in sorted(entries, key=lambda name: (name.startswith(old_info), name)):
        content, attributes = entries[name]
        if name == old_info + "METADATA":
            content = re.sub(rb"(?m)^Version: .*$", f"Version: {new}".encode(), content, count=1)
        elif name == "sglang/_version.py":
            content = restamp(content, old, new)
        if name != old_info + "RECORD":
            renamed[name.replace(old_info, new_info)] = (content, attributes)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for name, (content, _) in renamed.items():
        writer.writerow([name, record_digest(content), len(content)])
    writer.writerow([new_info + "RECORD", "", ""])
    renamed[new_info + "RECORD"] = (text.getvalue().encode(), _FILE_MODE)
    return renamed
