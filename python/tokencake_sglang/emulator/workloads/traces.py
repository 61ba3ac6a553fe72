"""What the two trace readers share: windows of a trace, arrivals, and errors that name file and line."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokencake_sglang.emulator.workloads import arrivals, forecast
from tokencake_sglang.emulator.workloads.parameters import Parameter, choice, number, path, whole

MAX_NEW_TOKENS = "what clients ask for (None: exactly the output); the output then ends by itself before"


def parameters(what: str) -> dict[str, Parameter]:
    known = {
        "path": path("the trace file (None: the shipped one)"),
        "limit": whole(None, f"read this many {what} (None: all)"),
        "start_s": number(0.0, "leave out what arrives before this time of the trace"),
        "speed": number(1.0, "times of arrival divided by this; tool waits stay", above=True),
        "forecast": forecast.parameter("exact"),
        "max_new_tokens": whole(None, MAX_NEW_TOKENS),
        "horizon_s": number(None, "end of the run", above=True),
    }
    timed = arrivals.parameters(qps=1.0)
    timed["arrival"] = choice("trace", "when programs arrive: as the trace says, or", "trace", *arrivals.PROCESSES)
    return known | timed


def max_new_tokens(output: int, values: Mapping[str, Any]) -> int | None:
    """`Call.max_new_tokens` for an output of that length."""
    asked = values["max_new_tokens"]
    return None if asked is None else max(asked, output)


def name_of(shipped: str, path: str | None) -> str:
    """A name for keys and ids: the file's, without its ending."""
    return Path(path or shipped).stem


class Line:
    """One line of a trace, whose values are asked for by name and type. Errors say where and what was found."""

    def __init__(self, file: str, line: int, values: Mapping[str, Any]) -> None:
        self.file, self.line, self.values = file, line, values

    def error(self, message: str) -> ValueError:
        return ValueError(f"{self.file}:{self.line}: {message}")

    def number(self, name: str, default: float | None = None) -> float:
        """A number of at least 0. ValueError if it is missing and there is no default."""
        raw = self.values.get(name)
        if raw is None or raw == "":
            if default is None:
                raise self.error(f"{name} is missing; it must be a number of at least 0")
            return default
        try:
            value = float(raw)
        except (TypeError, ValueError):
            value = -1.0
        if not 0 <= value < float("inf") or isinstance(raw, bool):
            raise self.error(f"{name} is {raw!r}; it must be a number of at least 0")
        return value

    def whole(self, name: str, low: int = 0) -> int:
        value = self.number(name)
        if value != int(value) or value < low:
            raise self.error(f"{name} is {self.values[name]!r}; it must be a whole number of at least {low}")
        return int(value)


def arrival_list(arrived_s: list[float], seed: str, values: Mapping[str, Any]) -> list[arrivals.Arrival]:
    """The arrivals of programs that the trace lets arrive at those times (from 0 on)."""
    if values["arrival"] != "trace":
        return arrivals.arrivals(len(arrived_s), seed, values)
    return [arrivals.Arrival(time / values["speed"]) for time in arrived_s]
