"""Order and admission of the spatial scheduler as a whole, from values alone."""

from __future__ import annotations

import math

from tokencake_sglang.core.config import TokenCakeConfig
from tokencake_sglang.core.spatial import Demand, SpatialScheduler, Waiting
from tokencake_sglang.core.spatial.affinity import CLASS_TOKENS, PATIENCE_S
from tokencake_sglang.core.spatial.load_control import HIDDEN_CHUNK
from tokencake_sglang.core.spatial.output_lengths import LENGTHS_NEEDED
from tokencake_sglang.core.spatial.views import Place


class Server:
    """Requests go in and out by name: `p.1` is a request of program p, `chat` a plain one."""

    def __init__(self, **settings):
        self.spatial = SpatialScheduler(TokenCakeConfig(**settings))
        self.queue: list[str] = []
        self.now = 0.0

    def add(self, *rids, prompt=100, output=10, tenant="", **fields):
        for rid in rids:
            program = rid.split(".")[0] if "." in rid else ""
            self.spatial.request_added(self.now, Waiting(
                rid, program, agent=program and f"agent of {program}", tenant=tenant, prompt_tokens=prompt,
                max_new_tokens=output, **fields), lambda agent: None)
            self.queue.append(rid)

    def order(self):
        if self.spatial.follow(self.now):
            self.queue = self.spatial.order_of(self.queue)
        return self.queue

    def admit(self, rid, new_tokens=100):
        self.queue.remove(rid)
        self.spatial.request_admitted(self.now, rid, new_tokens)

    def end(self, rid, output=10):
        self.spatial.request_ended(self.now, rid, output)

    def lose(self, **tokens):
        """So much KV of each program's agent was given up."""
        self.spatial.lost = lambda agent: tokens.get(agent.removeprefix("agent of "), 0)
        for program in tokens:
            self.spatial.kv_lost_changed(program)

    def door(self, capacity, running=True, beside=0, **held):
        demand = Demand(capacity, held, sum(held.values()), running, beside)
        self.spatial.admit(self.now, demand, lambda agent: None)
        return [rid for rid in self.order() if self.spatial.holds_back(rid)]


class TestOrder:
    def test_requests_of_the_older_program_go_first(self):
        server = Server()
        server.add("a.1", "b.1", "a.2", "b.2")
        assert server.order() == ["a.1", "a.2", "b.1", "b.2"]

    def test_a_priority_counts_among_the_requests_of_one_program_only(self):
        server = Server()
        server.add("a.1", "b.1", "a.2")
        server.add("b.2", "chat", "a.3", priority=99)
        assert [rid for rid in server.order() if rid != "chat"] == ["a.3", "a.1", "a.2", "b.2", "b.1"]

    def test_no_priority_of_others_keeps_a_request_waiting_beyond_the_seniority(self):
        server = Server(seniority_s=60.0)
        server.add("a.old")
        server.now = 30.0
        server.add("a.1", priority=99)
        assert server.order() == ["a.1", "a.old"]
        server.now = 60.5
        server.add("a.2", priority=99)
        assert server.order() == ["a.old", "a.1", "a.2"]

    def test_an_expected_output_is_what_a_request_is_charged_for_until_it_has_ended(self):
        def charged(**fields):
            server = Server()
            server.add("a.1", output=1000, **fields)
            server.order()
            server.admit("a.1")
            before = server.spatial.shares.times()["", "agents"]
            server.end("a.1", output=500)
            return before, server.spatial.shares.times()["", "agents"]

        guessed, told, too_many = charged(), charged(expected_tokens=500), charged(expected_tokens=10**9)
        assert told[0] == told[1] == guessed[1] == too_many[1] and guessed[0] < told[0] < too_many[0]
        assert too_many[0] == charged(expected_tokens=1000)[0]

    def test_nothing_is_computed_again_while_nothing_has_changed(self):
        server = Server()
        server.add("a.1")
        assert [server.spatial.follow(now) for now in (0.0, 0.5, 1.5)] == [True, False, True]

    def test_an_admission_changes_the_order_only_where_pools_take_turns(self):
        server = Server()
        server.add("a.1", "a.2", "b.1")
        server.order()
        server.admit("a.1")
        assert not server.spatial.follow(0.0)
        server.add("chat")
        server.order()
        server.admit("a.2")
        assert server.spatial.follow(0.0)

    def test_a_request_that_nobody_told_of_stays_behind_the_others(self):
        server = Server()
        server.add("a.1")
        server.queue.insert(0, "stranger")
        assert server.order() == ["a.1", "stranger"]

    def test_a_retracted_request_has_its_old_place(self):
        server = Server()
        server.add("a.1", "a.2")
        server.order()
        server.admit("a.1")
        server.queue.append("a.1")
        server.spatial.request_added(1.0, Waiting("a.1", "a"), lambda agent: None)
        assert server.order() == ["a.1", "a.2"]

    def test_beyond_the_seniority_a_program_has_no_more_claims_than_a_request_that_waits_as_long(self):
        server = Server(seniority_s=100.0)
        server.add("old.1", "late.1")
        server.now = 50.0
        server.add("old.2")
        assert server.order() == ["old.1", "old.2", "late.1"]
        server.now = 101.0
        assert server.order() == ["old.1", "late.1", "old.2"]

    def test_a_request_goes_before_whatever_comes_once_it_has_waited_for_the_seniority(self):
        """The bound: an endless program that is older cannot hold a request back for longer."""
        server = Server(seniority_s=100.0)
        server.add("endless.0", "poor.1")
        for number in range(1, 300):
            server.now = float(number)
            first = server.order()[0]
            if first == "poor.1":
                break
            server.admit(first)
            server.end(first)
            server.add(f"endless.{number}")
        assert 99.0 <= server.now <= 102.0

    def test_aborted_requests_leave_nothing_behind(self):
        server = Server()
        server.add("a.1", "chat")
        for rid in ("a.1", "chat"):
            server.spatial.request_ended(0.0, rid)
        server.spatial.agent_ended(server.now, "a", "agent of a")
        assert (server.spatial.num_requests, len(server.spatial.programs)) == (0, 0)


class TestAffinity:
    def test_a_request_whose_kv_was_given_up_goes_behind_those_whose_kv_is_here(self):
        server = Server()
        server.lose(a=5000, c=CLASS_TOKENS - 1)
        server.add("a.1", "b.1", "c.1", "d.1")
        assert server.order() == ["b.1", "c.1", "d.1", "a.1"], "little is as good as nothing"

    def test_of_those_the_one_that_has_lost_much_less_goes_first_else_the_older_program(self):
        server = Server()
        server.lose(a=9000, b=7000, c=5000, d=1500)
        server.add("a.1", "b.1", "c.1", "d.1")
        assert server.order() == ["d.1", "b.1", "c.1", "a.1"]

    def test_kv_that_is_given_up_while_a_request_waits_counts_at_once(self):
        server = Server()
        server.add("a.1", "b.1")
        assert server.order() == ["a.1", "b.1"]
        server.lose(a=5000)
        assert server.order() == ["b.1", "a.1"]

    def test_after_a_while_a_request_goes_as_if_its_kv_were_here(self):
        server = Server()
        server.lose(a=10**6)
        server.add("a.1", "b.1")
        server.now = PATIENCE_S - 1.0
        assert server.order() == ["b.1", "a.1"]
        server.now = PATIENCE_S
        assert server.order() == ["a.1", "b.1"]

    def test_a_program_of_several_agents_goes_by_its_age_also_after_the_others_have_ended(self):
        server = Server()
        server.lose(a=5000)
        server.add("a.1", "b.1")
        assert server.order() == ["b.1", "a.1"]
        helper = Waiting("a.2", "a", agent="another agent of a", prompt_tokens=100, max_new_tokens=10)
        server.spatial.request_added(server.now, helper, lambda agent: None)
        server.spatial.request_ended(server.now, "a.2", 10)
        server.spatial.agent_ended(server.now, "a", helper.agent)
        assert server.order() == ["a.1", "b.1"]

    def test_a_session_is_one_again_in_the_next_question_and_a_program_of_many_is_not(self):
        server = Server()
        server.lose(a=5000, b=5000)
        server.add("a.1", "b.1")
        server.spatial.request_added(0.0, Waiting("b.2", "b", agent="another"), lambda agent: None)
        for rid in ("a.1", "b.1", "b.2"):
            server.spatial.request_ended(1.0, rid, 10)
        server.queue.clear()
        server.now = 60.0
        server.add("a.2", "b.3", "c.1")
        assert server.order() == ["b.3", "c.1", "a.2"]

    def test_a_request_in_the_run_of_a_graph_goes_by_the_age_of_its_program(self):
        server = Server()
        server.spatial.place = lambda rid: Place(1.0, True) if rid == "a.1" else None
        server.lose(a=5000)
        server.add("a.1", "b.1")
        assert server.order() == ["a.1", "b.1"]

    def test_nothing_that_comes_goes_before_a_request_that_has_waited_for_the_seniority_whatever_it_has_lost(self):
        """New programs come all the time, two for each request that is served; some have lost a little."""
        server = Server(seniority_s=100.0)
        server.lose(poor=10**6, **{f"c{number}": 1500 for number in range(300)})
        server.add("poor.1")
        for number in range(1, 300):
            server.now = float(number)
            server.add(f"b{number}.1", f"c{number}.1")
            first = server.order()[0]
            if first == "poor.1":
                break
            server.admit(first)
            server.end(first)
        assert 99.0 <= server.now <= 102.0

    def test_the_seniority_counts_at_once_also_for_one_that_has_lost_its_kv(self):
        server = Server(seniority_s=100.0)
        server.lose(poor=10**6)
        server.add("poor.1")
        server.now = 99.9
        server.add("b.1")
        assert server.order() == ["b.1", "poor.1"]
        server.now = 100.3
        server.add("c.1")
        assert server.order() == ["poor.1", "b.1", "c.1"]


class TestForecastForAdmission:
    def most(self, count=LENGTHS_NEEDED, expected=None, **settings):
        server = Server(**settings)
        for number in range(count):
            server.add(f"a.{number}", output=4000, kind="coder")
            server.end(f"a.{number}", output=100 + number)
        server.add("a.next", output=4000, kind="coder", expected_tokens=expected)
        return server.spatial.most_expected("a.next")

    def test_a_request_is_not_expected_to_exceed_nearly_all_of_those_of_its_kind(self):
        assert self.most() == 100 + LENGTHS_NEEDED - 1

    def test_what_its_client_says_goes_before_that(self):
        assert self.most(expected=7) == 7

    def test_nothing_is_known_of_a_new_kind_of_a_stranger_or_where_admission_goes_by_what_was_asked_for(self):
        assert self.most(count=0) == Server().spatial.most_expected("stranger") == math.inf
        assert self.most(admission="max-tokens") == self.most(expected=7, admission="max-tokens") == math.inf


class TestShares:
    def test_plain_requests_and_programs_take_turns_by_what_they_cost(self):
        server = Server()
        server.add("a.1", "a.2", "a.3", "chat1", "chat2", "chat3")
        assert server.order() == ["a.1", "chat1", "a.2", "chat2", "a.3", "chat3"]

    def test_a_pool_with_small_requests_has_more_turns(self):
        server = Server()
        server.add("a.1", "a.2", prompt=1000, output=0)
        server.add("c1", "c2", "c3", "c4", prompt=400, output=0)
        assert server.order() == ["a.1", "c1", "c2", "c3", "a.2", "c4"]

    def test_in_a_long_queue_nobody_is_lost_behind_the_places_that_are_shared_out(self):
        server = Server()
        server.add(*(f"p{n}.1" for n in range(100)), *(f"chat{n}" for n in range(100)))
        assert sorted(server.order()) == sorted([f"p{n}.1" for n in range(100)] + [f"chat{n}" for n in range(100)])

    def test_a_tenant_that_floods_does_not_delay_another(self):
        server = Server()
        server.add(*(f"flood{n}.1" for n in range(50)), tenant="greedy")
        server.order()
        for rid in list(server.queue[:5]):
            server.admit(rid)
        server.add("modest.1", tenant="modest")
        assert server.order()[0] == "modest.1"

    def test_a_request_is_charged_for_what_it_really_generated(self):
        server = Server()
        server.add("a.1", "chat", output=1000)
        server.order()
        server.admit("a.1", new_tokens=0)
        server.admit("chat", new_tokens=0)
        before = server.spatial.shares.times()
        server.end("a.1", output=1)
        after = server.spatial.shares.times()
        assert after["", "agents"] < before["", "agents"] == before["", "plain"]

    def test_a_prompt_in_chunks_is_charged_once(self):
        server = Server()
        server.add("a.1", "a.2")
        server.admit("a.1")
        before = server.spatial.shares.times()
        server.spatial.request_admitted(0.0, "a.1", 100)
        assert server.spatial.shares.times() == before


class TestDoor:
    def test_young_programs_wait_while_the_older_ones_need_the_memory(self):
        server = Server()
        server.add("a.1", "b.1", "c.1")
        assert server.door(1000, a=500, b=500) == ["b.1", "c.1"]

    def test_a_program_that_comes_between_two_looks_waits_if_others_do(self):
        server = Server()
        server.add("a.1", "b.1")
        assert server.door(1000, a=500, b=500) == ["b.1"]
        server.now = 0.05
        server.add("c.1", "a.2")
        assert server.door(1000, a=500, b=500) == ["b.1", "c.1"]
        server.now = 0.2
        assert server.door(1000, a=250, c=250) == []

    def test_the_more_programs_there_are_the_less_often_they_are_looked_at(self):
        server = Server()
        server.add(*(f"p{number}.1" for number in range(500)))
        held = {f"p{number}": 10 for number in range(500)}
        server.door(1000, **held)
        for now, looks in ((0.4, False), (0.6, True)):
            server.now = now
            asked = []
            server.spatial.programs.at_it = lambda now, state, asked=asked: asked.append(now) or []
            server.door(1000, **held)
            assert bool(asked) == looks

    def test_it_is_open_where_prompts_are_computed_beside_decoding_in_small_chunks(self):
        server = Server()
        server.add("a.1", "b.1", "c.1")
        assert server.door(1000, beside=HIDDEN_CHUNK + 1, a=500, b=500) == ["b.1", "c.1"]
        assert server.door(1000, beside=HIDDEN_CHUNK, a=500, b=500) == []
        assert server.door(1000, beside=128, running=False, a=500, b=500) == []
        server.now = 0.2
        assert server.door(1000, a=500, b=500) == ["b.1", "c.1"], "these have steps of their own"
        balanced = Server(chunks="balanced")
        balanced.add("a.1", "b.1", "c.1")
        assert balanced.door(1000, beside=8192, a=500, b=500) == []
        balanced.now = 0.2
        assert balanced.door(1000, a=500, b=500) == ["b.1", "c.1"]

    def test_nobody_waits_while_half_of_the_memory_is_free(self):
        server = Server()
        server.add("a.1", "b.1")
        assert server.door(1000, a=499) == []

    def test_plain_requests_never_wait_at_the_door(self):
        server = Server()
        server.add("a.1", "b.1", "chat")
        assert server.door(1000, a=900) == ["b.1"]

    def test_a_server_on_which_nothing_runs_lets_the_first_in(self):
        server = Server()
        server.add("a.1")
        server.admit("a.1")
        server.end("a.1")
        server.add("b.1", "c.1")
        assert server.door(1000, running=True, a=900) == ["b.1", "c.1"]
        assert server.door(1000, running=False, a=900) == ["c.1"]

    def test_what_a_program_that_went_away_for_long_holds_counts_for_nothing(self):
        server = Server()
        server.add("a.1")
        server.admit("a.1")
        server.end("a.1")
        server.now = 60.0
        server.add("b.1")
        assert server.door(1000, a=900) == []

    def test_how_much_a_kind_of_program_holds_is_learnt_from_those_that_ended(self):
        server = Server()
        server.add("a.1")
        server.door(1000, a=600)
        server.admit("a.1")
        server.end("a.1")
        server.spatial.agent_ended(server.now, "a", "agent of a")
        server.now = 1.0
        server.add("b.1", "c.1")
        assert server.spatial.peaks.of("") == 600
        assert server.door(1000, b=300, other=300) == ["c.1"]


class TestWaiting:
    def admitted(self, server, count, every_s):
        """One after another, while the others wait."""
        server.add(*(f"early{number}.1" for number in range(count)))
        server.order()
        for number in range(count):
            server.now += every_s
            server.admit(f"early{number}.1")

    def test_a_request_waits_for_those_of_older_programs_at_the_pace_of_the_last_admissions(self):
        server = Server()
        self.admitted(server, 200, 0.5)
        server.add("a.1", "a.2", "b.1", "c.1")
        server.order()
        assert server.spatial.wait_s("a") == 0.0
        assert 0.8 < server.spatial.wait_s("b") < 1.2
        assert 1.2 < server.spatial.wait_s("c") < 1.8

    def test_a_queue_that_has_become_empty_keeps_nobody_waiting(self):
        """SGLang asks for no order while none waits, so nothing may be left over from the last time it did."""
        server = Server()
        server.add("a.1", "b.1")
        server.order()
        assert server.spatial.wait_s("b") > 1.0
        server.admit("a.1")
        assert server.spatial.wait_s("b") == 0.0
        server.now += 30.0
        server.add("a.2", "b.2")
        server.order()
        server.end("a.2")
        assert server.spatial.wait_s("b") == 0.0

    def test_a_server_that_mostly_waits_is_not_a_slow_one(self):
        server = Server()
        for number in range(20):
            server.add(f"early{number}.1")
            server.order()
            server.now += 0.1
            server.admit(f"early{number}.1")
            server.now += 60.0
        server.add("a.1", "b.1")
        server.order()
        assert 0.05 < server.spatial.wait_s("b") < 0.15

    def test_nobody_waits_on_an_empty_queue_and_an_unknown_program_has_no_forecast(self):
        server = Server()
        server.add("a.1")
        server.order()
        assert server.spatial.wait_s("a") == server.spatial.wait_s("stranger") == 0.0

    def test_no_forecast_is_longer_than_ten_minutes(self):
        server = Server()
        server.add(*(f"p{number}.1" for number in range(100)))
        server.order()
        assert server.spatial.wait_s("p99") == 600.0
