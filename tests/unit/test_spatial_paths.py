"""The order inside a program: the longest path first; between programs nothing changes."""

from __future__ import annotations

from tests.unit.test_spatial_scheduler import Server
from tokencake_sglang.core.spatial.inversions import Inversion
from tokencake_sglang.core.spatial.views import Place, Waiting


def server(paths: dict[str, float], slow: tuple[str, ...] = (), **settings) -> Server:
    made = Server(**settings)
    made.spatial.place = lambda rid: Place(paths[rid], rid not in slow) if rid in paths else None
    return made


def test_the_request_with_the_longest_path_goes_first_and_of_equal_ones_the_first_that_came():
    found = server({"a.1": 3.0, "a.2": 9.0, "a.3": 5.0, "a.4": 9.0})
    found.add("a.1", "a.2", "a.3", "a.4")
    assert found.order() == ["a.2", "a.4", "a.3", "a.1"]


def test_paths_decide_nothing_between_programs_or_among_plain_requests():
    found = server({"a.1": 1.0, "b.1": 99.0, "one": 1.0, "two": 99.0})
    found.add("a.1", "b.1")
    assert found.order() == ["a.1", "b.1"]
    plain = server({"one": 1.0, "two": 99.0})
    plain.add("one", "two")
    assert plain.order() == ["one", "two"]


def test_a_request_that_nobody_waits_for_goes_behind_all_others_of_its_program():
    found = server({"a.1": 99.0, "a.2": 1.0, "b.1": 1.0}, slow=("a.1",))
    found.add("a.1", "a.2", "b.1")
    assert found.order() == ["a.2", "a.1", "b.1"]


def test_a_request_without_a_place_goes_behind_those_that_have_one():
    found = server({"a.2": 1.0, "a.3": 2.0})
    found.add("a.1", "a.2", "a.3", "a.4")
    assert found.order() == ["a.3", "a.2", "a.1", "a.4"]


def test_with_the_priority_none_requests_of_a_program_go_as_they_came():
    found = server({"a.1": 1.0, "a.2": 2.0}, priority="none")
    found.add("a.1", "a.2")
    assert found.order() == ["a.1", "a.2"]


def test_beyond_the_seniority_paths_decide_nothing():
    found = server({"a.1": 1.0, "a.2": 2.0}, seniority_s=50.0)
    found.add("a.1", "a.2")
    assert found.order() == ["a.2", "a.1"]
    found.now = 51.0
    assert found.order() == ["a.1", "a.2"]


def test_paths_are_looked_up_again_each_second_and_after_a_retraction():
    paths = {"a.1": 1.0, "a.2": 2.0, "a.3": 3.0}
    found = server(paths)
    found.add("a.1", "a.2")
    assert found.order() == ["a.2", "a.1"]
    paths["a.1"] = 9.0
    found.now = 0.5
    found.add("a.3")
    assert found.order() == ["a.3", "a.2", "a.1"]
    found.now = 1.5
    assert found.order() == ["a.1", "a.3", "a.2"]
    found.admit("a.2")
    paths["a.2"] = 99.0
    found.now = 1.6
    found.add("a.2")
    assert found.order() == ["a.2", "a.1", "a.3"]


def test_an_inversion_is_an_admission_past_a_longer_path_of_the_same_program():
    found = server({"a.1": 1.0, "a.2": 2.0, "b.1": 9.0})
    found.add("a.1", "a.2", "b.1", "a.3")
    found.order()
    found.admit("a.1")
    assert found.spatial.critical_inversions(["a.1"]) == [Inversion("a", "a.1", 1.0, "a.2", 2.0)]
    found.admit("a.2")
    assert found.spatial.critical_inversions(["a.2"]) == []
    found.admit("a.3")
    assert found.spatial.critical_inversions(["a.3"]) == []


def test_those_that_are_admitted_together_invert_nothing_among_themselves():
    found = server({"a.1": 1.0, "a.2": 2.0})
    found.add("a.1", "a.2")
    for rid in ("a.1", "a.2"):
        found.admit(rid)
    assert found.spatial.critical_inversions(["a.1", "a.2"]) == []


def test_one_that_nobody_waits_for_inverts_when_it_passes_one_that_somebody_waits_for():
    found = server({"a.1": 99.0, "a.2": 1.0}, slow=("a.1",))
    found.add("a.1", "a.2")
    found.admit("a.1")
    assert found.spatial.critical_inversions(["a.1"]) == [Inversion("a", "a.1", 99.0, "a.2", 1.0)]


def test_the_waiting_requests_are_told_with_their_paths():
    found = server({"a.1": 1.0})
    found.add("a.1", "chat", "a.2")
    assert found.spatial.waiting(2) == [("a.1", "a", 1.0), ("chat", "", None)]


def test_what_the_client_prefers_goes_before_a_longer_path_and_inverts_nothing():
    found = server({"a.1": 1.0, "a.2": 9.0})
    found.spatial.request_added(0.0, Waiting("a.1", "a", "x", priority=5), lambda agent: None)
    found.queue.append("a.1")
    found.add("a.2")
    assert found.order() == ["a.1", "a.2"]
    found.admit("a.1")
    assert found.spatial.critical_inversions(["a.1"]) == []
