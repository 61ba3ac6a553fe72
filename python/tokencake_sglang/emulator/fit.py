"""From measured times to the coefficients of a `profile.FittedCost`, and how far off they are.

Every coefficient is zero or more (non-negative least squares) and errors count relative to the time, so that short
steps weigh as much as long ones. Every fourth point is held out: the fit never sees it, and the reported errors are
those on the held-out points.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from tokencake_sglang.core.errors import TokenCakeError

HOLD_OUT_EVERY = 4
PREFILL_TERMS = ("prefill_step", "prefill_request", "new", "prefix", "new_prefix", "new_new", "prefix_prefix")
DECODE_TERMS = ("decode_step", "decode_request", "decode_context")
COPY_TERMS = ("latency", "run", "token")
FLOOR_MARGIN = 1.1


class FitError(TokenCakeError, ValueError):
    """The points do not determine the coefficients."""


@dataclass(frozen=True)
class PrefillPoint:
    """A prefill step that took `seconds`; `chunks` holds (new, prefix) tokens of each request."""

    chunks: tuple[tuple[int, int], ...]
    seconds: float


@dataclass(frozen=True)
class DecodePoint:
    """A decode step of `batch` requests with `context` tokens in all."""

    batch: int
    context: float
    seconds: float


@dataclass(frozen=True)
class CopyPoint:
    """A copy of `tokens` tokens in `runs` contiguous runs of slots; `direction` is "h2d" or "d2h"."""

    direction: str
    tokens: int
    runs: int
    seconds: float


@dataclass(frozen=True)
class Fit:
    """`coefficients` in seconds, and the relative errors of the held-out points."""

    coefficients: dict[str, float]
    points: int
    held_out: int
    median_error: float
    max_error: float

    def report(self) -> dict[str, float]:
        return {"points": self.points, "held_out": self.held_out, "median_relative_error": round(self.median_error, 4),
                "max_relative_error": round(self.max_error, 4)}


def typical(times: Sequence[float]) -> float:
    """The lower quartile of repeated times: whatever else runs on the machine only ever adds to them."""
    return sorted(times)[len(times) // 4]


def fit_prefill(points: Sequence[PrefillPoint]) -> Fit:
    """Coefficients of a prefill step, `prefill_floor` included where it explains the training points better.

    A device that has to read its weights in every step takes as long for a few tokens as for some more.
    """
    several = any(len(point.chunks) > 1 for point in points)
    terms = tuple(term for term in PREFILL_TERMS if several or term != "prefill_request")
    rows = [_prefill_row(point, terms) for point in points]
    seconds = [point.seconds for point in points]
    train, held = _split(len(points), len(terms), "prefill")
    best, best_error = None, float("inf")
    for floor in (0.0, *sorted({seconds[i] for i in train})):
        above = [i for i in train if seconds[i] > FLOOR_MARGIN * floor]
        if len(above) < len(terms):
            break
        weights = _solve([rows[i] for i in above], [seconds[i] for i in above])
        predict = _floored(weights, floor)
        error = sum(_error(predict(rows[i]), seconds[i]) ** 2 for i in train)
        if error < 0.95 * best_error:  # a floor has to earn its place
            best, best_error = (weights, floor), error
    weights, floor = best
    coefficients = {**dict.fromkeys(PREFILL_TERMS, 0.0), **dict(zip(terms, weights, strict=True)),
                    "prefill_floor": floor}
    return _result(coefficients, rows, seconds, held, _floored(weights, floor))


def fit_decode(points: Sequence[DecodePoint]) -> Fit:
    """Coefficients of a decode step."""
    rows = [(1.0, float(point.batch), float(point.context)) for point in points]
    return _fit_sum("decode", DECODE_TERMS, rows, [point.seconds for point in points])


def fit_copies(points: Sequence[CopyPoint]) -> Fit:
    """Latency, time per run and time per token of copies in one direction.

    Without points of differing runs `run` is 0. If no time grows with the tokens, everything is put on the tokens.
    """
    with_runs = len({point.runs for point in points}) > 1
    terms = COPY_TERMS if with_runs else ("latency", "token")
    rows = [(1.0, float(p.runs), float(p.tokens)) if with_runs else (1.0, float(p.tokens)) for p in points]
    seconds = [point.seconds for point in points]
    fit = _fit_sum("copy", terms, rows, seconds)
    if fit.coefficients["token"] == 0.0:
        terms, rows = ("token",), [(float(point.tokens),) for point in points]
        fit = _fit_sum("copy", terms, rows, seconds)
    return Fit({**dict.fromkeys(COPY_TERMS, 0.0), **fit.coefficients}, fit.points, fit.held_out, fit.median_error,
               fit.max_error)


def _prefill_row(point: PrefillPoint, terms: Sequence[str]) -> list[float]:
    sums = dict.fromkeys(PREFILL_TERMS, 0.0)
    sums["prefill_step"] = 1.0
    for new, prefix in point.chunks:
        sums["prefill_request"] += 1
        sums["new"] += new
        sums["prefix"] += prefix
        sums["new_prefix"] += new * prefix
        sums["new_new"] += new * new
        sums["prefix_prefix"] += prefix * prefix
    return [sums[term] for term in terms]


def _fit_sum(what: str, terms: Sequence[str], rows: Sequence[Sequence[float]], seconds: Sequence[float]) -> Fit:
    train, held = _split(len(rows), len(terms), what)
    weights = _solve([rows[i] for i in train], [seconds[i] for i in train])
    return _result(dict(zip(terms, weights, strict=True)), rows, seconds, held, _floored(weights, 0.0))


def _split(count: int, terms: int, what: str) -> tuple[list[int], list[int]]:
    """Indexes to fit on and indexes held out: every fourth."""
    held = list(range(HOLD_OUT_EVERY - 1, count, HOLD_OUT_EVERY))
    train = [i for i in range(count) if i not in held]
    if len(train) < terms or not held:
        needed = max(HOLD_OUT_EVERY, next(n for n in range(terms, 99) if n - n // HOLD_OUT_EVERY >= terms))
        raise FitError(f"{count} {what} points were measured, but {terms} coefficients and held-out points need at "
                       f"least {needed}. Measure a larger grid.")
    return train, held


def _solve(rows: Sequence[Sequence[float]], seconds: Sequence[float]) -> list[float]:
    """Non-negative weights that minimise the relative errors of the rows' weighted sums."""
    import numpy
    from scipy.optimize import nnls

    times = numpy.asarray(seconds, dtype=float)
    if not (times > 0).all():
        raise FitError("A measured time is not above 0. Measure again, with longer prompts.")
    matrix = numpy.asarray(rows, dtype=float) / times[:, None]
    scale = numpy.linalg.norm(matrix, axis=0)
    scale[scale == 0] = 1.0
    weights, _ = nnls(matrix / scale, numpy.ones(len(times)))
    return [float(weight) for weight in weights / scale]


def _floored(weights: Sequence[float], floor: float) -> Callable[[Sequence[float]], float]:
    return lambda row: max(floor, sum(w * value for w, value in zip(weights, row, strict=True)))


def _error(predicted: float, measured: float) -> float:
    return abs(predicted - measured) / measured


def _result(coefficients: dict[str, float], rows: Sequence[Sequence[float]], seconds: Sequence[float],
            held: Sequence[int], predict: Callable[[Sequence[float]], float]) -> Fit:
    errors = [_error(predict(rows[i]), seconds[i]) for i in held]
    return Fit(coefficients, len(rows), len(errors), median(errors), max(errors))
