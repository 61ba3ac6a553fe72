"""The parts of the spatial scheduler by themselves: ledger, fair shares, output lengths, programs, the door."""

from __future__ import annotations

import math

import pytest

from tokencake_sglang.core.spatial.ledger import MOST_PARTS, SHARED, Ledger
from tokencake_sglang.core.spatial.load_control import Claim, Peaks, let_in
from tokencake_sglang.core.spatial.output_lengths import (
    FIRST_GUESS,
    KINDS_KEPT,
    LENGTHS_KEPT,
    LENGTHS_NEEDED,
    OutputLengths,
)
from tokencake_sglang.core.spatial.programs import AGENTS_KEPT, EPISODE_GAP_S, OVER_KEPT, Program, ProgramTable
from tokencake_sglang.core.spatial.shares import FairShares, cost
from tokencake_sglang.core.spatial.views import Waiting


class TestLedger:
    def test_a_piece_is_charged_to_its_owner(self):
        ledger = Ledger()
        ledger.add(1, 100, "a")
        assert (ledger.accounts, ledger.total) == ({"a": 100}, 100)

    def test_a_shared_piece_is_charged_in_equal_parts_to_the_token(self):
        ledger = Ledger()
        for program in "abc":
            ledger.add(1, 100, program)
        assert ledger.accounts == {"a": 33, "b": 33, "c": 34}

    def test_a_program_that_owns_a_piece_through_two_agents_pays_once_and_until_both_are_gone(self):
        ledger = Ledger()
        ledger.add(1, 10, "a")
        ledger.add(1, 10, "a")
        ledger.remove(1, "a")
        assert ledger.held("a") == 10
        ledger.remove(1, "a")
        assert (ledger.held("a"), ledger.accounts) == (0, {SHARED: 10})

    def test_a_split_changes_no_account(self):
        ledger = Ledger()
        ledger.add(1, 10, "a")
        ledger.add(1, 10, "b")
        ledger.split(2, 4, 1, 6)
        assert ledger.accounts == {"a": 5, "b": 5}
        ledger.remove(1, "b")
        assert ledger.accounts == {"a": 8, "b": 2}

    def test_what_too_many_programs_own_is_shared_by_all(self):
        ledger = Ledger()
        for number in range(MOST_PARTS + 1):
            ledger.add(1, 100, f"p{number}")
        assert ledger.accounts == {SHARED: 100}

    def test_a_dropped_piece_leaves_nothing(self):
        ledger = Ledger()
        ledger.add(1, 10, "a")
        ledger.drop(1)
        ledger.drop(1)
        assert (ledger.accounts, ledger.total) == ({}, 0)

    def test_a_piece_or_an_owner_that_is_not_known_is_left_alone(self):
        ledger = Ledger()
        ledger.remove(1, "a")
        ledger.split(2, 1, 1, 1)
        ledger.add(3, 5, "a")
        ledger.remove(3, "b")
        assert ledger.accounts == {"a": 5}


class TestFairShares:
    def test_a_pools_time_is_what_its_requests_have_cost(self):
        shares = FairShares()
        shares.update("ab")
        shares.admit("a", 10)
        shares.admit("b", 5)
        shares.admit("b", 1)
        assert shares.times() == {"a": 10, "b": 6}

    def test_a_pool_that_comes_in_starts_where_the_last_served_one_stood(self):
        shares = FairShares()
        shares.update("a")
        for _ in range(5):
            shares.admit("a", 100)
        shares.update("ab")
        assert shares.times() == {"a": 500, "b": 400}

    def test_a_pool_cannot_save_up_a_claim_while_it_has_nothing_to_do(self):
        shares = FairShares()
        shares.update("ab")
        shares.admit("b", 1)
        shares.update("a")
        for _ in range(5):
            shares.admit("a", 100)
        shares.update("ab")
        assert shares.times()["b"] == 400

    def test_a_pool_does_not_lose_a_debt_by_having_nothing_to_do(self):
        shares = FairShares()
        shares.update("ab")
        shares.admit("b", 1000)
        shares.update("a")
        shares.admit("a", 100)
        shares.update("ab")
        assert shares.times() == {"a": 100, "b": 1000}

    def test_all_debts_are_off_when_nobody_waits(self):
        shares = FairShares()
        shares.update("ab")
        shares.admit("a", 100)
        shares.update("")
        assert shares.times() == {}
        shares.update("ab")
        assert shares.times() == {"a": 100, "b": 100}

    def test_a_correction_moves_a_pools_time(self):
        shares = FairShares()
        shares.update("a")
        shares.admit("a", 10)
        shares.correct("a", -4)
        assert shares.times() == {"a": 6}

    def test_a_generated_token_costs_more_the_longer_its_context_is(self):
        assert cost(100, 0, 0) == 100
        assert cost(0, 1024, 10) == pytest.approx(10 * (4 + 1 + 5 / 1024))


class TestOutputLengths:
    def test_before_anything_was_seen_it_is_a_guess_and_never_more_than_what_was_asked_for(self):
        lengths = OutputLengths()
        assert (lengths.expected("x", 10_000), lengths.expected("x", 10)) == (FIRST_GUESS, 10)

    def test_the_newest_lengths_weigh_most(self):
        lengths = OutputLengths()
        lengths.observe("x", 100)
        lengths.observe("x", 200)
        assert lengths.expected("x", 10_000) == pytest.approx(120)

    def test_nine_of_ten_of_the_newest_lengths_do_not_exceed_the_bound_of_their_kind(self):
        lengths = OutputLengths()
        for tokens in range(1, LENGTHS_KEPT + 1):
            lengths.observe("x", 10_000 + tokens)
        for tokens in range(LENGTHS_KEPT, 0, -1):
            lengths.observe("x", tokens)
        assert lengths.bound("x") == 58 == math.ceil(0.9 * LENGTHS_KEPT)

    @pytest.mark.parametrize(("kind", "seen"), [("x", LENGTHS_NEEDED - 1), ("", 100), ("y", 0)])
    def test_there_is_no_bound_of_a_kind_of_which_too_little_is_known_nor_of_the_nameless_one(self, kind, seen):
        lengths = OutputLengths()
        for _ in range(seen):
            lengths.observe(kind, 10)
        assert lengths.bound(kind) == math.inf
        for _ in range(1, LENGTHS_NEEDED + 1):
            lengths.observe("named", 10)
        assert lengths.bound("named") == 10

    def test_the_kind_used_longest_ago_is_forgotten_first(self):
        lengths = OutputLengths()
        for number in range(KINDS_KEPT + 1):
            for _ in range(LENGTHS_NEEDED):
                lengths.observe(f"k{number}", 7)
        assert lengths.bound("k0") == math.inf and lengths.bound("k1") == 7
        assert lengths.expected("k0", 10_000) == FIRST_GUESS and lengths.expected("k1", 10_000) == 7


def waiting(rid, agent="", application=""):
    return Waiting(rid, program=agent and "its program", agent=agent, application=application)


class TestPrograms:
    def idle(self, agent):
        return False, 0.0

    def add(self, table, now, name, rid, agent="", state=None):
        return table.request_added(now, name, waiting(rid, agent), state or self.idle)

    def test_programs_are_numbered_in_the_order_of_their_first_request(self):
        table = ProgramTable()
        assert [self.add(table, 0.0, name, name).order for name in "aba"] == [1, 2, 1]

    def test_a_plain_request_is_gone_with_its_end(self):
        table = ProgramTable()
        self.add(table, 0.0, "r", "r")
        table.request_ended(1.0, "r", "r")
        assert len(table) == 0

    def test_a_program_is_gone_with_its_last_agent_and_request(self):
        table = ProgramTable()
        self.add(table, 0.0, "p", "r", "x")
        table.agent_ended(0.5, "p", "x")
        assert len(table) == 1
        table.request_ended(1.0, "p", "r")
        assert len(table) == 0

    def ended(self, at):
        table = ProgramTable()
        first = self.add(table, 0.0, "p", "r", "x")
        table.request_ended(1.0, "p", "r")
        table.agent_ended(at, "p", "x")
        return table, first

    def test_a_program_whose_next_agent_comes_when_the_last_has_just_ended_keeps_its_age(self):
        table, first = self.ended(at=30.0)
        assert len(table) == 0
        assert self.add(table, 30.0 + EPISODE_GAP_S, "p", "r2", "y") is first
        assert [p.name for p in table] == [p.name for p in table.at_it(41.0, self.idle)] == ["p"]

    def test_one_whose_next_agent_comes_later_arrives_anew(self):
        table, first = self.ended(at=30.0)
        assert self.add(table, 30.1 + EPISODE_GAP_S, "p", "r2", "y").order == first.order + 1

    def test_of_programs_whose_agents_have_all_ended_boundedly_many_are_remembered_and_no_plain_request(self):
        table = ProgramTable()
        for name in [f"p{number}" for number in range(OVER_KEPT + 1)]:
            self.add(table, 0.0, name, name, name)
            table.request_ended(0.0, name, name)
            table.agent_ended(0.0, name, name)
        assert self.add(table, 1.0, "p0", "r", "x").order == OVER_KEPT + 2
        assert self.add(table, 1.0, "p1", "r", "x").order == 2
        self.add(table, 1.0, "plain", "plain")
        table.request_ended(1.0, "plain", "plain")
        assert self.add(table, 1.0, "plain", "plain").order == OVER_KEPT + 4

    def test_a_program_that_was_away_for_a_moment_keeps_its_age(self):
        table = ProgramTable()
        first = self.add(table, 0.0, "p", "r", "x")
        table.request_ended(100.0, "p", "r")
        assert self.add(table, 100.0 + EPISODE_GAP_S, "p", "r2", "x") is first

    def test_one_that_was_away_for_long_arrives_anew(self):
        table = ProgramTable()
        self.add(table, 0.0, "p", "r", "x")
        table.request_ended(100.0, "p", "r")
        again = self.add(table, 101.0 + EPISODE_GAP_S, "p", "r2", "x")
        assert (again.arrived_at, again.order) == (101.0 + EPISODE_GAP_S, 2)

    @pytest.mark.parametrize("state", [(True, 0.0), (False, 995.0)])
    def test_one_whose_agent_waits_for_a_call_or_was_heard_of_keeps_its_age(self, state):
        table = ProgramTable()
        self.add(table, 0.0, "p", "r", "x")
        table.request_ended(100.0, "p", "r")
        assert self.add(table, 1000.0, "p", "r2", "x", lambda agent: state).order == 1

    def test_it_remembers_boundedly_many_agents(self):
        table = ProgramTable()
        for number in range(AGENTS_KEPT + 1):
            self.add(table, 0.0, "p", f"r{number}", f"a{number}")
        assert len(table.get("p").agents) == AGENTS_KEPT

    def test_of_too_many_programs_those_that_did_nothing_for_longest_are_forgotten(self):
        table = ProgramTable(2)
        for name in "abc":
            self.add(table, 0.0, name, name, name)
            table.request_ended(0.0, name, name)
        assert [program.name for program in table] == ["b", "c"]

    def test_those_at_it_are_programs_of_agents_with_requests_or_away_for_a_moment_the_oldest_first(self):
        table = ProgramTable()
        for name in "abcd":
            self.add(table, 0.0, name, name, name if name != "d" else "")
        for name in "ab":
            table.request_ended(100.0, name, name)
        stalled = lambda agent: (agent == "a", 0.0)  # noqa: E731
        assert [p.name for p in table.at_it(101.0, stalled)] == ["a", "b", "c"]
        assert [p.name for p in table.at_it(200.0, stalled)] == ["a", "c"]
        table.agent_ended(200.0, "a", "a")
        assert [p.name for p in table.at_it(200.0, stalled)] == ["c"]

    def test_programs_that_are_not_at_it_are_not_looked_at_again(self):
        table, asked = ProgramTable(), []
        self.add(table, 0.0, "a", "a", "x")
        table.request_ended(0.0, "a", "a")
        for _ in range(3):
            table.at_it(100.0, lambda agent: asked.append(agent))
        assert asked == ["x"]
        self.add(table, 100.0, "a", "a2", "x")
        assert [p.name for p in table.at_it(100.0, self.idle)] == ["a"]

    def test_a_program_with_a_request_is_never_forgotten(self):
        table = ProgramTable(1)
        self.add(table, 0.0, "a", "a", "x")
        self.add(table, 0.0, "b", "b", "x")
        assert [program.name for program in table] == ["a", "b"]


def claims(*rows):
    return [Claim(Program(name, 0.0, number), held, expected, inside)
            for number, (name, held, expected, inside) in enumerate(rows)]


def at_the_door(given, capacity, now):
    return [claim.program.name for claim in given[len(let_in(given, capacity, now)):]]


class TestDoor:
    def test_programs_that_fit_together_do_not_wait(self):
        assert at_the_door(claims(("a", 40, 0, True), ("b", 40, 0, True)), 100, 1.0) == []

    def test_the_youngest_wait_when_they_do_not_fit(self):
        assert at_the_door(claims(("a", 50, 0, True), ("b", 50, 0, True), ("c", 1, 0, True)), 100, 1.0) == ["b", "c"]

    def test_the_oldest_never_waits_whatever_it_holds(self):
        assert at_the_door(claims(("a", 500, 0, True)), 100, 1.0) == []

    def test_a_new_program_needs_room_for_what_it_will_hold_at_its_largest(self):
        assert at_the_door(claims(("a", 30, 50, True), ("b", 0, 50, False)), 100, 1.0) == []
        assert at_the_door(claims(("a", 31, 50, True), ("b", 0, 50, False)), 100, 1.0) == ["b"]

    def test_of_a_kind_that_never_ended_it_is_taken_that_it_becomes_as_large_as_the_largest(self):
        assert at_the_door(claims(("a", 45, 0, True), ("b", 0, 0, False)), 100, 1.0) == ["b"]

    def test_behind_the_first_that_waits_nobody_is_looked_at(self):
        rows = iter(claims(("a", 90, 0, True), ("b", 50, 0, True), ("c", 1, 0, True)))
        assert [claim.program.name for claim in let_in(rows, 100, 1.0)] == ["a"]
        assert [claim.program.name for claim in rows] == ["c"]

    def test_the_wait_at_the_door_is_bounded(self):
        assert at_the_door(claims(("a", 95, 0, True), ("b", 95, 0, False)), 100, 600.0) == []

    def test_peaks_are_means_by_kind(self):
        peaks = Peaks()
        peaks.observe("x", 100)
        peaks.observe("x", 200)
        assert peaks.of("x") == pytest.approx(130) and peaks.of("y") is None
