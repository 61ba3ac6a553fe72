"""AgentTable: who is known, under which names, and who is forgotten when."""

from __future__ import annotations

import pytest

from tokencake_sglang.core.agents import ENDED_KEPT, LIFECYCLES_KEPT, AgentTable
from tokencake_sglang.core.config import TokenCakeConfig
from tokencake_sglang.core.types import AgentIdentity


def table(**settings) -> AgentTable:
    return AgentTable(TokenCakeConfig(**settings))


def identity(agent_id=None, lifecycle_id=None, **more) -> AgentIdentity:
    return AgentIdentity(agent_id=agent_id, lifecycle_id=lifecycle_id, **more)


# -- identity ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("metadata", "key"),
    [({"agent_id": "a", "lifecycle_id": "l"}, "a"), ({"agent_id": "a"}, "a"), ({"lifecycle_id": "l"}, "l")])
def test_the_key_of_an_agent_is_its_agent_id_and_else_its_lifecycle_id(metadata, key):
    assert AgentIdentity.from_metadata(metadata).key == key


@pytest.mark.parametrize(
    "metadata", [None, {}, {"app_id": "x"}, {"agent_id": ""}, {"agent_id": 7}, {"agent_id": None}])
def test_metadata_that_names_no_agent_gives_no_identity(metadata):
    assert AgentIdentity.from_metadata(metadata) is None


def test_unknown_metadata_fields_are_ignored():
    assert AgentIdentity.from_metadata({"agent_id": "a", "colour": "red"}) == AgentIdentity(agent_id="a")


# -- names ------------------------------------------------------------------------------------------------------


def test_an_agent_is_found_by_its_id_and_by_each_of_its_lifecycle_ids():
    agents = table()
    agent = agents.see(1.0, identity("a", "l1"))
    assert agents.see(2.0, identity("a", "l2")) is agent
    assert agents.find("a", None) is agents.find(None, "l1") is agents.find(None, "l2") is agent


def test_an_agent_without_an_agent_id_is_found_by_its_lifecycle_id():
    agents = table()
    agent = agents.see(1.0, identity(None, "l1"))
    assert agents.find(None, "l1") is agents.find("l1", None) is agent


def test_an_agent_id_wins_over_a_lifecycle_id_of_somebody_else():
    agents = table()
    agents.see(1.0, identity("a", "l1"))
    other = agents.see(1.0, identity("b", "l2"))
    assert agents.find("b", "l1") is other


@pytest.mark.parametrize("names", [("x", None), (None, "x"), (None, None)])
def test_a_name_that_no_request_brought_is_not_found(names):
    agents = table()
    agents.see(1.0, identity("a", "l1"))
    assert agents.find(*names) is None


def test_the_newest_identity_of_an_agent_counts():
    agents = table()
    agents.see(1.0, identity("a", agent_type="planner"))
    assert agents.see(2.0, identity("a", agent_type="writer")).identity.agent_type == "writer"


def test_a_lifecycle_id_used_again_belongs_to_the_agent_that_used_it_last():
    agents = table()
    agents.see(1.0, identity("a", "l1"))
    second = agents.see(2.0, identity("b", "l1"))
    agents.remove("a", ended=True)
    assert agents.find(None, "l1") is second


def test_only_the_last_lifecycle_ids_of_an_agent_are_remembered():
    agents = table()
    for i in range(3 * LIFECYCLES_KEPT):
        agents.see(1.0, identity("a", f"l{i}"))
    assert len(agents.get("a").lifecycles) == len(agents.by_lifecycle) == LIFECYCLES_KEPT
    assert agents.find(None, "l0") is None
    assert agents.find(None, f"l{3 * LIFECYCLES_KEPT - 1}") is agents.get("a")


# -- ended agents -----------------------------------------------------------------------------------------------


def test_an_ended_agent_is_known_as_ended_by_all_its_names():
    agents = table()
    agents.see(1.0, identity("a", "l1"))
    agents.remove("a", ended=True)
    assert agents.find("a", None) is None and not agents.by_lifecycle
    assert agents.has_ended("a", None) and agents.has_ended(None, "l1")


def test_a_forgotten_agent_is_not_known_as_ended():
    agents = table()
    agents.see(1.0, identity("a", "l1"))
    agents.remove("a", ended=False)
    assert not agents.has_ended("a", None) and not agents.has_ended(None, "l1")


def test_a_request_of_an_ended_agent_makes_it_known_again():
    agents = table()
    first = agents.see(1.0, identity("a", "l1"))
    agents.remove("a", ended=True)
    second = agents.see(2.0, identity("a", "l1"))
    assert second is not first and second.requests == 0
    assert not agents.has_ended("a", None) and not agents.has_ended(None, "l1")


def test_removing_an_agent_that_is_not_there_does_nothing():
    agents = table()
    assert agents.remove("a", ended=True) is None
    assert not agents.has_ended("a", None)


def test_only_so_many_ended_agents_are_remembered():
    agents = table()
    for i in range(ENDED_KEPT + 10):
        agents.see(1.0, identity(f"a{i}"))
        agents.remove(f"a{i}", ended=True)
    assert len(agents.ended) == ENDED_KEPT
    assert not agents.has_ended("a0", None) and agents.has_ended(f"a{ENDED_KEPT + 9}", None)


# -- who is stale -----------------------------------------------------------------------------------------------


def test_an_agent_is_stale_after_the_idle_time_and_not_before():
    agents = table(agent_idle_s=10.0)
    agent = agents.see(100.0, identity("a"))
    assert agents.stale(109.9) is None
    assert agents.stale(110.0) is agent


def test_an_agent_seen_again_starts_its_idle_time_anew():
    agents = table(agent_idle_s=10.0)
    agents.see(100.0, identity("a"))
    agents.see(105.0, identity("a"))
    assert agents.stale(114.9) is None
    assert agents.stale(115.0) is not None


def test_an_agent_in_a_long_stall_is_not_stale_until_the_idle_time_after_its_predicted_end():
    agents = table(agent_idle_s=10.0)
    agents.see(100.0, identity("a")).calls.start(100.0, "c1", "tool", 50.0)
    assert agents.stale(159.9) is None
    assert agents.stale(160.0) is agents.get("a")


def test_an_agent_whose_kv_is_on_its_way_is_not_stale():
    agents = table(agent_idle_s=10.0)
    agents.see(100.0, identity("a")).move = "offload"
    assert agents.stale(1000.0) is None
    agents.get("a").move = None
    assert agents.stale(1000.0) is agents.get("a")


def test_an_agent_that_may_stay_does_not_hide_a_stale_one_behind_it():
    agents = table(agent_idle_s=10.0)
    agents.see(100.0, identity("stalled")).calls.start(100.0, "c1", "tool", 500.0)
    agents.see(101.0, identity("idle"))
    found = [agents.stale(200.0) for _ in range(2)]
    assert found == [None, agents.get("idle")]


def test_beyond_the_limit_the_agent_seen_least_recently_is_stale():
    agents = table(max_agents=2)
    for i, name in enumerate("abc"):
        agents.see(float(i), identity(name))
    agents.see(3.0, identity("a"))
    assert agents.stale(3.0) is agents.get("b")


def test_an_empty_table_has_no_stale_agent():
    assert table().stale(1e9) is None


def test_an_agent_is_active_with_a_request_stalled_with_a_call_and_else_idle():
    agents = table()
    agent = agents.see(1.0, identity("a"))
    assert agent.state == "idle"
    agent.calls.start(1.0, "c1", "tool", 1.0)
    assert agent.state == "stalled"
    agent.rids["r1"] = None
    assert agent.state == "active"
