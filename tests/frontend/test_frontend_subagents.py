"""Agents inside agents: who they are, where they run, what callers wait for, and what crosses to their threads."""

from __future__ import annotations

import asyncio
import contextvars

import pytest
import sglang as sgl

import tokencake_sglang as tc

REQUEST_ID = contextvars.ContextVar("request_id", default="none")


@tc.agent(type="helper")
def helper(s, topic):
    s += topic + sgl.gen("h")
    s["h"]
    return topic.upper()


def identities(peer):
    return {body["text"]: body["tokencake"] for body in peer.generates if "tokencake" in body}


def test_an_agent_run_inside_an_agent_has_its_own_id_below_its_parents_and_the_same_app(peer, endpoint, eventually):
    @tc.agent(type="boss")
    def boss(s):
        s += "boss" + sgl.gen("g")
        s.sync()
        return helper.run(topic="sub").ret_value

    with tc.app("together"):
        assert boss.run(backend=endpoint).ret_value == "SUB"
    known = identities(peer)
    assert known["sub"]["agent_id"].startswith(known["boss"]["agent_id"] + "/helper-")
    assert known["sub"]["parent_agent_id"] == known["boss"]["agent_id"] and "parent_agent_id" not in known["boss"]
    assert known["sub"]["agent_type"] == "helper" and known["sub"]["app_id"] == known["boss"]["app_id"] == "together"
    eventually(lambda: sorted(e["agent_id"] for e in peer.events if e["event"] == "agent_finished")
               == sorted(identity["agent_id"] for identity in known.values()))


@pytest.mark.parametrize("how", ["run_batch", "map", "arun", "stream"])
def test_sub_agents_are_known_on_every_route_by_which_an_agent_runs(peer, endpoint, how):
    @tc.agent(type="boss")
    def boss(s, number):
        s += f"boss{number}" + sgl.gen("g")
        s["g"]
        return helper.map([f"sub{number}a", f"sub{number}b"])

    with tc.app("together"):
        if how == "run_batch":
            states = boss.run_batch([{"number": 0}, {"number": 1}], backend=endpoint)
            assert [state.ret_value for state in states] == [["SUB0A", "SUB0B"], ["SUB1A", "SUB1B"]]
        elif how == "map":
            assert boss.map([0, 1], backend=endpoint) == [["SUB0A", "SUB0B"], ["SUB1A", "SUB1B"]]
        elif how == "arun":
            assert asyncio.run(boss.arun(0, backend=endpoint)).ret_value == ["SUB0A", "SUB0B"]
        else:
            assert "".join(boss.run(0, backend=endpoint, stream=True).text_iter()).startswith("boss0word")
    known = identities(peer)
    for text, identity in known.items():
        assert identity["app_id"] == "together"
        if text.startswith("sub"):
            assert identity["agent_id"].startswith(known[f"boss{text[3]}"]["agent_id"] + "/")


def test_without_an_app_sub_agents_and_forks_belong_to_the_program_of_the_first_agent(peer):
    @tc.agent(type="boss")
    def boss(s):
        s += "boss" + sgl.gen("g")
        s.sync()
        forks = s.fork(2)
        forks += sgl.gen("fork")
        forks.join()
        helper.run(topic="sub")

    boss.run(backend=tc.Endpoint(peer.url)).sync()
    root = identities(peer)["boss"]["agent_id"]
    bodies = [body["tokencake"] for body in peer.generates]
    assert {body["agent_id"]: body.get("app_id") for body in bodies if body["agent_id"] == root} == {root: None}
    assert {body.get("app_id") for body in bodies if body["agent_id"] != root} == {root}
    assert len({body["agent_id"] for body in bodies}) == 4


def test_an_agent_as_a_tool_is_a_stall_of_its_caller_and_its_result_a_variable(peer, endpoint, eventually):
    @tc.agent(type="boss")
    def boss(s):
        s += "boss" + sgl.gen("g")
        s += tc.call(helper, lambda view: {"topic": f"about {view['g']}"}, name="found")
        s += s["found"]
        return s["found"]

    state = boss.run(backend=endpoint)
    assert state.ret_value == f"ABOUT {state['g']}".upper()
    eventually(lambda: [event["event"] for event in peer.events].count("agent_finished") == 2)
    order = [body.get("event") or body["tokencake"]["agent_type"] for path, body in peer.requests if body]
    assert order[:3] == ["boss", "stall_started", "helper"]
    assert sorted(order[3:]) == ["agent_finished", "agent_finished", "stall_finished"]
    started, sub = peer.events[0], peer.generates[1]["tokencake"]
    assert started["kind"] == "helper" and sub["agent_id"].startswith(started["agent_id"] + "/")
    assert state.get_meta_info("found")["outcome"] == "ok"


def test_the_error_of_an_agent_that_is_a_tool_reaches_the_reader(peer, endpoint):
    @tc.agent
    def broken(s):
        s += tc.call(lambda: 1 / 0, name="out")

    @tc.agent
    def boss(s):
        s += "boss" + sgl.gen("g") + tc.call(broken, name="found")
        return s["found"]

    with pytest.raises(tc.ToolError, match="'broken' failed: ToolError: tool '<lambda>' failed: ZeroDivisionError"):
        boss.run(backend=endpoint)


def test_an_agent_run_while_its_caller_is_only_traced_does_not_run(peer, endpoint):
    @tc.agent
    def boss(s, number):
        s += "The same long beginning of every program in the batch. " * 3
        helper.run(topic="sub")
        s += sgl.gen("g")

    boss.run_batch([{"number": 0}, {"number": 1}], backend=endpoint)
    assert [body["text"] for body in peer.generates if "tokencake" in body].count("sub") == 2
    with pytest.raises(TypeError, match="agent 'helper' was run while the program.*call\\(agent, args\\)"):
        boss.trace(backend=endpoint)


def test_map_gives_results_in_order_for_dicts_and_for_values_of_the_free_argument(endpoint):
    @tc.agent
    def pair(s, left, right):
        s += "x" + sgl.gen("g")
        return left + right

    assert pair.map([{"left": "a", "right": "b"}], backend=endpoint) == ["ab"]
    assert pair.bind(left="l").map(["1", "2"], backend=endpoint) == ["l1", "l2"]
    assert pair.map([], backend=endpoint) == []
    with pytest.raises(TypeError, match="no argument left"):
        pair.bind(left="a", right="b").map([1], backend=endpoint)


def test_map_raises_the_first_error_after_all_have_ended(peer, endpoint, eventually):
    @tc.agent
    def prog(s, number):
        s += f"x{number}" + sgl.gen("g") + tc.call(lambda: 1 / (number - 1), name="out")

    with pytest.raises(tc.ToolError, match="ZeroDivisionError"):
        prog.map([0, 1, 2], backend=endpoint)
    ids = {body["tokencake"]["agent_id"] for body in peer.generates if "tokencake" in body}
    assert len(ids) == 3
    eventually(lambda: {e["agent_id"] for e in peer.events if e["event"] == "agent_finished"} == ids)


@pytest.mark.parametrize("how", ["run", "run_batch", "stream", "arun"])
def test_programs_tools_and_forks_see_the_contextvars_of_the_caller(endpoint, eventually, how):
    seen = []

    @tc.agent
    def prog(s, number):
        seen.append(("program", REQUEST_ID.get()))
        s += "x" + tc.call(lambda: seen.append(("tool", REQUEST_ID.get())), name="a")
        forks = s.fork(2)
        forks += tc.call(lambda: seen.append(("fork", REQUEST_ID.get())), name="b")
        forks.join()
        helped = tc.tool(lambda: seen.append(("aside", REQUEST_ID.get())), name="t", timeout=30)
        s += tc.call(helped, name="c")
        s["c"]

    REQUEST_ID.set("seven")
    if how == "run":
        prog.run(0, backend=endpoint)
    elif how == "stream":
        list(prog.run(0, backend=endpoint, stream=True).text_iter())
    elif how == "arun":
        asyncio.run(prog.arun(0, backend=endpoint))
    else:
        prog.run_batch([{"number": 0}, {"number": 1}], backend=endpoint)
    runs = 2 if how == "run_batch" else 1
    eventually(lambda: len(seen) >= 5 * runs)
    places = ["program", "tool", "fork", "fork", "aside"] * runs
    # the prefix trace of a batch runs the program's first lines once more
    assert sorted(seen)[:len(seen)] == sorted([(place, "seven") for place in places + ["program"] * (runs - 1)])


def test_what_a_program_sets_in_its_context_stays_in_it(endpoint):
    @tc.agent
    def prog(s):
        with tc.app("inner"):
            s += "x" + sgl.gen("g")
            s["g"]
        return tc.app

    with tc.app("outer"):
        prog.run(backend=endpoint)
        assert tc.frontend.identity.current_app() == "outer"
        assert tc.frontend.identity.current_agent() is None
