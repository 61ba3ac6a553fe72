"""Forecasts of when a tool call ends: the published point, and quantiles from estimates, history and elapsed time."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokencake_sglang.core.config import TokenCakeConfig
from tokencake_sglang.core.forecast import LEVELS, Forecast, Stages, make_forecaster
from tokencake_sglang.core.forecast.paper import PaperForecaster
from tokencake_sglang.core.forecast.quantile import FEW, MANY, QuantileForecaster
from tokencake_sglang.core.forecast.samples import KEYS_KEPT, SAMPLES_KEPT
from tokencake_sglang.emulator.workloads.distributions import named, sample

SECONDS = st.floats(0.0, 86400.0)


@pytest.fixture
def paper() -> PaperForecaster:
    return PaperForecaster(1.0)


@pytest.fixture
def quantile() -> QuantileForecaster:
    return QuantileForecaster(1.0)


def predict(forecaster, estimate=None, elapsed=0.0, kind="k", agent_type="a", stages=None, p90=None) -> Forecast:
    return forecaster.predict(agent_type, kind, estimate, stages, elapsed, p90)


def teach(forecaster, *durations, estimate=None, kind="k", agent_type="a") -> None:
    for duration in durations:
        forecaster.observe(agent_type, kind, estimate, duration)


def width(forecast: Forecast) -> float:
    """The 90 % quantile over the 10 % quantile."""
    return forecast.quantile(0.9) / max(forecast.quantile(0.1), 1e-9)


def test_the_config_names_the_forecaster():
    assert isinstance(make_forecaster(TokenCakeConfig()), QuantileForecaster)
    assert isinstance(make_forecaster(TokenCakeConfig(forecast="paper")), PaperForecaster)


# -- paper ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("history", "estimate", "expected", "source"), [
    ((), None, 1.0, "default"),
    ((), 4.0, 4.0, "estimate"),
    ((2.0,), None, 2.0, "history"),
    ((2.0,), 4.0, 3.0, "estimate and history"),
    ((2.0, 4.0), None, 3.0, "history"),
    ((2.0, 4.0, 8.0), None, 5.5, "history"),
    ((2.0,), 0.0, 1.0, "estimate and history"),
])
def test_the_published_forecast_is_half_estimate_and_half_moving_average(paper, history, estimate, expected, source):
    teach(paper, *history)
    found = predict(paper, estimate)
    assert (found.expected_s, found.source) == (expected, source)
    assert found.remaining_s == (expected,) * len(LEVELS)


def test_the_published_forecast_knows_nothing_but_the_setting_at_first():
    assert predict(PaperForecaster(2.5)).expected_s == 2.5


def test_the_published_history_is_kept_by_agent_type_and_kind(paper):
    teach(paper, 2.0)
    assert predict(paper, kind="other").source == "default"
    assert predict(paper, agent_type="b").source == "default"
    assert predict(paper, agent_type=None).source == "default"


@pytest.mark.parametrize(("elapsed", "left"), [(0.0, 4.0), (1.0, 3.0), (4.0, 0.0), (9.0, 0.0)])
def test_the_published_forecast_stays_at_nothing_left_once_it_has_passed(paper, elapsed, left):
    assert predict(paper, 4.0, elapsed).remaining_s == (left,) * len(LEVELS)


def test_the_published_history_drops_the_key_that_was_taught_longest_ago(paper):
    for number in range(KEYS_KEPT):
        teach(paper, 2.0, kind=f"k{number}")
    teach(paper, 2.0, kind="k0")
    teach(paper, 2.0, kind="one more")
    assert predict(paper, kind="k0").source == "history"
    assert predict(paper, kind="k1").source == "default"


# -- before anything was seen -----------------------------------------------------------------------------------


def test_an_estimate_alone_is_the_median_with_a_modest_spread(quantile):
    found = predict(quantile, 10.0)
    assert (found.expected_s, found.quantile(0.5), found.source) == (10.0, 10.0, "estimate")
    assert 6.0 < found.quantile(0.1) < 8.0 and 12.0 < found.quantile(0.9) < 17.0


@pytest.mark.parametrize("p90", [2.4, 6.0, 40.0])
def test_a_hint_spreads_the_forecast_around_the_estimate_until_there_are_samples(quantile, p90):
    found = predict(quantile, 2.0, p90=p90)
    assert (found.expected_s, found.source) == (2.0, "estimate")
    assert found.quantile(0.9) == pytest.approx(p90)
    assert predict(quantile, 2.0, p90=p90, kind="human").quantile(0.9) == pytest.approx(p90)
    assert 0.8 < found.quantile(0.1) * p90 / 2.0 / 2.0 < 2.0  # as far below as p90 is above, but for the long tail
    teach(quantile, *[2.0] * 8, estimate=2.0)
    assert predict(quantile, 2.0, p90=p90) == predict(quantile, 2.0)


def test_a_hint_without_spread_is_no_error_and_the_published_forecast_does_not_know_it(quantile, paper):
    assert 2.0 <= predict(quantile, 2.0, p90=2.0).quantile(0.9) < 2.5
    assert predict(quantile, 0.0, p90=0.0).quantile(0.5) < 0.01
    assert predict(paper, 2.0, p90=9.0) == predict(paper, 2.0)


@pytest.mark.parametrize("seconds", [0.1, 1.0, 20.0, 3600.0])
def test_the_first_estimate_of_a_kind_is_taken_at_its_word_to_the_last_digit(quantile, seconds):
    assert predict(quantile, seconds).expected_s == seconds


def test_an_unknown_kind_has_the_default_as_median_and_a_wide_spread():
    found = predict(QuantileForecaster(2.0))
    assert found.expected_s == pytest.approx(2.0) and found.source == "default"
    assert width(found) > 20


@pytest.mark.parametrize(("kind", "low", "high"), [
    ("file_read", 0.0, 0.5), ("git", 0.0, 0.5), ("shell", 0.1, 1.0), ("web_search", 1.0, 6.0),
    ("image_generation", 10.0, 30.0), ("human", 30.0, 300.0)])
def test_a_known_kind_of_tool_needs_no_estimate(quantile, kind, low, high):
    found = predict(quantile, kind=kind)
    assert low < found.expected_s < high and found.source == "kind"


def test_people_are_harder_to_foresee_than_programs(quantile):
    by_person, by_program = predict(quantile, 60.0, kind="human"), predict(quantile, 60.0, kind="k")
    assert width(by_person) > 3 * width(by_program)
    assert by_person.quantile(0.95) > 300 > by_program.quantile(0.95)


def test_an_estimate_of_zero_gives_a_forecast_near_zero(quantile):
    assert 0.0 < predict(quantile, 0.0).expected_s < 0.01
    teach(quantile, 0.0, 2.0, estimate=0.0)
    assert predict(quantile, 0.0).quantile(0.9) < 100.0


# -- what was seen ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [0.25, 1.0, 4.0])
def test_a_factor_that_all_estimates_are_wrong_by_is_corrected_after_three_calls(quantile, factor):
    for duration in (3.0, 0.4, 25.0):
        teach(quantile, duration, estimate=duration * factor)
    found = predict(quantile, 10.0 * factor)
    assert found.source == "corrected estimate"
    assert found.quantile(0.5) == pytest.approx(10.0, rel=0.05)


def test_exact_estimates_make_the_forecast_narrow_soon(quantile):
    widths = []
    for count in range(21):
        widths.append(width(predict(quantile, 10.0)))
        duration = 0.1 * 2 ** (count % 9)
        teach(quantile, duration, estimate=duration)
    assert widths == sorted(widths, reverse=True)
    assert widths[0] > 2 and widths[5] < 1.1 and widths[20] < 1.01


def test_estimates_that_say_nothing_give_way_to_the_history(quantile):
    rng = random.Random(1)
    for _ in range(20):
        teach(quantile, rng.uniform(4.8, 5.2), estimate=rng.uniform(0.5, 50.0))
    found = predict(quantile, 40.0)
    assert found.source == "history" and found.quantile(0.5) == pytest.approx(5.0, rel=0.05)


def test_estimates_that_say_more_than_the_history_are_gone_by(quantile):
    rng = random.Random(1)
    for _ in range(20):
        duration = rng.lognormvariate(0.0, 2.0)
        teach(quantile, duration, estimate=duration * rng.uniform(0.8, 1.25))
    found = predict(quantile, 40.0)
    assert found.source == "corrected estimate" and 30 < found.quantile(0.5) < 55


def test_calls_without_estimates_teach_the_calls_with_them(quantile):
    teach(quantile, *[5.0] * 20)
    found = predict(quantile, 40.0)
    assert found.source == "history" and found.quantile(0.5) == pytest.approx(5.0, rel=0.02)


def test_the_history_of_the_agent_type_goes_before_that_of_the_kind(quantile):
    teach(quantile, *[2.0] * FEW, agent_type="a")
    teach(quantile, *[30.0] * FEW, agent_type="b")
    assert predict(quantile, agent_type="a").quantile(0.5) == pytest.approx(2.0, rel=0.1)
    assert predict(quantile, agent_type="b").quantile(0.5) == pytest.approx(30.0, rel=0.1)


def test_an_agent_type_of_which_little_was_seen_goes_by_the_kind(quantile):
    teach(quantile, *[30.0] * 20, agent_type="b")
    assert predict(quantile, agent_type="a").quantile(0.5) == pytest.approx(30.0, rel=0.02)
    teach(quantile, *[2.0] * (FEW - 1), agent_type="a")
    assert predict(quantile, agent_type="a").quantile(0.5) == pytest.approx(30.0, rel=0.02)
    teach(quantile, 2.0, agent_type="a")
    assert predict(quantile, agent_type="a").quantile(0.5) == pytest.approx(2.0, rel=0.1)


def test_a_kind_that_was_not_seen_goes_by_all_kinds_unless_it_is_known(quantile):
    teach(quantile, *[7.0] * 20, kind="k")
    found = predict(quantile, kind="new")
    assert found.source == "history of all kinds" and found.quantile(0.5) == pytest.approx(7.0, rel=0.02)
    assert predict(quantile, kind="image_generation").source == "kind"


def test_a_few_calls_of_one_kind_do_not_speak_for_all_others(quantile):
    teach(quantile, *[60.0] * (MANY - 1), estimate=6.0, kind="k")
    assert predict(quantile, kind="new").source == "default" and predict(quantile, 5.0, kind="new").expected_s == 5.0
    teach(quantile, 60.0, estimate=6.0, kind="k")
    assert predict(quantile, kind="new").source == "history of all kinds"
    assert predict(quantile, 5.0, kind="new").quantile(0.5) == pytest.approx(50.0, rel=0.05)


def test_kinds_do_not_mix(quantile):
    teach(quantile, *[2.0] * 9, kind="k")
    teach(quantile, *[50.0] * 9, kind="other")
    assert predict(quantile, kind="k").quantile(0.75) == pytest.approx(2.0, rel=0.1)


def test_only_the_latest_samples_of_a_key_count(quantile):
    teach(quantile, *[100.0] * 200)
    teach(quantile, *[1.0] * SAMPLES_KEPT)
    assert predict(quantile).quantile(0.9) == pytest.approx(1.0, rel=0.05)


def test_at_most_so_many_keys_are_kept_and_forecasts_do_not_count_as_use(quantile):
    for number in range(KEYS_KEPT):
        teach(quantile, 9.0, kind=f"k{number}", agent_type=f"t{number}")
        predict(quantile, kind="k0", agent_type="t0")
    assert len(quantile._durations) == KEYS_KEPT
    assert predict(quantile, kind="k0", agent_type="t0").source == "history of all kinds"
    assert predict(quantile, kind=f"k{KEYS_KEPT - 1}").source == "history"


# -- while a call lasts -----------------------------------------------------------------------------------------


def test_what_is_left_of_a_call_shrinks_with_time_while_it_is_as_usual(quantile):
    teach(quantile, *[1.9, 2.0, 2.1] * 5)
    assert predict(quantile, elapsed=1.0).quantile(0.5) == pytest.approx(1.0, rel=0.05)


def test_a_call_that_lasts_far_longer_than_any_other_is_expected_to_last_as_long_again(quantile):
    teach(quantile, *[2.0] * 30)
    for elapsed in (5.0, 30.0, 1000.0):
        found = predict(quantile, elapsed=elapsed)
        assert found.quantile(0.5) == pytest.approx(elapsed, rel=0.01)
        assert found.expected_s == pytest.approx(2.0, rel=0.01)


@pytest.mark.parametrize("history", [(), (10.0,) * 3, (10.0,) * 40, (5.0, 20.0) * 10])
def test_what_is_left_does_not_jump_to_nothing_when_the_estimate_has_passed(quantile, history):
    teach(quantile, *history, estimate=10.0)
    for elapsed in (11.0, 15.0, 25.0, 50.0):
        assert predict(quantile, 10.0, elapsed).quantile(0.9) > 0.5


def test_nothing_is_left_less_than_nothing_at_the_very_end_of_a_sample(quantile):
    lengths = [0.1 * number for number in range(1, 60)]
    teach(quantile, *lengths)
    for elapsed in (near for length in lengths for near in (length, math.exp(math.log(length)), length * (1 + 1e-16))):
        found = predict(quantile, elapsed=elapsed).remaining_s
        assert found[0] >= 0.0 and list(found) == sorted(found)


def test_what_is_left_changes_smoothly_between_samples(quantile):
    teach(quantile, *[1.0, 2.0, 4.0, 8.0, 16.0])
    medians = [predict(quantile, elapsed=step / 100).quantile(0.5) for step in range(3000)]
    assert max(abs(after - before) for before, after in zip(medians, medians[1:], strict=False)) < 0.15


# -- stages -----------------------------------------------------------------------------------------------------

NETWORK, RANK = ("network", 3.0), ("rank", 1.0)


def test_after_a_stage_only_the_remaining_ones_count(quantile):
    found = predict(quantile, 4.0, elapsed=9.0, stages=Stages((RANK,), 0.5))
    assert found.source == "stages" and found.expected_s == pytest.approx(8.5 + 1.0)
    assert found.quantile(0.5) == pytest.approx(0.52, rel=0.2)


def test_remaining_stages_add_up(quantile):
    found = predict(quantile, 9.0, elapsed=2.0, stages=Stages((NETWORK, RANK), 0.0))
    assert found.quantile(0.5) == pytest.approx(4.0) and found.expected_s == pytest.approx(6.0)


def test_the_time_that_has_passed_counts_against_the_first_remaining_stage_only(quantile):
    found = predict(quantile, 9.0, elapsed=200.0, stages=Stages((RANK, NETWORK), 100.0))
    assert found.quantile(0.5) == pytest.approx(103.0)


def test_a_call_whose_stages_are_not_reported_is_forecast_as_a_whole(quantile):
    stages = Stages((NETWORK, RANK), None)
    assert predict(quantile, 4.0, elapsed=3.5, stages=stages) == predict(quantile, 4.0, elapsed=3.5)


def test_once_stages_of_such_calls_were_reported_the_first_stage_is_used_from_the_start(quantile):
    teach(quantile, *[6.0] * 20, estimate=3.0, kind="k/network")
    found = predict(quantile, 4.0, stages=Stages((NETWORK, RANK), None))
    assert found.source == "stages" and found.expected_s == pytest.approx(8.0, rel=0.2)


def test_a_call_with_no_stage_left_is_forecast_as_a_whole(quantile):
    assert predict(quantile, 4.0, elapsed=3.9, stages=Stages((), 0.1)).source == "estimate"


# -- dump and load ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["paper", "quantile"])
def test_a_forecaster_that_loads_what_another_dumped_forecasts_the_same(name):
    one, two = (make_forecaster(TokenCakeConfig(forecast=name)) for _ in range(2))
    rng = random.Random(3)
    for _ in range(300):
        duration = rng.lognormvariate(1.0, 1.0)
        estimate = rng.choice((None, duration * rng.uniform(0.5, 2.0)))
        teach(one, duration, estimate=estimate, kind=rng.choice("klm"), agent_type=rng.choice(("a", None)))
    two.load([[table, list(key), list(figures)] for table, key, figures in one.dump()])
    for kind in "klmn":
        for agent_type in ("a", "b", None):
            for estimate in (None, 3.0):
                assert predict(one, estimate, 1.5, kind, agent_type) == predict(two, estimate, 1.5, kind, agent_type)
    assert [list(row) for row in one.dump()] == [list(row) for row in two.dump()]


@pytest.mark.parametrize("row", [
    None, [], ["mean", ["a", "k"]], ["mean", "ak", [1.0]], ["medians", ["a", "k"], [1.0]], ["mean", [1, "k"], [1.0]],
    ["mean", ["a", "k"], []], ["mean", ["a", "k"], ["1"]], ["mean", ["a", "k"], [math.inf]],
    ["mean", ["a", "k"], [True]], ["mean", ["a", "b", "k"], [1.0]], ["mean", ["a", "k"], [math.nan]],
    ["mean", ["a", "k"], [10 ** 400]], ["mean", ["a", "k"], [1e300]]])
@pytest.mark.parametrize("name", ["paper", "quantile"])
def test_a_row_that_is_none_is_refused_and_nothing_is_learnt(name, row):
    forecaster = make_forecaster(TokenCakeConfig(forecast=name))
    good = {"paper": ["mean", ["a", "k"], [5.0]], "quantile": ["durations", ["a", "k"], [5.0]]}[name]
    if name == "quantile" and isinstance(row, list) and row and row[0] == "mean":
        row = ["durations", *row[1:]]
    with pytest.raises(ValueError, match="a row of a history"):
        forecaster.load([good, row])
    assert predict(forecaster).source == "default"


# -- what always holds ------------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(SECONDS, st.none() | SECONDS), max_size=80), st.none() | SECONDS, SECONDS,
       st.sampled_from(("k", "human", "shell")), st.sampled_from(("quantile", "paper")))
def test_quantiles_rise_with_the_level_and_nothing_is_negative_or_without_bound(lessons, estimate, elapsed, kind, name):
    forecaster = make_forecaster(TokenCakeConfig(forecast=name))
    for duration, guess in lessons:
        forecaster.observe("a", kind, guess, duration)
    found = predict(forecaster, estimate, elapsed, kind)
    assert all(0.0 <= low <= high for low, high in zip(found.remaining_s, found.remaining_s[1:], strict=False))
    assert math.isfinite(found.remaining_s[-1]) and 0.0 <= found.expected_s < math.inf


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0.01, 10_000.0), min_size=30, max_size=60), st.floats(0.01, 10_000.0))
def test_exact_estimates_lead_to_them_whatever_the_durations(durations, estimate):
    forecaster = QuantileForecaster(1.0)
    for duration in durations:
        forecaster.observe("a", "k", duration, duration)
    found = predict(forecaster, estimate)
    constant = max(durations) / min(durations) < 1.02  # then the history may be as good
    if found.source != "history":
        assert found.quantile(0.1) == pytest.approx(estimate, rel=0.02)
        assert found.quantile(0.9) == pytest.approx(estimate, rel=0.02)
    else:
        assert constant


MODELS = ("tracelab.all_calls", "tracelab.shell_category", "tokencake_table1.web_search_medium",
          "infercept.question_answering", "tracelab.human_wait")
ESTIMATES = {
    "exact": lambda duration, rng: duration, "x0.25": lambda duration, rng: duration * 0.25,
    "x4": lambda duration, rng: duration * 4.0, "x0.5 to x2": lambda duration, rng: duration * rng.uniform(0.5, 2.0),
    "none": lambda duration, rng: None}


def shares_below(model: str, estimates: str, calls: int = 600, warm_up: int = 30) -> list[float]:
    """Shares of calls that end before the 10, 50 and 90 % quantiles of the forecast at their start; a call that ends
    when the forecast says, to 1 in 10^9, counts half. Calls of 0 s are made 1 ms long."""
    rng, forecaster, below = random.Random(1), QuantileForecaster(1.0), [0.0, 0.0, 0.0]
    for number in range(warm_up + calls):
        duration = max(0.001, sample(named(model), rng))
        estimate = ESTIMATES[estimates](duration, rng)
        if number >= warm_up:
            found = predict(forecaster, estimate)
            for place, level in enumerate((0.1, 0.5, 0.9)):
                off = duration / found.quantile(level) - 1.0
                below[place] += 0.5 if abs(off) < 1e-9 else float(off < 0)
        teach(forecaster, duration, estimate=estimate)
    return [count / calls for count in below]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("estimates", ["x0.5 to x2", "none"])
def test_as_many_calls_end_before_a_quantile_as_its_level_says(model, estimates):
    assert shares_below(model, estimates) == pytest.approx([0.1, 0.5, 0.9], abs=0.04)


@pytest.mark.parametrize("model", MODELS[1:])
@pytest.mark.parametrize("estimates", ["exact", "x0.25", "x4"])
def test_calls_end_when_the_forecast_says_if_estimates_are_wrong_by_one_factor(model, estimates):
    assert shares_below(model, estimates) == pytest.approx([0.5, 0.5, 0.5], abs=0.01)


@pytest.mark.parametrize(("name", "preset"), [
    ("Bash", "shell"), ("read_file", "file_read"), ("WebSearch", "web_search"), ("apply-patch", "file_edit"),
    ("AskUserQuestion", "user_confirm"), ("search", "search")])
def test_a_tool_that_coding_agents_have_is_foreseen_by_its_name(quantile, name, preset):
    assert predict(quantile, kind=name) == predict(quantile, kind=preset)
    assert predict(quantile, kind=name).source == "kind"
    assert predict(quantile, kind=name, estimate=2.0) == predict(quantile, kind=preset, estimate=2.0)


def test_a_tool_of_another_name_is_not(quantile):
    assert predict(quantile, kind="bash_history_museum").source == "default"
