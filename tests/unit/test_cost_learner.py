"""CostLearner: which figures come out of which samples."""

from __future__ import annotations

import itertools

import pytest

from tokencake_sglang.core.cost_learner import (
    KEPT_SAMPLES,
    LINK_BYTES_PER_S,
    MAX_BUCKETS,
    MIN_PREFILL_TOKENS,
    CostLearner,
    LinearFit,
)
from tokencake_sglang.core.costs import Costs

KV_BYTES = 196_608
TRUE = Costs(
    upload_base_s=0.0004, upload_token_s=8e-6, offload_base_s=0.0007, offload_token_s=2e-5, run_s=1e-5,
    prefill_base_s=0.012, prefill_token_s=5e-5, prefill_pair_s=2e-9,
    compute_token_s=1.4e-4, compute_pair_s=5e-9, decode_base_s=0.015, decode_request_s=2e-5, decode_token_s=9e-8)
COPIES = list(itertools.product((64, 300, 1000, 5000, 20_000), (1, 8, 50)))
DECODES = list(itertools.product((1, 8, 60), (2000, 20_000, 150_000)))
PASSES = list(itertools.product((100, 500, 2000, 8000), (0, 1000, 30_000)))


def feed_copies(learner, costs=TRUE, rounds=1, kinds=("upload", "offload")):
    for _ in range(rounds):
        for (tokens, runs), kind in itertools.product(COPIES, kinds):
            seconds = costs.upload_s(tokens, runs) if kind == "upload" else costs.offload_s(tokens, runs)
            learner.copy(kind, tokens, runs, seconds)


def feed_passes(learner, costs=TRUE, rounds=1):
    for _ in range(rounds):
        for new, position in PASSES:
            learner.prefill(((new, position),), costs.prefill_s(new, position))


def feed_decodes(learner, costs=TRUE, rounds=1):
    for _ in range(rounds):
        for requests, context in DECODES:
            learner.decode(requests, context, costs.decode_s(requests, context))


def feed_batches(learner, costs=TRUE, rounds=1):
    """Batches that take as long as the slower of reading and arithmetic."""
    for _ in range(rounds):
        for (new, position), (requests, context) in itertools.product(PASSES, [(0, 0), *DECODES]):
            tokens, pairs = requests + new, new * (position + new / 2)
            learner.compute(((new, position),), requests, context, max(
                costs.compute_s(tokens, pairs), costs.decode_s(requests, context)))


def trained(rounds=4):
    learner = CostLearner(KV_BYTES)
    feed_copies(learner, rounds=rounds)
    feed_passes(learner, rounds=rounds)
    feed_decodes(learner, rounds=rounds)
    feed_batches(learner, rounds=rounds)
    return learner


def worst_error(costs, true=TRUE):
    """Largest relative error of what a policy asks."""
    asked = [(costs.upload_s(*c), true.upload_s(*c)) for c in COPIES]
    asked += [(costs.offload_s(*c), true.offload_s(*c)) for c in COPIES]
    asked += [(costs.prefill_s(*c), true.prefill_s(*c)) for c in PASSES]
    asked += [(costs.compute_s(*c), true.compute_s(*c)) for c in ((64, 0), (500, 5e6))]
    asked += [(costs.decode_s(*c), true.decode_s(*c)) for c in DECODES]
    return max(abs(found / wanted - 1) for found, wanted in asked)


def test_nothing_known_gives_the_defaults_with_copies_scaled_from_the_bytes_of_a_token():
    assumed, costs = Costs(), CostLearner(KV_BYTES).costs()
    assert costs.upload_token_s == costs.offload_token_s == KV_BYTES / LINK_BYTES_PER_S
    assert (costs.upload_base_s, costs.run_s) == (assumed.upload_base_s, assumed.run_s)
    assert costs.to_tuple()[-8:] == assumed.to_tuple()[-8:]


def test_samples_of_a_linear_model_give_its_figures():
    for found, wanted in zip(trained().costs().to_tuple(), TRUE.to_tuple(), strict=True):
        assert found == pytest.approx(wanted, rel=0.03)


def test_a_batch_that_waits_for_memory_tells_of_arithmetic_only_if_that_was_taken_for_slower():
    learner = trained()
    before, samples = learner.costs(), learner.samples
    learner.compute(((50, 0),), 8, 150_000, before.decode_s(8, 150_000))
    assert (learner.costs(), learner.samples) == (before, samples), "58 tokens can take no longer, and may take less"
    for _ in range(KEPT_SAMPLES):
        learner.compute(((300, 0),), 8, 150_000, before.decode_s(8, 150_000))
    assert learner.costs().compute_token_s < before.compute_token_s


def test_the_cost_of_pairs_is_found_in_passes_of_many_requests():
    learner = CostLearner(KV_BYTES)
    for new, position in PASSES:
        parts = ((new, position), (new // 2, position * 2), (50, 0))
        seconds = TRUE.prefill_base_s + sum(n * TRUE.recompute_token_s(n, p) for n, p in parts)
        for _ in range(3):
            learner.prefill(parts, seconds)
    assert learner.costs().prefill_pair_s == pytest.approx(TRUE.prefill_pair_s, rel=0.03)


@pytest.mark.parametrize("kind", ["upload", "offload"])
def test_one_sample_scales_the_defaults_to_it(kind):
    learner = CostLearner(KV_BYTES)
    before = learner.costs()
    learner.copy(kind, 2000, 1, 0.5)
    learner.prefill(((2000, 0),), 0.05)
    costs = learner.costs()
    assert getattr(costs, f"{kind}_s")(2000) == pytest.approx(0.5, rel=1e-6)
    assert costs.prefill_s(2000, 0) == pytest.approx(0.05, rel=0.02)
    assert costs.upload_token_s / before.upload_token_s == pytest.approx(costs.run_s / before.run_s)


@pytest.mark.parametrize("seconds", [1e-5, 1e-3, 0.02, 3.0])
def test_samples_of_one_size_give_that_size_and_split_it_as_the_defaults_do(seconds):
    learner = CostLearner(KV_BYTES)
    for _ in range(500):
        learner.copy("upload", 1000, 1, seconds)
        learner.prefill(((1000, 0),), seconds)
    costs = learner.costs()
    assert costs.upload_s(1000) == pytest.approx(seconds, rel=0.01)
    assert costs.prefill_s(1000, 0) == pytest.approx(seconds, rel=0.01)
    assert costs.upload_s(10_000) > 5 * costs.upload_s(1000)
    assert min(costs.to_tuple()) >= 0


def test_many_samples_of_one_size_do_not_make_it_forget_the_other_sizes():
    learner = trained()
    for _ in range(200):
        learner.copy("upload", 1000, 1, TRUE.upload_s(1000))
        learner.prefill(((1000, 0),), TRUE.prefill_s(1000, 0))
    assert worst_error(learner.costs()) < 0.05


@pytest.mark.parametrize("tokens", [64, 1000, 100_000])
@pytest.mark.parametrize("size_seen_before", [True, False])
def test_an_outlier_of_a_hundred_times_moves_nothing_by_more_than_a_tenth(tokens, size_seen_before):
    learner = trained()
    tokens += 0 if size_seen_before else tokens * 3 // 2
    learner.copy("upload", tokens, 1, 100 * TRUE.upload_s(tokens))
    learner.copy("offload", tokens, 1, 100 * TRUE.offload_s(tokens))
    learner.prefill(((tokens, 500),), 100 * TRUE.prefill_s(tokens, 500))
    assert worst_error(learner.costs()) < 0.1


def test_a_first_sample_that_was_an_outlier_is_soon_outvoted():
    learner = CostLearner(KV_BYTES)
    learner.copy("upload", 1000, 1, 100 * TRUE.upload_s(1000))
    learner.prefill(((1000, 0),), 100 * TRUE.prefill_s(1000, 0))
    learner.decode(10, 20_000, 100 * TRUE.decode_s(10, 20_000))
    feed_copies(learner)
    feed_passes(learner)
    feed_decodes(learner)
    feed_batches(learner)
    assert worst_error(learner.costs()) < 0.1


def test_an_outlier_of_a_size_never_seen_before_has_little_leverage_beside_one_known_size():
    learner = CostLearner(KV_BYTES)
    for _ in range(KEPT_SAMPLES):
        learner.copy("upload", 1000, 1, TRUE.upload_s(1000))
    expected = learner.costs().upload_s(5000)
    learner.copy("upload", 5000, 1, 100 * TRUE.upload_s(5000))
    assert learner.costs().upload_s(5000) == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("factor", [3.0, 1 / 3])
def test_it_follows_a_device_that_has_changed(factor):
    learner = trained(rounds=KEPT_SAMPLES)
    changed = Costs(*(figure * factor for figure in TRUE.to_tuple()))
    feed_copies(learner, changed, rounds=KEPT_SAMPLES // 2 + 1)
    feed_passes(learner, changed, rounds=KEPT_SAMPLES // 2 + 1)
    feed_decodes(learner, changed, rounds=KEPT_SAMPLES // 2 + 1)
    feed_batches(learner, changed, rounds=KEPT_SAMPLES // 2 + 1)
    assert worst_error(learner.costs(), changed) < 0.05


def test_it_follows_a_change_that_shows_in_one_size_only():
    """Sizes that no longer occur lose their say."""
    learner = trained()
    slow = 3 * TRUE.upload_s(1000)
    for _ in range(600):
        learner.copy("upload", 1000, 1, slow)
    assert learner.costs().upload_s(1000) == pytest.approx(slow, rel=0.1)
    assert learner.costs().upload_s(5000) > 2 * TRUE.upload_s(5000)


def test_one_direction_measured_leaves_the_other_as_scaled():
    learner = CostLearner(KV_BYTES)
    feed_copies(learner, rounds=3, kinds=("upload",))
    costs = learner.costs()
    assert costs.upload_s(5000) == pytest.approx(TRUE.upload_s(5000), rel=0.05)
    assert 0.2 < costs.offload_s(5000) / costs.upload_s(5000) < 5


def test_figures_are_never_negative():
    learner = CostLearner(KV_BYTES)
    for tokens, seconds in ((100, 0.5), (1000, 0.4), (10_000, 0.3)):
        for _ in range(5):
            learner.copy("upload", tokens, 1, seconds)
            learner.prefill(((tokens, 0),), seconds)
    assert min(learner.costs().to_tuple()) >= 0


def test_what_tells_nothing_is_not_folded():
    learner = CostLearner(KV_BYTES)
    learner.copy("upload", 0, 1, 0.1)
    learner.copy("offload", 100, 1, 0.0)
    learner.prefill(((MIN_PREFILL_TOKENS - 1, 0),), 9.0)
    learner.prefill(((1000, 0),), 0.0)
    assert learner.samples == 0 and learner.costs() == CostLearner(KV_BYTES).costs()
    with pytest.raises(ValueError, match="allowed: 'upload', 'offload'"):
        learner.copy("sideways", 10, 1, 0.1)


def test_memory_is_bounded_whatever_sizes_come():
    learner = CostLearner(KV_BYTES)
    for exponent in range(17):
        for runs in range(0, exponent + 1):
            for _ in range(20):
                learner.copy("upload", 1 << exponent, 1 << runs, 0.01)
    buckets = learner._copies._buckets
    assert len(buckets) == MAX_BUCKETS
    assert max(len(bucket.samples) for bucket in buckets.values()) == KEPT_SAMPLES


def test_the_same_samples_give_the_same_costs():
    assert trained().costs() == trained().costs()


def test_a_fit_is_made_once_for_each_new_sample_however_often_it_is_asked(monkeypatch):
    """A batch with prompts asks in every step."""
    fitted = []
    make = LinearFit._fit
    monkeypatch.setattr(LinearFit, "_fit", lambda fit, *given: fitted.append(fit) or make(fit, *given))
    fit = LinearFit((1.0, 1.0))
    assert fit.figures() == (1.0, 1.0) and fitted == []
    for amount in (1.0, 50.0):
        fit.add((1.0, amount), 2.0 + 3.0 * amount)
        assert fit.figures() == fit.figures() == fit.figures()
    assert len(fitted) == 2
    assert fit.figures() == pytest.approx((2.0, 3.0), rel=0.01)


# -- the value --------------------------------------------------------------------------------------------------


def test_costs_survive_the_way_through_a_message():
    assert Costs.from_tuple(list(TRUE.to_tuple())) == TRUE
    with pytest.raises(ValueError, match="3 figures; there are 13"):
        Costs.from_tuple([1.0, 2.0, 3.0])


@pytest.mark.parametrize(("change", "expected"), [
    ({}, False), ({"run_s": 1.04e-5}, False), ({"run_s": 1.06e-5}, True), ({"prefill_token_s": 4.7e-5}, True),
    ({"prefill_base_s": 0.0}, True)])
def test_costs_differ_when_one_figure_does(change, expected):
    other = Costs(**{**dict(zip(Costs.__dataclass_fields__, TRUE.to_tuple(), strict=True)), **change})
    assert other.differs(TRUE, 0.05) is expected


def test_a_figure_that_was_zero_differs_from_any_other():
    assert Costs(prefill_pair_s=1e-9).differs(Costs(), 0.05)
