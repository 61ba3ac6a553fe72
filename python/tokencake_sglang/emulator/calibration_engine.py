"""Calibration of SGLang's offline Engine on this machine: its scheduler notes the times itself (`step_log`).

The Engine runs without overlap scheduling, so that the host's time and the device's do not hide each other.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from tokencake_sglang.core.errors import TokenCakeError
from tokencake_sglang.emulator import step_log
from tokencake_sglang.emulator.calibration_grid import Facts, Measured
from tokencake_sglang.emulator.fit import CopyPoint, DecodePoint, PrefillPoint, typical

FACTS_WITHIN_S = 60.0
FLUSH_TRIES = 50
SHORTEST_ROW = 3  # decode steps of an unchanged batch


class EngineServer:
    """An Engine of the given ServerArgs fields, for use in a ``with`` statement."""

    def __init__(self, given: Mapping[str, Any]) -> None:
        self.given = dict(given)
        self.marks: list[tuple[str, int]] = []  # (what is measured, length of the log when it began)

    def __enter__(self) -> EngineServer:
        handle, name = tempfile.mkstemp(prefix="tokencake-steps-", suffix=".jsonl")
        os.close(handle)
        self.log = Path(name)
        os.environ[step_log.ENV_PATH] = name
        try:
            self.engine = start_engine(self.given)
            self.facts = self._facts()
        except BaseException:
            self._clean()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.engine.shutdown()
        self._clean()

    def _clean(self) -> None:
        os.environ.pop(step_log.ENV_PATH, None)
        self.log.unlink(missing_ok=True)

    def _lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text(encoding="utf-8").splitlines()]

    def _facts(self) -> Facts:
        """What the scheduler writes as it enters its loop: shortly after it has told that it is ready."""
        end = time.monotonic() + FACTS_WITHIN_S
        while not (found := [line for line in self._lines() if line["kind"] == "facts"]) and time.monotonic() < end:
            time.sleep(0.05)
        if not found:
            raise TokenCakeError("The scheduler wrote no facts: it did not start through the calibration. Calibrate "
                                 "the server over its URL instead.")
        values = {key: value for key, value in found[0].items() if key != "kind"}
        return Facts(model=Path(self.given["model_path"]).name, **values)

    def warm(self, prompt: list[int]) -> None:
        self._generate([prompt], 4)

    def prefill(self, prompt: list[int]) -> None:
        self._mark("prefill")
        self._generate([prompt], 1)
        self._mark("rest")

    def decode(self, prompts: list[list[int]], steps: int) -> None:
        self._mark("decode")
        self._generate(prompts, steps)
        self._mark("rest")

    def _mark(self, what: str) -> None:
        self.marks.append((what, len(self._lines())))

    def _generate(self, prompts: list[list[int]], tokens: int) -> None:
        self.engine.generate(input_ids=prompts, sampling_params={
            "max_new_tokens": tokens, "ignore_eos": True, "temperature": 0})

    def flush(self) -> None:
        for _ in range(FLUSH_TRIES):
            if self.engine.flush_cache().success:
                return
        raise TokenCakeError(f"The cache could not be flushed in {FLUSH_TRIES} tries: the engine has other requests.")

    def measured(self) -> Measured:
        """What the scheduler noted, as points."""
        lines = self._lines()
        phases = [what for (what, begin), (_, end) in zip(self.marks, [*self.marks[1:], ("", len(lines))], strict=True)
                  for _ in range(begin, end)]
        first = self.marks[0][1]
        steps = [{**line, "phase": phase} for line, phase in zip(lines[first:], phases, strict=True)]
        copies = [CopyPoint(line["direction"], line["tokens"], line["runs"], line["seconds"])
                  for line in lines if line["kind"] == "copy"]
        return Measured(self.facts, "in-process", prefill_points(steps), decode_points(steps), copies,
                        step_overhead_s=host_overhead_s(steps))


def prefill_points(steps: Iterable[Mapping[str, Any]]) -> list[PrefillPoint]:
    """One point for each composition of a prefill step that was met twice or more."""
    times: dict[tuple, list[float]] = defaultdict(list)
    for step in steps:
        if step["phase"] != "rest" and "chunks" in step:
            times[tuple(sorted(map(tuple, step["chunks"])))].append(step["seconds"])
    return [PrefillPoint(chunks, typical(found)) for chunks, found in times.items() if len(found) > 1]


def decode_points(steps: Iterable[Mapping[str, Any]]) -> list[DecodePoint]:
    """One point for each batch and context at which a row of decode steps of an unchanged batch began.

    Repeated rows are one point, so that a held-out point is one that the fit never saw.
    """
    rows: dict[tuple[int, int], list[Mapping[str, Any]]] = defaultdict(list)
    row: list[Mapping[str, Any]] = []
    for step in [*steps, {"phase": "end"}]:
        if row and (step["phase"] != "decode" or step.get("batch") != row[0]["batch"]):
            if len(row) >= SHORTEST_ROW:
                rows[row[0]["batch"], row[0]["context"]] += row
            row = []
        if step["phase"] == "decode" and "batch" in step:
            row.append(step)
    return [DecodePoint(batch, fmean(step["context"] for step in found), typical([step["seconds"] for step in found]))
            for (batch, _), found in rows.items()]


def host_overhead_s(steps: Sequence[Mapping[str, Any]]) -> float:
    """What the host takes between two decode steps of an unchanged batch, when nothing else is to be done."""
    gaps = [after["entered"] - before["left"] for before, after in zip(steps, steps[1:], strict=False)
            if before["phase"] == "decode" and "batch" in before and before["batch"] == after.get("batch")]
    return typical(gaps) if gaps else 0.0


def start_engine(given: Mapping[str, Any]) -> Any:
    """SGLang's Engine with a host tier, on the device of this machine, timed."""
    from tokencake_sglang import serving

    serving.load_plugins(None)
    values = {"enable_hierarchical_cache": True, "hicache_write_policy": "write_back", "log_level": "error", **given}
    _, chosen, _ = serving.prepare(values, None)
    from sglang.srt.entrypoints.engine import Engine
    from sglang.srt.server_args import ServerArgs

    class TimedEngine(Engine):
        run_scheduler_process_func = staticmethod(step_log.run_scheduler_process)

    return TimedEngine(server_args=ServerArgs(**{**values, **chosen, "disable_overlap_schedule": True}))
