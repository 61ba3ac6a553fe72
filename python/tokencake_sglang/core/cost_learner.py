"""Learns `Costs` from measured copies, prefill passes and decode steps.

Least squares over medians. Samples are sorted into buckets by the size of the operation, in powers of two; a bucket
holds its latest few and speaks with their lower median. A fit runs over the buckets, not over the samples: a server
that sees one size all day does not forget what other sizes told, a single slow copy is never a bucket's median, and
memory is bounded. Errors count relative to what was measured: short operations weigh as much as long ones, and a
sample that took a hundred times too long, alone in its bucket, has next to no leverage.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from tokencake_sglang.core.costs import Costs

LINK_BYTES_PER_S = 12e9  # of a link that nothing is known of, both ways (published code: 12 GB/s)
KEPT_SAMPLES = 8  # of each bucket: five others change its median
MAX_BUCKETS = 64  # of each fit; the one not seen for longest goes
HALF_LIFE_SAMPLES = 64  # a bucket counts half after so many samples in others
PRIOR_WEIGHT = 1e-5  # of the defaults, scaled to the samples, against one full bucket
MIN_PREFILL_TOKENS = 64  # shorter passes tell of reading weights and of first-time compilation, not of tokens
BUSY = 1.1  # a batch that takes this many times what decoding alone takes is held up by arithmetic
PAIR_SCALE = 1 / 32_768  # a token costs twice the least at about this position, until samples tell

Figures = tuple[float, ...]


@dataclass
class _Bucket:
    samples: list[tuple[Figures, float]] = field(default_factory=list)  # (amounts, seconds), latest last
    seen: int = 0  # number of the latest sample


class LinearFit:
    """seconds = sum of amount * figure, every figure zero or more.

    `defaults` are the figures while nothing is known; `scales` say how far each may plausibly be from its default,
    where that is not the default itself.
    """

    def __init__(self, defaults: Figures, scales: Figures | None = None) -> None:
        self.defaults = defaults
        self.scales = scales or defaults
        self.samples = 0
        self._buckets: dict[tuple[int, ...], _Bucket] = {}
        self._fitted: Figures | None = None  # to these samples

    def add(self, amounts: Figures, seconds: float) -> None:
        """Fold one sample. `amounts`: how often each figure is paid, zero or more; not all of them zero."""
        key = tuple(int(amount).bit_length() for amount in amounts)
        bucket = self._buckets.setdefault(key, _Bucket())
        self.samples += 1
        self._fitted = None
        bucket.seen = self.samples
        bucket.samples.append((amounts, seconds))
        del bucket.samples[:-KEPT_SAMPLES]
        if len(self._buckets) > MAX_BUCKETS:
            del self._buckets[min(self._buckets, key=lambda k: self._buckets[k].seen)]

    def figures(self) -> Figures:
        """The figures that fit all buckets best; the defaults, scaled, where the samples do not tell."""
        if self._fitted is None:
            self._fitted = self._fit_all() if self._buckets else self.defaults
        return self._fitted

    def _fit_all(self) -> Figures:
        points = [self._point(bucket) for bucket in self._buckets.values()]
        factor = _weighted_median([(seconds / _dot(amounts, self.defaults), weight)
                                   for amounts, seconds, weight in points])
        prior = tuple(factor * figure for figure in self.defaults)
        return self._fit(points, prior, factor)

    def _point(self, bucket: _Bucket) -> tuple[Figures, float, float]:
        """Amounts and seconds of the lower median sample, and its weight."""
        ordered = sorted(bucket.samples, key=lambda one: one[1] / _dot(one[0], self.defaults))
        amounts, seconds = ordered[(len(ordered) - 1) // 2]
        fresh = 0.5 ** ((self.samples - bucket.seen) / HALF_LIFE_SAMPLES)
        return amounts, seconds, fresh * len(ordered) / KEPT_SAMPLES

    def _fit(self, points: Sequence[tuple[Figures, float, float]], prior: Figures, factor: float) -> Figures:
        """Weighted least squares of relative errors around `prior`."""
        size = len(prior)
        matrix = [[0.0] * size for _ in range(size)]
        target = [0.0] * size
        scales = [factor * scale for scale in self.scales]
        for i in range(size):
            matrix[i][i], target[i] = PRIOR_WEIGHT, PRIOR_WEIGHT * prior[i] / scales[i]
        for amounts, seconds, weight in points:
            row = [amount * scale / seconds for amount, scale in zip(amounts, scales, strict=True)]
            for i in range(size):
                target[i] += weight * row[i]
                for j in range(size):
                    matrix[i][j] += weight * row[i] * row[j]
        return tuple(share * scale for share, scale in zip(_not_negative(matrix, target), scales, strict=True))


class CostLearner:
    """Folds samples of one server and gives its `Costs`. `kv_bytes_per_token`: of one rank, all layers."""

    def __init__(self, kv_bytes_per_token: float) -> None:
        assumed = Costs()
        token_s = max(1.0, kv_bytes_per_token) / LINK_BYTES_PER_S
        self._copies = LinearFit(
            (assumed.upload_base_s, token_s, assumed.offload_base_s, token_s, assumed.run_s))
        self._prefill = LinearFit(
            (assumed.prefill_base_s, assumed.prefill_token_s, assumed.prefill_pair_s),
            (assumed.prefill_base_s, assumed.prefill_token_s, assumed.prefill_token_s * PAIR_SCALE))
        self._compute = LinearFit(
            (assumed.compute_token_s, assumed.compute_pair_s), (1.0, PAIR_SCALE))
        self._decode = LinearFit((assumed.decode_base_s, assumed.decode_request_s, assumed.decode_token_s))

    @property
    def samples(self) -> int:
        """How many have been folded; while this stays, so do the costs."""
        return self._copies.samples + self._prefill.samples + self._compute.samples + self._decode.samples

    def copy(self, kind: str, tokens: int, runs: int, seconds: float) -> None:
        """One copy, "upload" or "offload", of `tokens` tokens in `runs` runs of neighbouring slots. One of no tokens
        or no time tells nothing. Raises ValueError for another kind."""
        if kind not in ("upload", "offload"):
            raise ValueError(f"a copy is {kind!r}; allowed: 'upload', 'offload'.")
        if tokens <= 0 or seconds <= 0:
            return
        own = (1.0, float(tokens))
        amounts = (*own, 0.0, 0.0) if kind == "upload" else (0.0, 0.0, *own)
        self._copies.add((*amounts, float(max(1, runs))), seconds)

    def prefill(self, parts: Sequence[tuple[int, int]], seconds: float) -> None:
        """One pass over `parts`: (new tokens, tokens before them) of each of its requests. A pass of fewer than
        MIN_PREFILL_TOKENS new tokens or of no time tells nothing."""
        tokens = sum(new for new, _ in parts)
        if tokens < MIN_PREFILL_TOKENS or seconds <= 0:
            return
        pairs = sum(new * (position + new / 2) for new, position in parts)
        self._prefill.add((1.0, float(tokens), pairs), seconds)

    def decode(self, requests: int, context: int, seconds: float) -> None:
        """One decode step of `requests` requests whose contexts are `context` tokens together. One of no time tells
        nothing."""
        if requests > 0 and seconds > 0:
            self._decode.add((1.0, float(requests), float(context)), seconds)

    def compute(self, parts: Sequence[tuple[int, int]], requests: int, context: int, seconds: float) -> None:
        """One batch that computes `parts` beside `requests` decoding requests of `context` tokens, and took `seconds`.

        It tells of arithmetic only if that was what took so long, or was taken to be slower than it can have been.
        """
        tokens = requests + sum(new for new, _ in parts)
        pairs = sum(new * (position + new / 2) for new, position in parts)
        base_s, request_s, token_s = self._decode.figures()
        reading_s = base_s + requests * request_s + context * token_s
        expected_s = _dot((float(tokens), pairs), self._compute.figures())
        if seconds > 0 and (seconds > BUSY * reading_s or expected_s > BUSY * seconds):
            self._compute.add((float(tokens), pairs), seconds)

    def costs(self) -> Costs:
        upload_base, upload_token, offload_base, offload_token, run = self._copies.figures()
        return Costs(
            upload_base, upload_token, offload_base, offload_token, run, *self._prefill.figures(),
            *self._compute.figures(), *self._decode.figures())


def _dot(amounts: Figures, figures: Figures) -> float:
    return sum(amount * figure for amount, figure in zip(amounts, figures, strict=True))


def _weighted_median(values: list[tuple[float, float]]) -> float:
    """The lower median of (value, weight) pairs."""
    half = sum(weight for _, weight in values) / 2
    for value, weight in sorted(values):
        half -= weight
        if half <= 0:
            return value
    return max(values)[0]


def _not_negative(matrix: list[list[float]], target: list[float]) -> list[float]:
    """Solve matrix * x = target with no x below zero: the most negative one is set to zero until none is left."""
    free, found = list(range(len(target))), []
    while free:
        found = _solve([[matrix[i][j] for j in free] for i in free], [target[i] for i in free])
        lowest = min(range(len(free)), key=found.__getitem__)
        if found[lowest] >= 0:
            break
        del free[lowest], found[lowest]
    solution = [0.0] * len(target)
    for i, value in zip(free, found, strict=True):
        solution[i] = value
    return solution


def _solve(matrix: list[list[float]], target: list[float]) -> list[float]:
    """Gauss without pivoting: `matrix` is symmetric and positive definite (the prior's weight is on its diagonal)."""
    size, x = len(target), target[:]
    for i in range(size):
        for j in range(i + 1, size):
            share = matrix[j][i] / matrix[i][i]
            x[j] -= share * x[i]
            for k in range(i, size):
                matrix[j][k] -= share * matrix[i][k]
    for i in reversed(range(size)):
        x[i] = (x[i] - sum(matrix[i][j] * x[j] for j in range(i + 1, size))) / matrix[i][i]
    return x
