"""Shows what every agent of every running application is doing: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from typing import TextIO

REFRESH_S = 0.5
PLAIN_LINE_EVERY_S = 10.0


class Board:
    """Application -> agent -> (state, since). Thread-safe; a context manager that draws until it is left."""

    def __init__(self, title: str, total_apps: int, stream: TextIO | None = None) -> None:
        self.title = title
        self.total_apps = total_apps
        self.stream = stream or sys.stdout
        self.live = self.stream.isatty()
        self._lock = threading.Lock()
        self._apps: dict[str, dict[str, tuple[str, float]]] = {}
        self._started: dict[str, float] = {}
        self._done = 0
        self._drawn_lines = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._draw_until_stopped, daemon=True)
        self._begin = time.monotonic()

    def __enter__(self) -> Board:
        self._begin = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join()
        with self._lock:
            self._erase()

    def set(self, app: str, agent: str, state: str) -> None:
        """Say that `agent` of `app` now does `state`; an empty state removes the agent."""
        with self._lock:
            self._started.setdefault(app, time.monotonic())
            agents = self._apps.setdefault(app, {})
            if state:
                agents[agent] = (state, time.monotonic())
            else:
                agents.pop(agent, None)

    def app_done(self, app: str, seconds: float, note: str) -> None:
        with self._lock:
            self._apps.pop(app, None)
            self._done += 1
            self._erase()
            self._print(f"  {app:<14} {seconds:6.1f} s  {note}  ({self._done} of {self.total_apps} done)")

    def lines(self, now: float) -> list[str]:
        """The table as text, one line per running application."""
        rows = [f"{self.title}: {now - self._begin:5.0f} s, {self._done} of {self.total_apps} applications done"]
        for app, agents in sorted(self._apps.items()):
            doing = "; ".join(f"{a}: {what} {now - since:.1f}s" for a, (what, since) in sorted(agents.items()))
            rows.append(f"  {app:<14} {now - self._started[app]:6.1f} s  {doing}")
        return rows

    def _draw_until_stopped(self) -> None:
        pause = REFRESH_S if self.live else PLAIN_LINE_EVERY_S
        while not self._stop.wait(pause):
            with self._lock:
                self._erase()
                rows = self.lines(time.monotonic())
                for row in rows:
                    self._print(row[:200] if self.live else row)
                self._drawn_lines = len(rows) if self.live else 0

    def _erase(self) -> None:
        if self.live and self._drawn_lines:
            self.stream.write(f"\x1b[{self._drawn_lines}A\x1b[J")
            self._drawn_lines = 0

    def _print(self, line: str) -> None:
        self.stream.write(line + "\n")
        self.stream.flush()
