"""Who goes first inside a program, by each of the four priorities, by numbers worked out by hand."""

from __future__ import annotations

import math

import pytest

from tests.unit.test_spatial_scheduler import Server
from tokencake_sglang.core.config import PRIORITIES
from tokencake_sglang.core.spatial.urgency import NO_PLACE, paper_score, shipped_score, urgency
from tokencake_sglang.core.spatial.views import Place, Structure, Waiting

REQUEST = Waiting("r", "p", "a", prompt_tokens=900, max_new_tokens=100)
NODE = Structure(depth=4, depth_longest=6, remaining_depth=5, max_depth=10, in_degree=2, out_degree=3, similarity=0.25,
                 is_critical=True)


def test_the_papers_score_is_its_formula():
    assert paper_score(NODE, 1000, 100.0) == pytest.approx(10 * 4 * 3 + 100 * math.log(10))


def test_the_papers_score_has_a_value_before_anybody_has_waited_and_for_a_last_node():
    assert paper_score(NODE, 1000, 0.0) == 120.0
    assert paper_score(NODE._replace(out_degree=0), 1000, 0.0) == 40.0
    assert paper_score(NODE, 0, 50.0) == 120.0


def test_the_papers_score_never_falls_by_waiting():
    scores = [paper_score(NODE, 1000, wait) for wait in (0.0, 1.0, 50.0, 367.0, 368.0, 999.0, 1001.0, 1e6)]
    assert scores == sorted(scores) and scores[-1] == pytest.approx(120 + 1000 / math.e)


def test_the_shipped_score_is_the_sum_of_its_terms():
    # ratio 0.5, progress 0.4: structure, three terms of time, and the flags
    structure = 100 * 4 + 15 * 4 + 45 * 3 + 10 * 2 + 20 * 0.25 + 20 * 5 + 120 * 3
    times = 5 * 100 * 1.375 + 8 * 40 * 1.25 + 5 * 100 * 0.4
    assert shipped_score(NODE, 100.0, 40.0) == int(structure + times + 180 + 20 + 4 * 6 + 12 * 2)


def test_the_shipped_score_caps_importance_and_time_and_counts_the_last_node():
    deep = Structure(depth=14, remaining_depth=1, max_depth=14)
    assert shipped_score(deep, 0.0, 0.0) == 100 * 10 + 15 * 14 + 20 + 20 + 90
    assert shipped_score(NODE, 300.0, 180.0) == shipped_score(NODE, 9e9, 9e9)


@pytest.mark.parametrize("priority", PRIORITIES)
def test_every_priority_has_an_answer_for_a_request_without_a_place(priority):
    found = urgency(priority, 5.0, REQUEST, 0.0, None)
    if priority in ("critical-path", "none"):
        assert found == NO_PLACE
    else:
        assert found[1] < 0


def test_the_published_scores_go_by_the_place_and_by_the_wait():
    first, last = Place(1.0, True, NODE, 0.0), Place(9.0, True, Structure(1, 1, 1, 10), 0.0)
    for priority in ("paper", "shipped"):
        assert urgency(priority, 5.0, REQUEST, 0.0, first) < urgency(priority, 5.0, REQUEST, 0.0, last)
        assert urgency(priority, 5.0, REQUEST, 0.0, first) < urgency(priority, 5.0, REQUEST, 4.0, first)


@pytest.mark.parametrize(("priority", "order"), [
    ("critical-path", ["a.2", "a.1"]), ("none", ["a.1", "a.2"]), ("paper", ["a.1", "a.2"]),
    ("shipped", ["a.1", "a.2"])])
def test_the_setting_chooses_the_order(priority, order):
    server = Server(priority=priority)
    places = {"a.1": Place(1.0, True, NODE), "a.2": Place(9.0, True, Structure(1, 1, 1, 10))}
    server.spatial.place = places.get
    server.add("a.1", "a.2")
    assert server.order() == order
