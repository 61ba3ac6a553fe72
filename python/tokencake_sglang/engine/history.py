"""What calls took, kept in a file across restarts: read by every rank at its start, written by rank 0.

All ranks run on one machine (the launcher refuses others), so they read the same file, and rank 0 writes it only after
all have. A server that is killed loses what it learnt since the last save.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from tokencake_sglang.core.config import TokenCakeConfig
from tokencake_sglang.core.forecast import Forecaster, Row

logger = logging.getLogger(__name__)

FORMAT = "tokencake-history"
VERSION = 1
SAVE_INTERVAL_S = 60.0
ROWS_PER_TURN = 16
PAUSE_S = 0.0002
DECIMALS = 6


def start_history(config: TokenCakeConfig, forecaster: Forecaster, rank: int) -> History | None:
    """Teach the forecaster what the file says, if the settings name one. Rank 0 also writes it from now on, and puts a
    bad one aside."""
    if not config.history:
        return None
    load(config.history, config.forecast, forecaster, may_move=rank == 0)
    return History(config.history, config.forecast, forecaster) if rank == 0 else None


def load(path: str, forecast: str, forecaster: Forecaster, *, may_move: bool) -> bool:
    """Teach the forecaster what the file says; False when there is none or it cannot be used.

    A file that is damaged or of another version or forecast is put aside as FILE.bad (by the rank that `may_move`),
    with one warning: the server starts as if there were none.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        return False
    except (OSError, UnicodeDecodeError) as error:
        problem = str(error)
    else:
        problem = _teach(text, forecast, forecaster)
    if not problem:
        return True
    if may_move:
        try:
            os.replace(path, f"{path}.bad")
            told = f"It is now {path}.bad; the server starts without history."
        except OSError as error:
            told = f"It could not be put aside ({error.strerror}); the server starts without history."
        logger.warning("The history %s cannot be used: %s. %s", path, problem, told)
    return False


def _teach(text: str, forecast: str, forecaster: Forecaster) -> str:
    """What is wrong with the text, "" if it was taken in."""
    try:
        values = json.loads(text)
        if not isinstance(values, dict) or values.get("format") != FORMAT:
            return f"it is no {FORMAT} file"
        if values.get("version") != VERSION:
            return f"it has version {values.get('version')!r}, this server knows {VERSION}"
        if values.get("forecast") != forecast:
            return f"it was made with the forecast {values.get('forecast')!r}, this server uses {forecast!r}"
        forecaster.load(values.get("rows"))
    except (ValueError, TypeError, RecursionError) as error:
        return str(error) or type(error).__name__
    return ""


class History:
    """Writes what a forecaster has learnt at most every SAVE_INTERVAL_S, on a thread of its own, and at exit.

    Only tuples that are never changed are handed to the thread, so the scheduler neither waits nor locks. Failed
    saves are logged once until one works again.
    """

    def __init__(self, path: str, forecast: str, forecaster: Forecaster) -> None:
        self.path = path
        self.forecast = forecast
        self.forecaster = forecaster
        self._saved = forecaster.lessons
        self._next_save = time.monotonic() + SAVE_INTERVAL_S
        self._writer: threading.Thread | None = None
        self._failing = False
        atexit.register(self.flush)

    def poll(self) -> None:
        """To be called in every step: starts a save when one is due and something was learnt."""
        now = time.monotonic()
        if now < self._next_save or (self._writer is not None and self._writer.is_alive()):
            return
        self._next_save = now + SAVE_INTERVAL_S
        if self._is_saved():
            return
        self._saved, rows = self.forecaster.lessons, self.forecaster.dump()
        self._writer = threading.Thread(target=self._save, args=(rows,), name="tokencake-history", daemon=True)
        self._writer.start()

    def flush(self) -> None:
        """Wait for a save that is under way, and save what was learnt since."""
        if self._writer is not None:
            self._writer.join()
        if not self._is_saved():
            self._saved = self.forecaster.lessons
            self._save(self.forecaster.dump(), pause_s=0.0)

    def _is_saved(self) -> bool:
        return self.forecaster.lessons == self._saved and not self._failing

    def _save(self, rows: list[Row], pause_s: float = PAUSE_S) -> None:
        new = f"{self.path}.new"
        try:
            with open(new, "w", encoding="utf-8") as file:
                for part in _parts(self.forecast, rows):
                    file.write(part)
                    time.sleep(pause_s)  # lets the scheduler's thread go on: encoding would hold it up for long
                file.flush()
                os.fsync(file.fileno())
            os.replace(new, self.path)
        except OSError as error:
            if not self._failing:
                logger.error("The history %s cannot be written: %s. The server goes on, and tries again.", self.path,
                             error)
            self._failing = True
            return
        self._failing = False


def _parts(forecast: str, rows: list[Row]) -> Iterator[str]:
    """The text of a file, in parts that are quick to make: an object with one row a line."""
    head = {"format": FORMAT, "version": VERSION, "forecast": forecast}
    yield json.dumps(head)[:-1] + ', "rows": [\n'
    for start in range(0, len(rows), ROWS_PER_TURN):
        lines = ",\n".join(
            json.dumps([table, key, [round(figure, DECIMALS) for figure in figures]])
            for table, key, figures in rows[start:start + ROWS_PER_TURN])
        yield lines + (",\n" if start + ROWS_PER_TURN < len(rows) else "\n")
    yield "]}\n"
