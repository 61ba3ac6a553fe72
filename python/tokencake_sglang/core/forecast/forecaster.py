"""What a forecaster is, and how far a call with stages has come."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from tokencake_sglang.core.forecast.forecast import Forecast


@dataclass(frozen=True)
class Stages:
    """The stages of a call that have not finished, in order, each a name and its estimate in seconds.

    `since_s` is the time since a stage finished last; None: none of this call has.
    """

    remaining: tuple[tuple[str, float], ...]
    since_s: float | None


Row = tuple[str, tuple[str | None, ...], tuple[float, ...]]  # table, key and figures


class Forecaster(Protocol):
    """Equal lessons in equal order give equal forecasts, on every rank. Times are seconds; `agent_type` None is a type
    of its own."""

    lessons: int  # how many there were in this run

    def predict(
        self, agent_type: str | None, kind: str, estimate_s: float | None, stages: Stages | None, elapsed_s: float,
        p90_s: float | None = None,
    ) -> Forecast:
        """Of a call that has lasted `elapsed_s` and still runs. `p90_s`: nine of ten stay below it, as its client says,
        which counts while nothing is known of such estimates. Changes nothing."""
        ...

    def observe(self, agent_type: str | None, kind: str, estimate_s: float | None, duration_s: float) -> None:
        """A call (or a stage, whose kind is "kind/stage") has taken so long; its caller had given this estimate."""
        ...

    def dump(self) -> list[Row]:
        """What was learnt, the key taught longest ago first. Nothing in it is changed later."""
        ...

    def load(self, rows: Any) -> None:
        """Take in what `dump` gave in another run, with lists for tuples. ValueError, and nothing is taken in, when it
        is no list of rows of this forecaster."""
        ...


def stage_kind(kind: str, stage: str) -> str:
    """The kind under which a stage is learnt."""
    return f"{kind}/{stage}"
