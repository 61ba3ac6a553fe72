"""Uploads in pieces in the controller's step, with a mechanism in memory: what is counted, and when it ends."""

from __future__ import annotations

import pytest

from tests.unit.test_controller import Server
from tokencake_sglang.core.costs import Costs
from tokencake_sglang.core.uploads import UPLOAD_RETRY_S

PIECES = 3  # of the agent's 240 tokens


@pytest.fixture
def server():
    """An agent with 240 tokens on the host only, whose tool may return at any moment."""
    server = Server(offload_policy="cost")
    server.mechanism.free = 100_000
    server.mechanism.costs = Costs(upload_base_s=0.0, upload_token_s=0.25 / 80)
    away(server)
    return server


def away(server, key="a", seconds=0.1):
    server.at(100.0)
    server.ask(key, tokens=240)
    server.answer(key)
    server.mechanism.tokens[key].on_device = False
    server.stall(key, seconds)


def counts(server):
    return tuple(server.counters[f"uploads_{what}"] for what in ("started", "completed", "on_time", "late"))


def land(server, at, key="a"):
    server.mechanism.land(key)
    server.at(at)


def test_each_piece_follows_the_last_in_the_same_step_and_the_stall_counts_once(server):
    server.at(100.05)
    for number in range(PIECES):
        assert server.counters["uploads_started"] == number + 1
        land(server, 100.06 + number / 100)
    server.finish()
    server.at(100.1)
    assert counts(server) == (PIECES, PIECES, 1, 0)


def test_an_upload_of_which_a_piece_is_missing_at_the_return_is_not_on_time(server):
    server.at(100.05)
    land(server, 100.06)
    server.finish()
    for number in range(2):
        land(server, 100.07 + number / 100)
    assert counts(server) == (PIECES, PIECES, 0, 1)  # late, and once


def test_a_stall_for_whose_last_piece_there_was_no_room_is_not_on_time(server):
    server.at(100.05)
    server.mechanism.declines = {"upload": "no_room"}
    land(server, 100.06)
    server.finish()
    assert counts(server) == (1, 1, 0, 0)


def test_the_next_stall_counts_anew(server):
    server.at(100.05)
    server.finish()
    land(server, 100.06)
    server.mechanism.land("a")
    assert server.counters["uploads_late"] == 1
    server.stall("a", 0.1, call_id="c2")
    server.at(100.1)
    land(server, 100.2)
    server.finish(call_id="c2")
    assert counts(server)[2:] == (1, 1)


def test_the_agents_own_request_ends_the_upload(server):
    server.at(100.05)
    server.ask("a")
    land(server, 100.06)
    server.at(101.0)
    assert counts(server)[:2] == (1, 1) and not server.controller.uploads.queue


def test_the_agents_end_ends_the_upload(server):
    server.at(100.05)
    server.send("agent_finished")
    land(server, 100.06)
    assert counts(server)[:2] == (1, 1) and not server.controller.uploads.queue


def test_a_flush_ends_all_uploads(server):
    server.at(100.05)
    server.mechanism.flush()
    server.controller.reset()
    assert not server.controller.uploads.queue and server.controller.agents.get("a").move is None


def test_a_declined_piece_is_tried_again_by_itself(server):
    server.mechanism.declines = {"upload": "no_room"}
    server.at(100.05)
    assert (server.counters["uploads_declined"], server.counters["uploads_started"]) == (1, 0)
    assert server.controller.next_wake <= 100.05 + UPLOAD_RETRY_S
    server.mechanism.declines = {}
    server.at(100.05 + UPLOAD_RETRY_S)
    assert server.counters["uploads_started"] == 1


def test_short_uploads_of_many_agents_start_in_one_step_as_far_as_the_link_is_free(server):
    server.mechanism.costs = Costs(upload_base_s=0.0, upload_token_s=0.25 / 1000)
    for key in "bcdefgh":
        away(server, key)
    server.at(100.05)
    assert server.counters["uploads_started"] == 5  # 5 * 240 tokens pass a quarter of a second


def test_a_step_without_wishes_asks_for_no_measures():
    server = Server(offload_policy="cost")
    server.mechanism.pool = None  # not callable
    server.at(100.0)
