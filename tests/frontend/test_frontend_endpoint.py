"""The endpoint: identity on every request, ends of agents, and servers that know nothing of TokenCake."""

from __future__ import annotations

import logging

import pytest
import sglang as sgl

import tokencake_sglang as tc

LOGGER = "tokencake_sglang.frontend.events"


def said_of(peer, caplog):
    """The log lines about this peer (programs of an earlier test may still be reporting their ends)."""
    return [record.getMessage() for record in caplog.records if peer.url in record.getMessage()]


def test_every_kind_of_request_of_a_state_carries_the_states_identity(peer, endpoint):
    @tc.agent
    def prog(s):
        s += "x" + sgl.gen("g")
        s += sgl.select("pick", ["left", "right"])
        s.sync()  # fork() commits the text only if there is some already
        forks = s.fork(2)
        forks += sgl.gen("h")
        forks.join()

    prog.run(backend=endpoint).sync()
    identities = [body["tokencake"]["agent_id"] for body in peer.generates]
    parent = identities[0]
    # gen, the two requests of select, the commit before the fork; then one per fork
    assert identities[:4] == [parent] * 4
    assert sorted(identities[4:]) == [f"{parent}.0", f"{parent}.1"]


def test_two_runs_are_two_agents_and_each_end_is_reported_once(peer, endpoint, eventually):
    @tc.agent
    def prog(s):
        s += "x" + sgl.gen("g")

    for _ in range(2):
        prog.run(backend=endpoint).sync()
    ids = {body["tokencake"]["agent_id"] for body in peer.generates}
    assert len(ids) == 2
    eventually(lambda: len(peer.events) >= 2)
    assert sorted((event["event"], event["agent_id"]) for event in peer.events) == sorted(
        ("agent_finished", agent_id) for agent_id in ids
    )


def test_an_agent_that_raises_is_reported_as_ended_with_the_forks_that_it_left_open(peer, endpoint, eventually):
    @tc.agent
    def prog(s):
        s += "x" + sgl.gen("g")
        forks = s.fork(2)
        forks += sgl.gen("h")
        for fork in forks.states:
            fork["h"]
        inner = forks[0].fork(2)
        inner += [" left", " open"]
        raise LookupError("the program itself is wrong")

    with pytest.raises(LookupError) as caught:
        prog.run(backend=endpoint)
    eventually(lambda: len(peer.events) == 5)
    assert {event["event"] for event in peer.events} == {"agent_finished"}
    assert len({event["agent_id"] for event in peer.events}) == 5
    assert caught.traceback  # the frames, and with them the forks, were alive all the time


def test_a_plain_function_runs_unchanged_as_an_agent_of_type_function_with_no_end_reported(peer, endpoint):
    @sgl.function
    def prog(s):
        s += "x" + sgl.gen("g")
        forks = s.fork(2)
        forks += sgl.gen("h") + tc.call(lambda: "hit", name="hit")
        forks.join()

    with tc.app("plain"):
        state = prog.run(backend=endpoint)
    assert state["hit"] == ["hit", "hit"]
    identities = [body["tokencake"] for body in peer.generates]
    assert {identity["agent_type"] for identity in identities} == {"function"}
    assert {identity["app_id"] for identity in identities} == {"plain"}
    assert len({identity["agent_id"] for identity in identities}) == 3
    assert {event["event"] for event in peer.events} == {"stall_started", "stall_finished"}


def test_a_bound_agent_is_still_an_agent(peer, endpoint):
    @tc.agent(type="writer")
    def prog(s, topic, style):
        s += f"{topic} {style}" + sgl.gen("g")

    with pytest.raises(TypeError, match=r"\['colour'\].*\['topic', 'style'\]"):
        prog.bind(colour="red")
    prog.bind(style="plain").run(topic="cake", backend=endpoint).sync()
    assert peer.generates[0]["text"] == "cake plain"
    assert peer.generates[0]["tokencake"]["agent_type"] == "writer"


@pytest.mark.parametrize("tokencake", ["absent", "disabled"])
def test_a_server_without_tokencake_is_noticed_once_and_programs_run_on_unchanged(make_peer, caplog, tokencake):
    peer = make_peer(tokencake=tokencake)
    endpoint = tc.Endpoint(peer.url)

    @tc.agent
    def prog(s):
        s += "x" + sgl.gen("g") + tc.call(lambda: "hit", name="hit") + sgl.gen("h")
        return s["hit"] + s["h"]

    with caplog.at_level(logging.WARNING, logger=LOGGER):
        results = [prog.run(backend=endpoint).ret_value for _ in range(3)]
    assert all(result.startswith("hitword") for result in results)
    assert len(peer.events) == 1
    assert len([line for line in said_of(peer, caplog) if "without TokenCake" in line]) == 1
    assert ["tokencake" in body for body in peer.generates] == [True] + [False] * 5
    assert endpoint.state() is None


def test_an_agent_that_the_server_does_not_know_yet_is_no_reason_to_warn_or_stop(peer, endpoint, caplog):
    @tc.agent
    def prog(s):
        s += tc.call(lambda: "hit", name="one") + "x" + sgl.gen("g") + tc.call(lambda: "hit", name="two")

    with caplog.at_level(logging.WARNING, logger=LOGGER):
        prog.run(backend=endpoint).sync()
    # The first stall was refused, so its finish is not sent.
    assert [event["event"] for event in peer.events][:3] == ["stall_started", "stall_started", "stall_finished"]
    assert said_of(peer, caplog) == []


def test_events_to_a_server_that_has_gone_away_break_nothing_and_are_said_once(make_peer, caplog):
    peer = make_peer()
    endpoint = tc.Endpoint(peer.url)
    peer.close()
    with caplog.at_level(logging.WARNING, logger=LOGGER):
        assert endpoint.stall_started("a") is None
        assert endpoint.stall_finished("a") is None
    assert len([line for line in said_of(peer, caplog) if "did not reach" in line]) == 1


def test_the_key_goes_with_events_and_state_and_answers_come_back(peer):
    endpoint = tc.Endpoint(peer.url + "/", api_key="secret")
    assert endpoint.stall_started("nobody")["error"]["reason"] == "unknown_agent"
    endpoint.generate(_state_of(endpoint, "a1"), sgl.lang.ir.SglSamplingParams())
    assert endpoint.stall_started("a1", kind="search", estimated_duration_s=2.0, call_id="c")["status"] == "applied"
    assert endpoint.stall_finished("a1", call_id="c", outcome="error")["status"] == "applied"
    assert endpoint.agent_finished("a1")["status"] == "applied"
    assert endpoint.state(agents=3)["agents"] == ["a1"]
    assert peer.requests[-1][0] == "/v1/tokencake/state?agents=3"
    assert {headers["Authorization"] for headers in peer.headers} == {"Bearer secret"}


def _state_of(endpoint, agent_id):
    from sglang.lang.interpreter import StreamExecutor

    from tokencake_sglang.frontend.identity import AgentContext

    executor = StreamExecutor(endpoint, {}, None, None, False, use_thread=False)
    executor.agent_context = AgentContext("t", agent_id=agent_id)
    return executor


def test_an_app_id_that_the_server_would_refuse_is_refused_by_the_endpoint(peer):
    with pytest.raises(ValueError, match="app_id"):
        tc.Endpoint(peer.url, app_id="")
