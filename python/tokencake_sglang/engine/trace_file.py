"""A trace on disk that is complete at any moment: each row is there when its request has ended, whatever happens then.

What follows a round is known later. Its row ends in a field of fixed width, and that field is written anew in place,
so nothing is lost when SGLang kills its processes, which is how a server ends.
"""

from __future__ import annotations

import json
import logging
import os
import stat
from pathlib import Path

from tokencake_sglang.core.errors import TokenCakeError
from tokencake_sglang.core.recording import Row, Wait

logger = logging.getLogger(__name__)

CSV_COLUMNS = "session_id,arrival_time,round_idx,prefix_len,input_len,output_len,tool_wait_after_ms"
MAX_MS = 9_999_999_999
KIND_BYTES = 64


class CsvFormat:
    """One round a line in TraceLab's layout."""

    header = CSV_COLUMNS + "\n"

    def start(self, row: Row) -> str:
        new = row.input_length - row.prefix_len
        return (f"{row.session_id},{row.session_arrival_ms},{row.round_idx},{row.prefix_len},{new},"
                f"{row.output_length},")

    def end(self, wait: Wait) -> str:
        return f"{min(wait.wait_ms, MAX_MS):010d}\n"


class JsonlFormat:
    """One request a line in Mooncake's layout, with more fields."""

    header = ""

    def start(self, row: Row) -> str:
        values = {
            "timestamp": row.timestamp_ms, "input_length": row.input_length, "output_length": row.output_length,
            "hash_ids": row.hash_ids, "session_id": row.session_id, "round_idx": row.round_idx,
            "prefix_len": row.prefix_len, "cached_tokens": row.cached_tokens, "agent_type": row.agent_type,
        }
        return json.dumps(values)[:-1] + ", "

    def end(self, wait: Wait) -> str:
        return self._fields(wait).ljust(self._width) + "\n"

    def _fields(self, wait: Wait) -> str:
        kind = wait.tool_kind
        while kind and len(json.dumps(kind)) > KIND_BYTES:
            kind = kind[:-1]
        values = {
            "tool_wait_after_ms": min(wait.wait_ms, MAX_MS), "tool_kind": kind,
            "tool_forecast_ms": _bounded(wait.tool_forecast_ms), "tool_ms": _bounded(wait.tool_ms)}
        return json.dumps(values)[1:]

    @property
    def _width(self) -> int:
        return len(self._fields(Wait(MAX_MS, "x" * (KIND_BYTES - 2), MAX_MS, MAX_MS)))


def _bounded(ms: int | None) -> int | None:
    return None if ms is None else min(ms, MAX_MS)


class TraceFile:
    """The sink of a `Recording`. Its format follows from the path's ending, .csv or .jsonl.

    Raises TokenCakeError when the file cannot be made, is not a file, or holds something already. Later errors (a full
    disk) are logged once until writing works again, and counted in `lost`; a row that was lost is never half there.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.format = CsvFormat() if Path(path).suffix == ".csv" else JsonlFormat()
        self.lost = 0
        self._failing = False
        self._end = 0
        try:
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o666)
            status = os.fstat(self._file)
            found = "not a file" if not stat.S_ISREG(status.st_mode) else "not empty" if status.st_size else ""
            if not found:
                self._write(self.format.header.encode())
        except OSError as error:
            raise TokenCakeError(f"the trace {path} cannot be written: {error.strerror}. Give another file.") from None
        if found:
            os.close(self._file)
            raise TokenCakeError(f"the trace {path} is {found}; a recording needs a new file. Give another name.")

    def row(self, row: Row) -> int | None:
        """Append a row; returns where its end stands, None when it was lost."""
        start = self.format.start(row).encode()
        at = self._end + len(start)
        return at if self._try(start + self.format.end(Wait()).encode()) else None

    def wait(self, ref: int | None, wait: Wait) -> None:
        if ref is not None:
            self._try(self.format.end(wait).encode(), ref)

    def _try(self, data: bytes, at: int | None = None) -> bool:
        try:
            self._write(data, at)
        except OSError as error:
            self.lost += 1
            if not self._failing:
                logger.error("The recording %s cannot be written: %s. The server goes on; rows are lost until it"
                             " can be.", self.path, error)
            self._failing = True
            return False
        if self._failing:
            self._failing = False
            logger.warning("The recording %s is written again; lost until now: %d.", self.path, self.lost)
        return True

    def _write(self, data: bytes, at: int | None = None) -> None:
        """Write at the end, or over what stands at `at`; all of it or, at the end, nothing."""
        place = self._end if at is None else at
        written = 0
        try:
            while written < len(data):
                written += os.pwrite(self._file, data[written:], place + written)
        except OSError:
            if at is None and written:
                os.ftruncate(self._file, self._end)
            raise
        if at is None:
            self._end += len(data)
