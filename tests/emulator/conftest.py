"""Processes in which emulated runs take place, and the runs that several tests look at."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from tests.support.emulations import Emulations

JOBS = "tests.emulator.jobs:"


class Runs:
    """Starts each run once, however many tests ask for it."""

    def __init__(self, emulations: Emulations, folder: Path) -> None:
        self._emulations, self._folder = emulations, folder
        self._started: dict[str, Future] = {}

    def start(self, spec: dict[str, Any], mutation: str = "", parent: int | None = None) -> str:
        key = json.dumps([spec, mutation, parent], sort_keys=True)
        if key not in self._started:
            log = self._folder / f"{len(self._started)}.jsonl"
            self._started[key] = self._emulations.submit(
                JOBS + "run_spec", {**spec, "event_log": str(log)}, mutation, parent=parent)
        return key

    def result(self, spec: dict[str, Any], mutation: str = "", parent: int | None = None) -> dict[str, Any]:
        return self._started[self.start(spec, mutation, parent)].result()


@pytest.fixture(scope="session")
def emulations() -> Iterator[Emulations]:
    with Emulations(1, 2) as processes:
        yield processes


@pytest.fixture(scope="session")
def runs(emulations, tmp_path_factory) -> Runs:
    return Runs(emulations, tmp_path_factory.mktemp("events"))
