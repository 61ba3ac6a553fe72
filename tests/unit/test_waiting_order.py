"""How much of the order of the queue is looked at in one step."""

from __future__ import annotations

from tests.unit.test_spatial_scheduler import Server
from tokencake_sglang.core.spatial.affinity import PATIENCE_S
from tokencake_sglang.core.spatial.views import Place
from tokencake_sglang.core.spatial.waiting_order import RENEWED_PER_STEP


class Graphs:
    """A server with one program whose requests have paths; counts how often one is asked for."""

    def __init__(self, count, **settings):
        self.server = Server(**settings)
        self.paths = {f"a.{number}": float(number) for number in range(count)}
        self.asked = []
        self.server.spatial.place = self.place
        self.server.add(*self.paths)

    def place(self, rid):
        self.asked.append(rid)
        return Place(self.paths[rid], True) if rid in self.paths else None

    def step(self, now):
        self.server.now = now
        self.asked.clear()
        return self.server.order()

    def by_path(self):
        return sorted(self.paths, key=lambda rid: -self.paths[rid])


def test_paths_that_changed_are_followed_within_steps_that_each_look_at_a_few():
    graphs = Graphs(3 * RENEWED_PER_STEP)
    graphs.step(0.0)
    before = graphs.by_path()
    graphs.paths = {rid: -path for rid, path in graphs.paths.items()}
    assert graphs.step(0.5) == before and graphs.asked == []
    for number in range(3):
        order = graphs.step(1.0 + number / 100)
        assert len(graphs.asked) == RENEWED_PER_STEP
        assert sorted(order) == sorted(before)
    assert order == graphs.by_path() != before
    graphs.step(1.5)
    assert graphs.asked == []


def test_of_many_that_wait_only_those_that_came_are_ranked():
    graphs = Graphs(500)
    graphs.step(0.0)
    graphs.paths["a.new"] = 250.5
    graphs.server.add("a.new")
    order = graphs.step(0.1)
    assert graphs.asked == ["a.new"]
    assert order[order.index("a.new") + 1] == "a.250" and order[order.index("a.new") - 1] == "a.251"


def test_requests_without_a_graph_are_looked_at_again_when_their_kv_was_given_up_and_when_that_counts_no_more():
    graphs = Graphs(0)
    graphs.server.add("b.1", "c.1", "chat")

    def sessions(now):
        return [rid for rid in graphs.step(now) if rid != "chat"], sorted(graphs.asked)

    assert sessions(0.0) == (["b.1", "c.1"], ["b.1", "c.1", "chat"])
    assert sessions(2.0) == (["b.1", "c.1"], [])
    graphs.server.lose(b=5000)
    assert sessions(2.1) == (["c.1", "b.1"], ["b.1"])
    assert sessions(PATIENCE_S - 0.1) == (["c.1", "b.1"], [])
    assert sessions(PATIENCE_S + 1.0) == (["b.1", "c.1"], ["b.1", "c.1"])


def test_a_request_that_went_away_while_paths_were_looked_at_is_left_out():
    graphs = Graphs(2 * RENEWED_PER_STEP)
    graphs.step(0.0)
    graphs.step(1.0)
    gone = graphs.by_path()[-1]
    graphs.server.admit(gone)
    assert gone not in graphs.step(1.1) and gone not in graphs.asked


def test_a_queue_that_has_lost_a_request_nobody_told_of_gets_the_others_back():
    graphs = Graphs(5)
    graphs.server.queue.remove("a.2")
    assert graphs.step(0.0) == ["a.4", "a.3", "a.1", "a.0"]


def test_behind_the_places_that_are_shared_out_the_pool_that_would_be_next_comes_first():
    server = Server()
    for tenant, prompt in (("x", 900), ("y", 300), ("z", 700), ("w", 500)):
        server.add(*(f"{tenant}{number}" for number in range(40)), tenant=tenant, prompt=prompt, output=0)
    tail, times = server.order()[64:], dict.fromkeys("xyzw", 0)
    for rid in server.queue[:64]:
        times[rid[0]] += {"x": 900, "y": 300, "z": 700, "w": 500}[rid[0]]
    assert list(dict.fromkeys(rid[0] for rid in tail)) == sorted(times, key=lambda pool: (times[pool], pool))
