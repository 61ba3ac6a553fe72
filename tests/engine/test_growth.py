"""With how many tokens SGLang's admission counts the output of requests, on the real cache."""

from __future__ import annotations

import math

import pytest

from tests.engine.test_life_cycle import PROMPT, Server
from tokencake_sglang.core.spatial.output_lengths import LENGTHS_NEEDED
from tokencake_sglang.engine.growth import freed_at_end

ASKED, RATIO = 1000, 0.5
OTHER = range(1000, 1040)


def make_server(make, **settings):
    server = Server(make(device_tokens=192, host_tokens=256), **settings)
    server.h.new_token_ratio_tracker.current = RATIO
    return server


def request(server, agent, prompt=PROMPT, expected=None, asked=ASKED):
    """That its client says will generate `expected` tokens."""
    req = server.h.request(prompt, agent, f"{agent}{asked}{len(server.h.waiting_queue)}")
    req.sampling_params.max_new_tokens = asked
    if expected is not None:
        req.agent_metadata |= {"expected_output_tokens": str(expected)}
    server.h.waiting_queue.append(req)
    server.extension.on_request_added(req)
    return req


def test_what_is_left_is_that_of_the_forecast_and_nothing_is_known_beyond_it(make):
    server = make_server(make)
    for number in range(LENGTHS_NEEDED):
        req = server.h.request(PROMPT, "a", f"a{number}")
        req.agent_metadata |= {"agent_type": "coder"}
        server.extension.on_request_added(req)
        req.output_ids = [1] * 12
        server.extension.queue.request_ended(req)
    req = server.h.request(PROMPT, "a", "next")
    req.agent_metadata |= {"agent_type": "coder"}
    server.extension.on_request_added(req)
    left = []
    for generated in (0, 5, 12, 30):
        req.output_ids = [1] * generated
        left.append(server.extension.mover.growth.left(req))
    assert left == [12, 7, math.inf, math.inf]


def test_a_length_that_is_learnt_while_a_request_runs_counts_at_once(make):
    server = make_server(make)
    running = server.h.request(PROMPT, "a", "running")
    running.agent_metadata |= {"agent_type": "coder"}
    server.extension.on_request_added(running)
    found = []
    for number in range(LENGTHS_NEEDED + 1):
        found.append(server.extension.mover.growth.left(running))
        req = server.h.request(PROMPT, "b", f"b{number}")
        req.agent_metadata |= {"agent_type": "coder"}
        server.extension.on_request_added(req)
        req.output_ids = [1] * (12 + number // LENGTHS_NEEDED)
        server.extension.queue.request_ended(req)
    assert found == [math.inf] * LENGTHS_NEEDED + [12]
    assert server.extension.mover.growth.left(running) == 13


def test_a_request_with_the_id_of_one_that_went_away_has_an_end_of_its_own(make):
    server = make_server(make)
    left = server.extension.mover.growth.left
    assert left(request(server, "a", expected=5)) == 5
    gone = server.h.waiting_queue.pop()
    server.extension.order_waiting_queue(server.h.waiting_queue)
    again = request(server, "a", expected=9)
    assert again.rid == gone.rid and left(again) == 9


def test_a_request_that_was_asked_about_before_it_joined_the_queue_is_known_afterwards(make):
    server = make_server(make)
    req = server.h.request(PROMPT, "a", "a1000" + "0")
    assert server.extension.mover.growth.left(req) == math.inf
    assert server.extension.mover.growth.left(request(server, "a", expected=9)) == 9


def test_no_more_is_left_than_the_client_asked_for(make):
    server = make_server(make)
    assert server.extension.mover.growth.left(request(server, "a", expected=50, asked=20)) == 20


def test_running_requests_count_with_what_they_hold_at_a_time_and_unknown_ones_as_with_sglang(make):
    server = make_server(make)
    first, second = (server.run(request(server, name, prompt, expected)) for name, prompt, expected in (
        ("a", PROMPT, 5), ("b", OTHER, 50)))
    generated = len(first.output_ids)
    assert generated == len(second.output_ids) == 1
    growth = server.extension.running_growth
    assert growth([first, second], 77.0) == 2 * 4, "what the first gives back is enough for the second"
    assert growth([second], 77.0) == 49
    plain = server.run(request(server, None, range(3000, 3016)))
    assert growth([plain], 77.0) == 77.0
    assert growth([first, plain], 77.0) == 4 + RATIO * (ASKED - 1)


def test_a_new_request_counts_with_what_it_adds_and_never_with_more_than_sglang_counts(make):
    server = make_server(make)
    running = server.run(request(server, "a", expected=5))
    new, unknown = request(server, "b", OTHER, expected=50), request(server, "c", OTHER)
    more = server.extension.new_request_growth
    assert server.extension.running_growth([running], 77.0) == 4
    assert more(new, [], 1000.0) == 4, "by the end of the running one, which gives back more than the rest of it"
    assert more(new, [], 3.0) == 3.0 and more(new, [], 0) == 0
    assert more(unknown, [], 1000.0) == 1000.0
    assert server.extension.running_growth([], 0.0) == 0.0
    assert more(new, [], 1000.0) == 50
    other = request(server, "d", OTHER, expected=10)
    assert more(new, [other], 1000.0) == 40, "the other one gives its 10 back before"
    assert more(other, [new], 1000.0) == 0


def test_what_is_given_back_at_the_end_is_what_nobody_else_holds(make):
    server = make_server(make)
    first = server.run(request(server, "a"))
    server.h.decode(first, 6)
    alone = freed_at_end(first)
    assert alone == pytest.approx(len(PROMPT) + len(first.output_ids), abs=server.h.page_size)
    second = server.run(request(server, "b", [*PROMPT, *range(5000, 5020)]))
    shared = second.cached
    assert shared > 0 and freed_at_end(first) == alone - shared
    waiting = request(server, "c", OTHER)
    assert freed_at_end(waiting) == 0
    before = server.h.allocator.available_size() + server.h.cache.evictable_size()
    told = freed_at_end(first)
    server.h.finish(first)
    given_back = server.h.allocator.available_size() + server.h.cache.evictable_size() - before
    assert told == pytest.approx(given_back, abs=server.h.page_size)


@pytest.mark.parametrize("settings", [{"admission": "max-tokens"}, {"order": "sglang"}])
def test_without_a_forecast_all_counts_are_those_of_sglang(make, settings):
    server = make_server(make, **settings)
    running, new = server.run(request(server, "a", expected=5)), request(server, "b", OTHER, expected=50)
    assert server.extension.running_growth([running], 77.5) == 77.5
    assert server.extension.new_request_growth(new, [], 99.5) == 99.5


@pytest.mark.parametrize(("admission", "more"), [("forecast", 5 + 5), ("max-tokens", RATIO * (ASKED - 1) + ASKED)])
def test_the_room_that_the_time_half_keeps_for_the_next_request_is_that_of_the_admission(make, admission, more):
    server = make_server(make, admission=admission)
    running = server.run(request(server, "a", expected=6))
    server.h.running_batch.reqs = [running]
    waiting = request(server, "b", OTHER, expected=9)
    assert server.extension.running_growth([], 0.0) == 0.0  # a batch is being built
    found = server.extension.mover.measure_pool().admission_tokens
    assert found == int(more) + len(waiting.origin_input_ids) + server.h.page_size + 1
    assert server.extension.new_request_growth(waiting, [], 1000.0) == (9 if admission == "forecast" else 1000.0)
