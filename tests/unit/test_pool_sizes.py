"""How much is reserved for which agent types: the published rules, and the one by demand (spec section 9, 24 to 26)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokencake_sglang.core.spatial.pools.account import UNTYPED, largest_remainder
from tokencake_sglang.core.spatial.pools.score import LiveRequest, TypeFacts, paper_type_score, shipped_type_score
from tokencake_sglang.core.spatial.pools.sizes import (
    FALLS_AFTER,
    DemandSizes,
    PaperSizes,
    Reserve,
    ShippedSizes,
    critical_types,
)
from tokencake_sglang.core.spatial.views import Structure

TOTAL = 48_800
A, B, C, D = (("code", kind) for kind in "abcd")


def live(tokens=1000, live_s=10.0, waits=True, **structure):
    return LiveRequest(tokens, live_s, 30.0, waits, Structure(**structure))


def facts(used=0, needed=0, **structure):
    return TypeFacts((live(**structure),), used, needed)


class TestReserve:
    @pytest.mark.parametrize(("usage", "change"), [
        (0.75, 5), (0.9, 5), (0.7499, 0), (0.41, 0), (0.40, -5), (0.0, -5)])
    def test_it_grows_from_the_high_mark_on_and_falls_up_to_the_low_one(self, usage, change):
        reserve = Reserve()
        reserve.update(0.8)
        reserve.update(usage)
        assert reserve.percent == 10 + change

    def test_it_stays_between_5_and_30_percent(self):
        reserve = Reserve()
        assert reserve.percent == 5
        reserve.update(0.1)
        assert reserve.percent == 5
        for _ in range(9):
            reserve.update(0.99)
        assert reserve.percent == 30

    @given(st.lists(st.floats(0, 1)))
    def test_it_never_moves_by_more_than_a_step(self, usages):
        reserve, before = Reserve(), 5
        for usage in usages:
            reserve.update(usage)
            assert abs(reserve.percent - before) in (0, 5) and 5 <= reserve.percent <= 30
            before = reserve.percent


class TestCriticalTypes:
    @pytest.mark.parametrize(("types", "critical"), [(0, 0), (1, 1), (2, 1), (3, 2), (4, 3), (7, 5), (8, 6)])
    def test_they_are_three_in_four_and_at_least_one(self, types, critical):
        assert len(critical_types({("app", str(n)): n for n in range(types)})) == critical

    def test_they_are_those_of_the_highest_scores_and_of_equal_ones_the_first_by_name(self):
        assert critical_types({A: 1.0, B: 3.0, C: 2.0, D: 2.0}) == [B, C, D]
        assert critical_types({B: 1.0, A: 1.0}) == [A]


class TestScores:
    def test_a_deeper_type_with_more_behind_it_scores_higher(self):
        for score in (paper_type_score, shipped_type_score):
            assert score(facts(depth=4, out_degree=3)) > score(facts(depth=1, out_degree=1)), score

    def test_what_a_type_was_denied_or_retracted_raises_the_shipped_score(self):
        base = shipped_type_score(facts())
        denied = shipped_type_score(TypeFacts((live(),), denials=5))
        retracted = shipped_type_score(TypeFacts((live(),), retractions=5))
        assert base < denied < retracted

    def test_the_shipped_score_of_a_hand_computed_type(self):
        request = live(1000, 10.0, depth=3, out_degree=2, in_degree=1, remaining_depth=4)
        found = shipped_type_score(TypeFacts((request,)))
        waiting = 2.3978952727983707 + 0.6931471805599453  # log1p(10) + log1p(1)
        pressure = 0.5 * (6.90875477931522 + 2.3978952727983707 + 4.61512051684126)
        assert found == pytest.approx(6 + waiting + pressure + 2.1 + 1.0 + 0.25 + 0.8 + 3.0)

    def test_a_type_of_which_nothing_is_known_scores_the_least(self):
        assert shipped_type_score(TypeFacts()) == 1.0 and paper_type_score(TypeFacts()) == 0.0


class TestShipped:
    @given(st.integers(1, 10**6), st.lists(st.tuples(st.integers(0, 10**5), st.integers(0, 20)), min_size=1),
           st.floats(0, 1))
    def test_the_reserves_add_up_to_the_reserve_to_the_token(self, total, types, usage):
        sizes = ShippedSizes()
        found = sizes.update(total, usage, {
            ("app", str(n)): facts(used, depth=depth) for n, (used, depth) in enumerate(types)})
        assert sum(found.values()) == sizes.reserve.tokens(total)
        assert all(size > 0 for size in found.values())

    def test_the_weight_is_the_share_of_the_score_or_its_mean_with_the_share_of_memory_if_that_is_more(self):
        sizes = ShippedSizes()
        sizes._score = lambda one: {600: 1.0, 100: 2.0, 300: 1.0, 0: 0.5}[one.used]
        found = sizes.update(10_000, 0.5, {A: facts(600), B: facts(100), C: facts(300), D: facts(0)})
        weights = {A: (0.6 + 0.25) / 2, B: 0.5, C: (0.3 + 0.25) / 2}  # of used: 600, 100, 300 of 1,000
        assert found == largest_remainder(500, weights) and sum(found.values()) == 500
        assert D not in found, "three of four types are critical"

    def test_requests_without_a_type_have_no_reserve(self):
        assert ShippedSizes().update(TOTAL, 0.5, {UNTYPED: facts(100)}) == {}


class TestPaper:
    def test_a_reserve_is_the_mean_of_both_shares_and_need_not_use_all(self):
        sizes = PaperSizes()
        sizes._score = lambda one: {600: 1.0, 400: 3.0}[one.used]
        assert sizes.update(2_000, 0.5, {A: facts(600), B: facts(400)}) == {B: int((0.2 + 1.0) / 2 * 100)}

    @given(st.integers(1, 10**6), st.lists(st.integers(0, 20), min_size=1), st.floats(0, 1))
    def test_the_reserves_never_exceed_the_reserve(self, total, depths, usage):
        sizes, used = PaperSizes(), total // len(depths)
        found = sizes.update(total, usage, {("app", str(n)): facts(used, depth=d) for n, d in enumerate(depths)})
        assert sum(found.values()) <= sizes.reserve.tokens(total)


class TestDemand:
    def test_a_size_is_what_the_critical_work_needs(self):
        assert DemandSizes().update(TOTAL, 0.9, {A: facts(needed=3000), B: facts(needed=0)}) == {A: 3000}

    def test_all_sizes_together_are_30_percent_at_most(self):
        found = DemandSizes().update(1000, 0.9, {A: facts(needed=900), B: facts(needed=300)})
        assert found == {A: 225, B: 75}

    def test_it_grows_at_once(self):
        sizes = DemandSizes()
        sizes.update(TOTAL, 0.9, {A: facts(needed=100)})
        assert sizes.update(TOTAL, 0.9, {A: facts(needed=101)}) == {A: 101}

    def test_it_does_not_flap_while_the_need_is_half_of_it_or_more(self):
        sizes = DemandSizes()
        sizes.update(TOTAL, 0.9, {A: facts(needed=100)})
        for need in (50, 99, 60, 100) * FALLS_AFTER:
            assert sizes.update(TOTAL, 0.9, {A: facts(needed=need)}) == {A: 100}

    def test_it_falls_when_the_need_was_small_for_three_updates_in_a_row(self):
        sizes = DemandSizes()
        sizes.update(TOTAL, 0.9, {A: facts(needed=100)})
        found = [sizes.update(TOTAL, 0.9, {A: facts(needed=need)}).get(A) for need in (10, 10, 60, 10, 10, 10, 0, 0)]
        assert found == [100, 100, 100, 100, 100, 10, 10, 10]
        assert sizes.update(TOTAL, 0.9, {}) == {}


class TestLargestRemainder:
    @given(st.integers(0, 10**6), st.dictionaries(st.text(), st.floats(1e-6, 1e6), min_size=1))
    def test_the_parts_add_up(self, total, weights):
        assert sum(largest_remainder(total, weights).values()) == total

    def test_the_largest_remainders_are_rounded_up(self):
        assert largest_remainder(10, {"a": 1, "b": 1, "c": 4}) == {"a": 2, "b": 1, "c": 7}
        assert largest_remainder(1, {"b": 1, "a": 1}) == {"a": 1}

    def test_without_a_weight_there_are_no_parts(self):
        assert largest_remainder(10, {}) == largest_remainder(10, {"a": 0.0}) == {}
