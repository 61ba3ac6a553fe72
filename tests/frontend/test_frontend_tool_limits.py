"""What a tool may say of itself beyond its duration: how far that spreads, when to give up, how a call went."""

from __future__ import annotations

import asyncio
import threading

import pytest
import sglang as sgl

import tokencake_sglang as tc


@pytest.mark.parametrize(("options", "expected", "p90"), [
    ({"hint": (0.3, 14)}, 0.3, 14.0),
    ({"hint": (0.3, 14), "predict_time": 2}, 2.0, 14.0),
    ({"hint": "steady", "predict_time": 2}, 2.0, 2.4),
    ({"hint": "varying", "stages": [tc.Stage("a", 1), tc.Stage("b", 2)]}, 3.0, 9.0),
    ({"hint": "long_tailed", "predict_time": 80000}, 80000.0, 86400.0),
    ({"predict_time": 2}, 2.0, None),
    ({}, None, None),
])
def test_a_hint_gives_what_nine_of_ten_calls_stay_below(options, expected, p90):
    tool = tc.tool(lambda: None, name="t", **options)
    assert tool.predict_time == expected and tool.p90 == pytest.approx(p90)


@pytest.mark.parametrize("options", [
    {"hint": "odd", "predict_time": 1}, {"hint": "steady"}, {"hint": (1,)}, {"hint": (2, 1)}, {"hint": (1, "x")},
    {"hint": (1, float("inf"))}, {"hint": 3}, {"hint": (0.3, 14), "predict_time": 15},
    {"timeout": 0}, {"timeout": -1}, {"timeout": True}, {"timeout": "1"}, {"timeout": float("nan")},
])
def test_a_hint_or_timeout_that_means_nothing_is_refused_where_it_is_written(options):
    with pytest.raises(ValueError, match=r"(hint|timeout) of tool 't': .*"):
        tc.tool(lambda: None, name="t", **options)


def test_the_hint_travels_with_the_stall(peer, endpoint):
    @tc.agent
    def prog(s):
        s += "x" + sgl.gen("g") + tc.call(tc.tool(lambda: None, name="t", hint=(0.5, 9)))

    prog.run(backend=endpoint).sync()
    assert (peer.events[0]["estimated_duration_s"], peer.events[0]["estimated_p90_s"]) == (0.5, 9.0)


@pytest.mark.parametrize("kind", ["function", "coroutine"])
def test_a_tool_that_does_not_return_in_time_is_given_up_and_said_to_be_cancelled(peer, endpoint, kind):
    release, cancelled = threading.Event(), []

    async def wait():
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    slow = tc.tool(wait if kind == "coroutine" else lambda: release.wait(30), name="slow", timeout=0.1)

    @tc.agent
    def prog(s):
        s += "x" + sgl.gen("g") + tc.call(slow, name="out") + sgl.gen("after")
        with pytest.raises(tc.ToolError, match="'slow' failed: ToolTimeout: it did not return within its timeout"):
            s["out"]
        return s["after"]

    state = prog.run(backend=endpoint)
    assert state.ret_value.startswith("word") and state.error() is None
    assert state.get_meta_info("out")["outcome"] == "cancelled"
    assert [event.get("outcome") for event in peer.events[:2]] == [None, "cancelled"]
    assert not cancelled or kind == "coroutine"
    release.set()


def test_a_tool_that_is_in_time_gives_its_result_or_its_own_error(endpoint):
    def own():
        raise TimeoutError("of the network")

    @tc.agent
    def prog(s):
        s += "x" + tc.call(tc.tool(lambda: 7, name="seven", timeout=30), name="seven")
        s += tc.call(tc.tool(own, name="own", timeout=30), name="own")
        assert s["seven"] == 7
        with pytest.raises(tc.ToolError, match="TimeoutError: of the network") as caught:
            s["own"]
        assert not isinstance(caught.value.cause, tc.ToolTimeout)

    assert prog.run(backend=endpoint).get_meta_info("own")["outcome"] == "error"


def test_a_result_may_say_itself_how_the_call_went(peer, endpoint):
    tests = tc.tool(lambda code: code, name="tests", outcome=lambda code: "ok" if code == 0 else "error")

    @tc.agent
    def prog(s):
        s += "x" + sgl.gen("g") + tc.call(tests, {"code": 0}, name="good") + tc.call(tests, {"code": 1}, name="bad")
        return s["good"], s["bad"]

    state = prog.run(backend=endpoint)
    assert state.ret_value == (0, 1)
    state.sync()
    assert [event["outcome"] for event in peer.events if event["event"] == "stall_finished"] == ["ok", "error"]
    info = state.get_meta_info("bad")
    assert (info["tool"], info["outcome"]) == ("tests", "error") and info["seconds"] >= 0


def test_an_outcome_that_does_not_exist_is_a_tool_error(endpoint):
    @tc.agent
    def prog(s):
        s += "x" + sgl.gen("g") + tc.call(tc.tool(lambda: 1, name="t", outcome=str), name="out")

    with pytest.raises(tc.ToolError, match="outcome of tool 't': found '1'; allowed: ok, error, cancelled"):
        prog.run(backend=endpoint)["out"]
    with pytest.raises(TypeError, match="outcome of tool"):
        tc.tool(lambda: 1, name="t", outcome="ok")
