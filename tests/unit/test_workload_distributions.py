"""Each kind of distribution draws what its fields say, and the shipped tool times reproduce their published figures."""

from __future__ import annotations

import random
from statistics import mean, quantiles

import pytest

from tokencake_sglang.emulator.workloads import distributions
from tokencake_sglang.emulator.workloads.distributions import named, resolve, sample


def draws(model, count: int = 20000) -> list[float]:
    rng = random.Random("draws")
    return [sample(resolve(model), rng) for _ in range(count)]


@pytest.mark.parametrize(("model", "low", "median", "high", "average"), [
    (3, 3, 3, 3, 3), ({"kind": "constant", "value_s": 1.7}, 1.7, 1.7, 1.7, 1.7),
    ({"kind": "uniform", "low": 2, "high": 6}, 2, 4, 6, 4),
    ({"kind": "lognormal", "p50_s": 10, "sigma": 0.5, "cap_s": 30, "min": 4}, 4, 10, 30, 11.2),
    ({"kind": "bounded_pareto", "L": 1, "H": 100, "alpha": 0}, 1, 10, 100, 21.5),
    ({"kind": "bounded_pareto", "L": 1, "H": 10, "alpha": 1}, 1, 1.82, 10, 2.56),
    ({"kind": "normal_clipped", "mean_s": 1, "std_s": 1, "min_s": 0}, 0, 1, 7, 1.083),
    ({"kind": "exponential", "mean": 2}, 0, 1.386, 40, 2),
    ({"kind": "gamma", "shape": 0.5, "scale": 4}, 0, 0.91, 80, 2),
    ({"kind": "gamma", "shape": 0.5, "scale": 4, "reflect_at": 20}, 0, 19.1, 60, 18),
    ({"values": [1, 2], "weights": [0.7, 0.3]}, 1, 1, 2, 1.3),
    ({"p_zero": 0.6, "kind": "constant", "value": 5}, 0, 0, 5, 2),
    ({"kind": "mixture", "bins": [[1, 2, 0.5, 0], {"weight": 0.5, "model": 10}]}, 1, 6, 10, 5.72),
])
def test_a_kind_draws_what_its_fields_say(model, low: float, median: float, high: float, average: float) -> None:
    values = draws(model)
    assert low - 1e-9 <= min(values) and max(values) <= high + 1e-9
    assert mean(values) == pytest.approx(average, rel=0.03)
    if median != 6:  # the gap between the bins of the mixture
        assert quantiles(values, n=2)[0] == pytest.approx(median, rel=0.04, abs=1e-9)


def test_the_measured_tool_mixture_has_its_published_quantiles() -> None:
    values = draws("tracelab.all_calls", 40000)
    positive = sorted(value for value in values if value > 0)
    assert len(positive) / len(values) == pytest.approx(0.75, abs=0.01)
    assert positive[len(positive) // 2] == pytest.approx(0.3, rel=0.15)
    assert positive[int(0.9 * len(positive))] == pytest.approx(13.6, rel=0.1)
    assert positive[int(0.99 * len(positive))] == pytest.approx(216, rel=0.15)
    assert max(positive) == 600


@pytest.mark.parametrize(("name", "average"), [
    ("infercept.image_generation", 20.03), ("infercept.question_answering", 0.69), ("tokencake_artifact.search", 4.0),
    ("infercept_synthetic.normal", 11), ("infercept_synthetic.uniform", 10.05), ("infercept_synthetic.short", 2),
    ("infercept_synthetic.long", 18), ("infercept_synthetic.bimodal", 10)])
def test_named_tool_times_have_their_published_means(name: str, average: float) -> None:
    assert mean(draws(name)) == pytest.approx(average, rel=0.03)
    assert distributions.mean(named(name)) == pytest.approx(average, rel=0.05)


def test_every_entry_of_the_file_can_be_drawn_from() -> None:
    with pytest.raises(ValueError) as refused:
        named("nothing")
    listed = str(refused.value).split("there are ")[1].split(", ")
    assert len(listed) > 30 and all(distributions.accepts(name) for name in listed)


def test_an_unknown_kind_or_a_missing_field_is_not_accepted() -> None:
    for model in ({"kind": "zipf"}, {"kind": "lognormal", "p50": 3}, {}, "nothing", [1], None, True,
                  {"kind": "bounded_pareto", "L": 0, "H": 1, "alpha": 1}, {"kind": "uniform", "low": -5, "high": 1},
                  {"bins": [[1, 2, 0.9, 0], {"weight": 0.1, "model": {"kind": "zipf"}}]}):
        assert not distributions.accepts(model), model
    with pytest.raises(ValueError, match="no distribution kind 'zipf'; there are constant, lognormal"):
        sample({"kind": "zipf"}, random.Random(1))
