"""Recording without a server: sessions, shared lengths, waits, block ids, and what may never be kept."""

from __future__ import annotations

import random
from array import array

import pytest

from tokencake_sglang.core.fingerprint import BLOCK, GRAIN, TEMPLATE_TAIL, BlockIds, Trail
from tokencake_sglang.core.recording import Recording, Row, Wait
from tokencake_sglang.core.types import AgentIdentity


def tokens(seed: object, count: int) -> array:
    return array("q", random.Random(repr(seed)).choices(range(10, 50_000), k=count))


class Kept:
    """A sink that keeps rows and what completed them."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.waits: dict[int, Wait] = {}

    def row(self, row: Row) -> int:
        self.rows.append(row)
        return len(self.rows) - 1

    def wait(self, ref: int, wait: Wait) -> None:
        self.waits[ref] = wait


class Server:
    """A clock that is set by hand and a recording that is told of whole calls."""

    def __init__(self, **kwargs) -> None:
        self.kept = Kept()
        self.recording = Recording(self.kept, **kwargs)
        self.now = 100.0
        self.count = 0

    def call(self, prompt, output, *, after=0.0, lasts=1.0, cached=0, **fields) -> Row:
        self.finish(self.add(prompt, after=after, **fields), output, lasts=lasts, cached=cached)
        return self.kept.rows[-1]

    def add(self, prompt, *, after=0.0, agent=None, **fields) -> str:
        self.now += after
        self.count += 1
        identity = AgentIdentity(agent_id=agent, agent_type="coder") if isinstance(agent, str) else agent
        self.recording.added(self.now, f"r{self.count}", prompt, identity, **fields)
        return f"r{self.count}"

    def finish(self, rid, output, *, lasts=0.0, cached=0) -> None:
        self.now += lasts
        self.recording.finished(self.now, rid, output, cached)

    def event(self, event, *, after=0.0, agent="a", **fields) -> None:
        self.now += after
        if event == "stall_started":
            fields.setdefault("kind", "tool")
        self.recording.event(self.now, {"event": event, "agent_id": agent, **fields})


@pytest.fixture
def server() -> Server:
    return Server()


# -- shared lengths ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prompt", [1, 4, 15, 16, 20, 100, 112, 113])
@pytest.mark.parametrize("output", [1, 5, 16, 40])
@pytest.mark.parametrize("more", [0, 1, 50])
def test_all_of_a_round_is_shared_exactly_whatever_its_length(prompt, output, more):
    first, answer = tokens("p", prompt), tokens("o", output)
    trail = Trail(first)
    trail.extend(answer)
    following = first + answer + tokens("m", more)
    assert trail.shared(Trail(following), following) == prompt + output
    assert trail.continued_by(Trail(following), following)


@pytest.mark.parametrize("prompt", [20, 100, 112, 113])
def test_a_prompt_without_its_output_is_shared_exactly(prompt):
    first = tokens("p", prompt)
    trail = Trail(first)
    trail.extend(tokens("o", 90))
    following = first + tokens("x", 70)
    assert trail.shared(Trail(following), following) == prompt


def test_a_prompt_that_parts_in_the_middle_is_shared_to_the_grain_below():
    first = tokens("p", 200)
    following = first[:101] + tokens("x", 99)
    assert Trail(first).shared(Trail(following), following) == 101 // GRAIN * GRAIN


def test_nothing_is_shared_across_adapters():
    first = tokens("p", 200)
    assert Trail(first, "lora").shared(Trail(first), first) == 0


def test_a_trail_made_in_pieces_is_the_one_made_at_once():
    whole = tokens("p", 333)
    pieces = Trail(whole[:7])
    for start, end in ((7, 16), (16, 17), (17, 200), (200, 333)):
        pieces.extend(whole[start:end])
    assert (pieces.marks, pieces.rest, pieces.length) == (Trail(whole).marks, Trail(whole).rest, 333)


@pytest.mark.parametrize(("stripped", "continues"), [(0, True), (TEMPLATE_TAIL, True), (TEMPLATE_TAIL + 1, False)])
@pytest.mark.parametrize("length", [40, 45, 64, 67])
def test_a_template_may_leave_out_the_last_few_tokens_of_a_prompt_and_all_of_its_output(stripped, continues, length):
    first = tokens("p", length)
    trail = Trail(first)
    trail.extend(tokens("o", 40))
    following = first[:length - stripped] + tokens("x", 60)
    assert trail.continued_by(Trail(following), following) is continues


# -- block ids --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 15, 16, 511, 512, 513, 1024, 1100])
def test_there_is_one_id_for_each_512_tokens_begun(length):
    assert len(BlockIds().of(Trail(tokens("p", length)))) == -(-length // BLOCK)


def test_ids_are_equal_where_and_only_where_the_whole_prefix_is():
    ids, first = BlockIds(), tokens("p", 4 * BLOCK)
    assert ids.of(Trail(first)) == [0, 1, 2, 3]
    assert ids.of(Trail(first[:2 * BLOCK] + tokens("x", BLOCK))) == [0, 1, 4]
    assert ids.of(Trail(tokens("y", BLOCK) + first[BLOCK:])) == [5, 6, 7, 8]
    assert ids.of(Trail(first)) == [0, 1, 2, 3]


def test_a_last_block_that_is_not_full_is_itself_only_at_its_full_length():
    ids, first = BlockIds(), tokens("p", 2 * BLOCK)
    part = ids.of(Trail(first[:BLOCK + 100]))
    assert part == ids.of(Trail(first[:BLOCK + 100])) == [0, 1]
    assert ids.of(Trail(first[:BLOCK + 96])) == [0, 2]
    assert ids.of(Trail(first)) == [0, 3]


def test_forgotten_blocks_get_new_ids_and_remembered_ones_keep_theirs():
    ids = BlockIds(limit=2)
    a, b, c = (Trail(tokens(name, BLOCK)) for name in "abc")
    assert [ids.of(each)[0] for each in (a, b, a, c, a, b)] == [0, 1, 0, 2, 0, 3]


# -- sessions of agents -----------------------------------------------------------------------------------------


def test_the_rounds_of_an_agent_are_one_session_with_times_lengths_and_waits(server):
    first, answer = tokens("p", 700), tokens("o", 30)
    server.call(first, answer, agent="a", lasts=2.0, cached=5)
    server.call(tokens("q", 10), tokens("r", 3), agent="b", after=0.5)
    following = first + answer + tokens("m", 100)
    server.call(following, tokens("s", 7), agent="a", after=1.25, cached=720)
    assert server.kept.rows == [
        Row(0, 0, 0, 0, 0, 700, 30, [0, 1], "coder", 5),
        Row(1, 2500, 2500, 0, 0, 10, 3, [2], "coder", 0),
        Row(0, 0, 4750, 1, 730, 830, 7, [0, 3], "coder", 720)]
    assert server.kept.waits == {0: Wait(2750)}


def test_an_agents_next_round_is_its_session_even_when_nothing_is_shared(server):
    server.call(tokens("p", 50), tokens("o", 5), agent="a")
    row = server.call(tokens("q", 50), tokens("o", 5), agent="a")
    assert (row.session_id, row.round_idx, row.prefix_len) == (0, 1, 0)


def test_a_tool_that_the_client_told_of_is_written_with_its_forecast_and_its_length(server):
    server.call(tokens("p", 50), tokens("o", 5), agent="a")
    server.event("stall_started", after=0.1, kind="search", estimated_duration_s=2.0, call_id="c")
    server.event("stall_started", after=0.1, kind="search", estimated_duration_s=2.0, call_id="c")
    server.event("stall_finished", after=1.4, call_id="c")
    server.call(tokens("p", 90), tokens("o", 5), agent="a", after=0.4)
    assert server.kept.waits == {0: Wait(2000, "search", 2000, 1500)}


def test_tools_that_overlap_are_one_wait_that_lasts_to_the_last_return(server):
    server.call(tokens("p", 50), tokens("o", 5), agent="a")
    server.event("stall_started", kind="short", estimated_duration_s=1.0, call_id="1")
    server.event("stall_started", after=0.5, kind="long", estimated_duration_s=3.0, call_id="2")
    server.event("stall_finished", after=0.5, call_id="1")
    server.event("stall_finished")
    server.event("stall_finished", call_id="other")
    server.call(tokens("p", 90), tokens("o", 5), agent="a", after=1.0)
    assert server.kept.waits == {0: Wait(2000, "long", 3500, 1000)}


def test_a_finish_that_does_not_say_which_of_two_calls_ended_ends_none(server):
    server.call(tokens("p", 50), tokens("o", 5), agent="a")
    server.event("stall_started", call_id="1")
    server.event("stall_started", call_id="2")
    server.event("stall_finished", after=1.0)
    server.call(tokens("p", 90), tokens("o", 5), agent="a", after=1.0)
    assert server.kept.waits == {0: Wait(2000, "tool", None, 2000)}


def test_a_tool_without_finish_lasts_until_the_next_request_and_is_not_taken_for_a_later_one(server):
    server.call(tokens("p", 50), tokens("o", 5), agent="a")
    server.event("stall_started", after=0.5)
    server.call(tokens("p", 90), tokens("o", 5), agent="a", after=1.0)
    server.event("stall_finished")
    server.call(tokens("p", 95), tokens("o", 5), agent="a", after=1.0)
    assert server.kept.waits == {0: Wait(1500, "tool", None, 1000), 1: Wait(1000)}


def test_an_event_about_an_agent_never_seen_changes_nothing(server):
    for event in ("stall_started", "stall_finished", "agent_finished"):
        server.event(event, agent="nobody")
    assert server.kept.rows == []


def test_an_agent_that_has_ended_starts_a_new_session_under_the_same_name(server):
    server.call(tokens("p", 50), tokens("o", 5), agent="a")
    server.event("agent_finished")
    assert server.call(tokens("p", 50), tokens("o", 5), agent="a").session_id == 1
    assert server.kept.waits == {}


def test_events_find_an_agent_by_the_name_of_its_last_call_too(server):
    for call in ("1", "2"):
        server.call(tokens("p", 50), tokens("o", 5), agent=AgentIdentity(agent_id="a", lifecycle_id=call), after=1.0)
        server.recording.event(server.now, {"event": "stall_started", "lifecycle_id": call, "kind": f"k{call}"})
    server.recording.event(server.now, {"event": "agent_finished", "lifecycle_id": "1"})  # a name it has no more
    server.call(tokens("p", 50), tokens("o", 5), agent="a", after=1.0)
    assert [wait.tool_kind for wait in server.kept.waits.values()] == ["k1", "k2"]


def test_calls_of_one_agent_at_the_same_time_are_rounds_in_order_of_their_end_without_a_wait(server):
    first, second = server.add(tokens("p", 50), agent="a"), server.add(tokens("q", 50), agent="a", after=0.5)
    server.finish(second, tokens("o", 5), lasts=1.0)
    server.finish(first, tokens("o", 6), lasts=1.0)
    assert [(row.round_idx, row.output_length) for row in server.kept.rows] == [(0, 5), (1, 6)]
    assert server.kept.waits == {0: Wait(0)}


# -- sessions of plain clients ----------------------------------------------------------------------------------


def test_a_conversation_without_identity_is_one_session_and_others_with_the_same_start_are_not(server):
    system = tokens("system", 600)
    histories = {}
    for turn in range(3):
        for talker in "abc":
            prompt = histories.get(talker, system) + tokens((talker, turn), 40)
            answer = tokens((talker, turn, "answer"), 21)
            row = server.call(prompt, answer, after=1.0)
            assert (row.session_id, row.round_idx) == ("abc".index(talker), turn)
            assert row.prefix_len == (len(histories[talker]) if turn else 0)
            histories[talker] = prompt + answer
    assert {wait.wait_ms for wait in server.kept.waits.values()} == {5000}


@pytest.mark.parametrize("length", [3, 10, 30, 500])
def test_a_repeated_prompt_is_a_new_session(server, length):
    for expected in range(3):
        assert server.call(tokens("p", length), tokens("o", 5)).session_id == expected


def test_of_two_next_turns_of_one_round_the_second_is_a_new_session(server):
    first, answer = tokens("p", 100), tokens("o", 20)
    server.call(first, answer)
    a, b = (server.add(first + answer + tokens(name, 50)) for name in "ab")
    server.finish(a, answer)
    server.finish(b, answer)
    assert [row.session_id for row in server.kept.rows] == [0, 0, 1]


def test_a_turn_sent_while_the_one_before_still_runs_is_a_new_session(server):
    first = tokens("p", 100)
    a, b = server.add(first), server.add(first + tokens("x", 50))
    server.finish(a, tokens("o", 5))
    server.finish(b, tokens("o", 5))
    assert [row.session_id for row in server.kept.rows] == [0, 1]


def test_after_an_aborted_turn_the_session_goes_on_and_the_wait_runs_to_the_turn_that_was_served(server):
    first, answer = tokens("p", 100), tokens("o", 20)
    server.call(first, answer)
    following = first + answer + tokens("x", 50)
    server.recording.vanished(server.add(following, after=1.0))
    server.finish(server.add(following, after=1.0), array("q"), lasts=1.0)
    row = server.call(following, answer, after=1.0)
    assert (row.session_id, row.round_idx, row.prefix_len) == (0, 1, 120)
    assert server.kept.waits == {0: Wait(4000)} and server.recording.dropped == 2


def test_an_agents_history_is_not_taken_for_that_of_a_plain_client(server):
    first, answer = tokens("p", 100), tokens("o", 20)
    server.call(first, answer, agent="a")
    assert server.call(first + answer + tokens("x", 5), answer).session_id == 1


# -- bounds and privacy -----------------------------------------------------------------------------------------


def test_memory_is_bounded_and_what_was_forgotten_starts_anew():
    server = Server(sessions_kept=3)
    for number in range(10):
        server.call(tokens(number, 100), tokens("o", 20), agent=f"a{number}" if number % 2 else None)
    recording = server.recording
    assert len(recording._sessions) == 3 and not recording._live
    assert len(recording._named) + len(recording._tips) == 3
    assert server.call(tokens(1, 100), tokens("o", 20), agent="a1").session_id == 10
    assert server.call(tokens(8, 100) + tokens("o", 20) + tokens("x", 5), tokens("o", 20)).session_id == 8


def test_a_session_forgotten_while_its_request_runs_still_gets_its_row():
    server = Server(sessions_kept=1)
    rid = server.add(tokens("p", 100))
    server.call(tokens("q", 100), tokens("o", 5))
    server.finish(rid, tokens("o", 5))
    assert [row.session_id for row in server.kept.rows] == [1, 0]
    assert len(server.recording._tips) == 1


def test_a_retracted_request_that_joins_the_queue_again_is_one_request(server):
    rid = server.add(tokens("p", 100), agent="a")
    server.recording.added(server.now + 5, rid, tokens("p", 100), AgentIdentity(agent_id="a"))
    server.finish(rid, tokens("o", 5), lasts=9.0)
    server.recording.finished(server.now, rid, tokens("o", 5), 0)
    assert len(server.kept.rows) == 1 and server.kept.rows[0].timestamp_ms == 0


def test_rows_hold_no_name_of_an_agent_and_no_token(server):
    rare = array("q", [48_611, 48_623, 48_647])
    server.call(rare, rare, agent="somebody@example.org")
    server.event("stall_started", agent="somebody@example.org", call_id="secret-call")
    server.call(rare, rare, agent="somebody@example.org")
    text = repr(server.kept.rows) + repr(server.kept.waits)
    assert "coder" in text
    for secret in ("somebody", "secret", "48611", "48623", "48647"):
        assert secret not in text
