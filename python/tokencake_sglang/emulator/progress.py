"""How far the runs are: a bar with the virtual time on a terminal, one plain line a run elsewhere (standard error)."""

from __future__ import annotations

import sys
import time
from typing import Any

from tokencake_sglang.emulator.cells import Job


class Progress:
    """Counts runs; a run in progress counts by its finished apps. Use as a context manager."""

    def __init__(self, runs: int, already: int = 0):
        self._runs, self._done, self._virtual_s = runs, already, 0.0
        self._started = time.monotonic()
        self._bar = None
        if already:
            self._say(f"{already} of {runs} runs were finished before")

    def __enter__(self) -> Progress:
        if sys.stderr.isatty():
            from tqdm import tqdm

            layout = "{percentage:3.0f}%|{bar}| {desc} [{elapsed}<{remaining}]"
            self._bar = tqdm(total=self._runs, initial=self._done, bar_format=layout, leave=False)
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def update(self, running: list[dict[str, Any]]) -> None:
        """`running`: the last progress line of each run under way, empty before its first."""
        if self._bar is None:
            return
        share = sum(line["apps_done"] / line["apps"] for line in running if line.get("apps"))
        virtual_s = self._virtual_s + sum(line.get("virtual_s", 0.0) for line in running)
        self._bar.set_description_str(
            f"{self._done} of {self._runs} runs, {len(running)} running, {virtual_s:,.0f} virtual s", refresh=False)
        self._bar.n = self._done + share
        self._bar.refresh()

    def finished(self, job: Job, result: dict[str, Any] | str) -> None:
        """A run has ended, well or badly."""
        self._done += 1
        where = f"[{self._done}/{self._runs}] {job.cell.name} {job.configuration.name}"
        if isinstance(result, str):
            indented = "\n".join("    " + line for line in result.splitlines())
            self._say(f"{where}: failed\n{indented}")
            return
        self._virtual_s += result["virtual_s"]
        counts, latency = result["counts"], result["latency"]["mean_with_unfinished_s"]
        mean = "no app arrived" if latency is None else f"mean latency {latency:,.1f} s"
        self._say(f"{where}: {mean}, {counts['apps_completed']} of {counts['apps']} apps,"
                  f" {result['virtual_s']:,.0f} virtual s in {result['real']['wall_s']:,.0f} s")

    def _say(self, text: str) -> None:
        if self._bar is not None:
            self._bar.write(text, file=sys.stderr)
        else:
            print(text, file=sys.stderr, flush=True)
