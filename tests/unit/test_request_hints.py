"""What a request says besides whose it is, and what becomes of it in the table of agents."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.test_controller import Server
from tokencake_sglang.core.agents import AgentTable
from tokencake_sglang.core.config import TokenCakeConfig
from tokencake_sglang.core.hints import HINT_FIELDS, RequestHints
from tokencake_sglang.core.types import AgentIdentity


def who(agent, parent=None, **fields):
    return AgentIdentity(agent_id=agent, parent_agent_id=parent, **fields)


@pytest.mark.parametrize(("metadata", "expected"), [
    (None, RequestHints()), ({}, RequestHints()), ({"agent_id": "a"}, RequestHints()),
    ({"priority": "99", "expected_output_tokens": "1", "cache_ttl_s": "86400.0"}, RequestHints(99, 1, 86400.0)),
    ({"priority": "100", "expected_output_tokens": "0", "cache_ttl_s": "86400.1"}, RequestHints()),
    ({"priority": "-1", "expected_output_tokens": "1e99", "cache_ttl_s": "0"}, RequestHints()),
    ({"priority": "nan", "expected_output_tokens": "inf", "cache_ttl_s": "-inf"}, RequestHints()),
    ({"priority": "9" * 400, "expected_output_tokens": "x", "cache_ttl_s": ""}, RequestHints()),
    ({"priority": 7, "expected_output_tokens": None, "cache_ttl_s": ["5"]}, RequestHints()),
])
def test_hints_come_as_texts_and_what_does_not_fit_is_not_given(metadata, expected):
    assert RequestHints.from_metadata(metadata) == expected


@given(st.dictionaries(st.sampled_from(HINT_FIELDS), st.text(max_size=40) | st.floats().map(str) | st.integers()))
def test_no_text_is_an_error(metadata):
    hints = RequestHints.from_metadata(metadata)
    assert 0 <= hints.priority <= 99 and (hints.cache_ttl_s is None or 0 < hints.cache_ttl_s <= 86400)


def test_a_sub_agent_belongs_to_the_program_of_its_parent():
    table = AgentTable(TokenCakeConfig())
    table.see(0.0, who("lead", app_id="run-7"))
    table.see(1.0, who("sub", "lead", program_id="lead"))
    table.see(2.0, who("sub of sub", "sub", program_id="sub"))
    table.see(3.0, who("other"))
    assert [agent.program for agent in table] == ["run-7", "run-7", "run-7", "other"]
    assert {program: list(agents) for program, agents in table.programs.items()} == {
        "run-7": ["lead", "sub", "sub of sub"], "other": ["other"]}


def test_an_agent_stays_in_its_program_and_the_program_goes_with_its_last_agent():
    table = AgentTable(TokenCakeConfig())
    table.see(0.0, who("a", app_id="one"))
    table.see(1.0, who("a", app_id="two"))
    assert table.get("a").program == "one"
    table.remove("a", ended=True)
    assert table.programs == {} and table.see(2.0, who("a", app_id="two")).program == "two"


def test_the_end_of_a_program_ends_its_agents_but_for_those_that_are_being_served():
    server = Server()
    for key, parent in (("lead", None), ("sub", "lead"), ("busy", "lead"), ("other", None)):
        server.requests += 1
        server.mechanism.live.add(f"r{server.requests}")
        server.controller.request_added(who(key, parent), f"r{server.requests}")
        if key != "busy":
            server.controller.request_ended(key, f"r{server.requests}")
    server.stall("sub")
    assert server.send("program_finished", "lead") == "applied"
    assert [agent.key for agent in server.controller.agents] == ["busy", "other"]
    assert server.counters["agents_ended"] == 2 and server.mechanism.forgotten == ["lead", "sub"]
    assert server.send("program_finished", "lead") == "duplicate" and server.stalls_add_up()


def test_the_time_that_a_client_gives_counts_from_the_end_of_its_last_request():
    server = Server(offload_policy="cost")
    server.at(100.0)
    server.controller.request_added(who("a"), "r1", hints=RequestHints(cache_ttl_s=50.0))
    server.at(120.0)
    assert server.agent().used_until is None
    server.controller.request_ended("a", "r1")
    assert server.agent().used_until == 170.0
    server.at(140.0)
    assert server.mechanism.expected["a"] == pytest.approx(155.0)
    server.at(170.0)
    assert server.mechanism.expected["a"] is None and server.controller.next_wake is None
    server.controller.request_added(who("a"), "r2")
    server.controller.request_ended("a", "r2")
    assert server.agent().used_until is None


def test_an_agent_that_is_expected_is_not_forgotten_before():
    server = Server(offload_policy="cost", agent_idle_s=60.0)
    server.controller.request_added(who("a"), "r1", hints=RequestHints(cache_ttl_s=1000.0))
    server.controller.request_ended("a", "r1")
    server.at(999.0)
    assert server.agent() is not None
    server.at(1000.0)
    assert server.agent() is None
