"""Tool calls inside programs, against a peer that speaks the servers' protocol."""

from __future__ import annotations

import threading
import time

import pytest
import sglang as sgl

import tokencake_sglang as tc


def answers(results):
    """The messages of the results, for a readable assertion."""
    return [str(result) for result in results]


def test_a_call_runs_between_the_generations_around_it_on_the_worker_thread(peer, endpoint):
    threads = []

    @tc.tool
    def look():
        threads.append(threading.current_thread())
        return "seen"

    @tc.agent
    def prog(s):
        s += "a" + sgl.gen("before") + tc.call(look, name="out") + sgl.gen("after")

    state = prog.run(backend=endpoint)
    assert state["out"] == "seen"
    state.sync()
    order = [body.get("event", "generate") for path, body in peer.requests if path != "/get_model_info"]
    assert order[:4] == ["generate", "stall_started", "stall_finished", "generate"]
    assert threads[0] is not threading.current_thread()
    assert peer.generates[1]["text"] == "a" + state["before"]


def test_both_events_name_the_agent_of_the_request_the_call_and_the_tools_estimate(peer, endpoint):
    search = tc.tool(lambda query: [query], name="search", stages=[tc.Stage("a", 0.5), tc.Stage("b", 1.5)])

    @tc.agent(type="searcher", name="node-1")
    def prog(s):
        s += "q" + sgl.gen("query")
        s += tc.call(search, lambda view: {"query": view["query"]}, name="hits")

    state = prog.run(backend=endpoint)
    assert state["hits"] == [state["query"]]
    state.sync()
    started, finished = peer.events[:2]
    identity = peer.generates[0]["tokencake"]
    assert identity["agent_id"].startswith("searcher-")
    assert identity == {
        "app_id": "tests",
        "node_id": "node-1",
        "agent_type": "searcher",
        "agent_id": identity["agent_id"],
    }
    assert started == {
        "event": "stall_started",
        "agent_id": identity["agent_id"],
        "kind": "search",
        "estimated_duration_s": 2.0,
        "call_id": started["call_id"],
        "stages": [{"name": "a", "estimated_s": 0.5}, {"name": "b", "estimated_s": 1.5}],
    }
    assert finished == {
        "event": "stall_finished",
        "agent_id": identity["agent_id"],
        "call_id": started["call_id"],
        "outcome": "ok",
    }


def test_two_calls_of_one_node_have_different_call_ids_and_an_unknown_estimate_is_left_out(peer, endpoint):
    ping = tc.call(tc.tool(lambda: "pong", name="ping"))

    @tc.agent
    def prog(s):
        s += "x" + sgl.gen("g") + ping + ping

    prog.run(backend=endpoint).sync()
    starts = [event for event in peer.events if event["event"] == "stall_started"]
    assert len({event["call_id"] for event in starts}) == 2
    assert all("estimated_duration_s" not in event for event in starts)


def test_the_caller_goes_on_while_its_tool_runs(endpoint):
    release = threading.Event()
    wait = tc.tool(lambda: release.wait(30), name="wait")
    reached = []

    @tc.agent
    def prog(s):
        s += "x" + sgl.gen("g") + tc.call(wait, name="done")
        reached.append(True)
        release.set()
        assert s["done"] is True

    prog.run(backend=endpoint)
    assert reached == [True]


def test_a_coroutine_function_is_a_tool_too(endpoint):
    @tc.tool
    async def later(number):
        return number + 1

    @tc.agent
    def prog(s):
        s += "x" + tc.call(later, {"number": 1})

    assert prog.run(backend=endpoint)["result"] == 2


def test_a_raised_tool_error_reaches_the_reader_as_tool_error_with_tool_and_cause(peer, endpoint):
    @tc.tool(name="crash")
    def crash():
        raise ValueError("disk on fire")

    @tc.agent
    def prog(s):
        s += "x" + sgl.gen("g") + tc.call(crash, name="out")
        return s["out"]

    with pytest.raises(tc.ToolError, match="tool 'crash' failed: ValueError: disk on fire") as caught:
        prog.run(backend=endpoint)
    assert caught.value.tool == "crash"
    assert isinstance(caught.value.cause, ValueError)
    assert [event.get("outcome") for event in peer.events[:2]] == [None, "error"]


def test_a_program_may_catch_a_tool_error_and_go_on_generating_with_no_error_left(endpoint):
    crash = tc.tool(lambda: 1 / 0, name="crash")

    @tc.agent
    def prog(s):
        s += "x" + tc.call(crash, name="out")
        try:
            s += str(s["out"])
        except tc.ToolError:
            s += " sorry " + sgl.gen("instead")

    state = prog.run(backend=endpoint)
    assert state["instead"].startswith("word")
    assert " sorry " in state.text()
    assert state.error() is None


def test_a_tool_error_that_nobody_read_is_the_error_of_the_ended_program(endpoint):
    crash = tc.tool(lambda: 1 / 0, name="crash")

    @tc.agent
    def prog(s):
        s += "x" + tc.call(crash, name="one") + tc.call(crash, name="two") + sgl.gen("after")

    state = prog.run(backend=endpoint)
    assert isinstance(state.error(), tc.ToolError)
    assert state["after"].startswith("word")
    for name in ("one", "two"):
        assert isinstance(state.error(), tc.ToolError)
        with pytest.raises(tc.ToolError):
            state[name]
    assert state.error() is None


@pytest.mark.parametrize("broken", [SystemExit, KeyboardInterrupt])
def test_a_tool_that_tries_to_end_the_process_is_a_tool_error_and_not_a_hang(endpoint, broken):
    def leave():
        raise broken()

    @tc.agent
    def prog(s):
        s += "x" + tc.call(leave, name="out") + sgl.gen("after")

    state = prog.run(backend=endpoint)
    with pytest.raises(tc.ToolError, match=broken.__name__):
        state["out"]
    assert state["after"].startswith("word")


@pytest.mark.parametrize(
    "args",
    [{"wrong": 1}, lambda s: {"number": s["not there"]}, lambda s: 7, lambda s: {"number": s["failed"]}],
    ids=["wrong argument", "missing variable", "not a dict", "failed variable"],
)
def test_arguments_that_do_not_fit_are_a_tool_error_too(endpoint, args):
    def need(number):
        return number

    @tc.agent
    def prog(s):
        s += "x" + tc.call(lambda: 1 / 0, name="failed") + tc.call(need, args, name="out")

    state = prog.run(backend=endpoint)
    with pytest.raises(tc.ToolError, match="tool 'need' failed"):
        state["out"]


@pytest.mark.parametrize(("args", "name"), [(7, "n"), ("text", "n"), ({}, ""), ({}, None)])
def test_a_call_that_could_never_work_is_refused_where_it_is_written(args, name):
    with pytest.raises(TypeError, match="allowed"):
        tc.call(lambda: 0, args, name=name)


def test_arguments_may_look_at_text_and_messages_of_their_turn(endpoint):
    seen = {}

    def note(**kwargs):
        seen.update(kwargs)

    @tc.agent
    def prog(s):
        s += sgl.user("hello")
        s += sgl.assistant(sgl.gen("reply"))
        s += tc.call(note, lambda v: {"text": v.text(), "last": v.messages()[-1], "has": "reply" in v})
        s += "unseen"

    state = prog.run(backend=endpoint)
    state.sync()
    assert seen["has"] is True
    assert seen["last"] == {"role": "assistant", "content": state["reply"]}
    assert "hello" in seen["text"]
    assert "unseen" not in seen["text"]


def test_forks_run_their_tools_at_the_same_time_each_under_its_own_id(peer, endpoint, eventually):
    meeting = threading.Barrier(3)

    @tc.tool
    def meet(seat):
        meeting.wait(timeout=30)  # passes only when all three are here at once
        return seat

    @tc.agent
    def prog(s):
        s += "shared prompt"
        forks = s.fork(3)
        for seat, fork in enumerate(forks.states):
            fork += sgl.gen("g") + tc.call(meet, {"seat": seat}, name="seat")
        forks.join()
        s += sgl.gen("end")

    state = prog.run(backend=endpoint)
    assert state["seat"] == [0, 1, 2]
    state.sync()
    parent = peer.generates[-1]["tokencake"]["agent_id"]
    starts = [event["agent_id"] for event in peer.events if event["event"] == "stall_started"]
    assert sorted(starts) == [f"{parent}.{seat}" for seat in range(3)]
    eventually(lambda: sum(event["event"] == "agent_finished" for event in peer.events) == 4)


def test_a_failed_call_in_a_fork_can_be_read_there_and_stays_visible_after_join(endpoint):
    @tc.tool
    def half(number):
        return number // (number % 2)

    @tc.agent
    def prog(s):
        s += "x"
        forks = s.fork(2)
        for number, fork in enumerate(forks.states):
            fork += tc.call(half, {"number": number}, name="half")
        with pytest.raises(tc.ToolError):
            forks[0]["half"]
        assert forks[1]["half"] == 1
        forks.join()

    failed, fine = prog.run(backend=endpoint)["half"]
    assert isinstance(failed, tc.ToolError)
    assert fine == 1


def test_joining_texts_of_forks_works_without_the_route_that_sglang_has_dropped(endpoint):
    @tc.agent
    def prog(s):
        s += "start"
        forks = s.fork(2)
        for number, fork in enumerate(forks.states):
            fork += f" [{number}]" + tc.call(lambda: None)
        forks.join("concate_and_append")

    assert prog.run(backend=endpoint).text() == "start [0] [1]"


def test_run_batch_traces_the_program_without_running_its_tools(peer, endpoint):
    calls = []

    @tc.tool
    def count(topic):
        calls.append(topic)
        return topic

    @tc.agent
    def prog(s, topic):
        s += "The same long beginning of every program in the batch. " * 3
        s += tc.call(count, {"topic": topic}, name="topic")
        s += sgl.gen("g")

    with tc.app("batch"):
        states = prog.run_batch([{"topic": f"t{i}"} for i in range(4)], backend=endpoint)
    assert [state["topic"] for state in states] == ["t0", "t1", "t2", "t3"]
    assert sorted(calls) == ["t0", "t1", "t2", "t3"]
    cached = [body for body in peer.generates if "tokencake" not in body]
    assert [body["text"] for body in cached] == ["The same long beginning of every program in the batch. " * 3]
    identities = [body["tokencake"] for body in peer.generates if "tokencake" in body]
    assert {identity["app_id"] for identity in identities} == {"batch"}
    assert len({identity["agent_id"] for identity in identities}) == 4


def test_run_batch_in_generator_style_keeps_the_app_of_its_caller(peer, endpoint):
    @tc.agent
    def prog(s, topic):
        s += topic + sgl.gen("g")

    with tc.app("lazy"):
        states = prog.run_batch([{"topic": "a"}, {"topic": "b"}], backend=endpoint, generator_style=True)
    assert len(list(states)) == 2
    assert {body["tokencake"]["app_id"] for body in peer.generates} == {"lazy"}


def test_a_tool_called_directly_does_not_run_while_its_agent_is_traced(endpoint):
    calls = []

    @tc.tool
    def touch():
        calls.append(1)
        return "touched"

    @tc.agent
    def prog(s, topic):
        s += "beginning " + touch()

    prog.cache(backend=endpoint)
    assert calls == []
    with pytest.raises(TypeError, match="being traced.*write `s \\+= call"):
        prog.trace(backend=endpoint)
    prog.run(topic="x", backend=endpoint)
    assert calls == [1]


def test_a_full_trace_records_calls_and_their_variables_and_runs_nothing(endpoint):
    calls = []

    @tc.agent
    def prog(s, topic):
        s += "x" + tc.call(lambda: calls.append(1), name="out")
        forks = s.fork(2)
        forks += tc.call(lambda: calls.append(1), name="inner")
        s += s["out"]

    trace = prog.trace(backend=endpoint)
    assert "Call(<lambda>, name='out')" in answers(trace.flatten_nodes())
    assert trace.variables["out"].name == "out"
    assert calls == []


def test_streaming_yields_the_text_around_a_call_and_sends_its_events_after_the_generation(peer, endpoint):
    @tc.agent
    def prog(s):
        s += "a " + sgl.gen("first") + tc.call(lambda: "hit", name="hit")
        s += " " + s["hit"] + " " + sgl.gen("second")

    state = prog.run(backend=endpoint, stream=True)
    streamed = "".join(state.text_iter())
    assert streamed == f"a {state['first']} hit {state['second']}"
    paths = [body.get("event", "generate") for path, body in peer.requests if path != "/get_model_info"]
    assert paths[:4] == ["generate", "stall_started", "stall_finished", "generate"]
    assert all(body["tokencake"] for body in peer.generates)


def test_a_program_without_worker_thread_sends_the_same_events(peer, endpoint):
    @tc.agent
    def prog(s):
        s += "x" + sgl.gen("g") + tc.call(lambda: "hit", name="hit")
        assert s["hit"] == "hit"

    prog.run(backend=endpoint, use_thread=False)
    assert [event["event"] for event in peer.events] == ["stall_started", "stall_finished", "agent_finished"]


def test_a_call_works_on_a_backend_that_knows_nothing_of_agents(peer):
    @tc.agent
    def prog(s):
        s += "x" + sgl.gen("g") + tc.call(lambda: "hit", name="hit")
        forks = s.fork(2)
        forks += tc.call(lambda: "fork", name="inner")
        forks.join()

    state = prog.run(backend=sgl.RuntimeEndpoint(peer.url))
    assert (state["hit"], state["inner"]) == ("hit", ["fork", "fork"])
    assert peer.events == []
    assert all("tokencake" not in body for body in peer.generates)


def test_a_failed_generation_surfaces_as_its_own_error_and_ends_the_agent(peer, endpoint, eventually):
    peer.fail_generate_with = 400

    @tc.agent
    def prog(s):
        s += "x" + sgl.gen("g") + tc.call(lambda: "hit", name="hit")
        s += s["hit"]

    with pytest.warns(UserWarning, match="Error in stream_executor"):
        with pytest.raises(RuntimeError, match="the peer was told to fail"):
            prog.run(backend=endpoint)
    eventually(lambda: [event["event"] for event in peer.events] == ["agent_finished"])


def test_programs_of_many_threads_do_not_mix_their_apps(peer, endpoint):
    @tc.agent
    def prog(s, app):
        s += app + sgl.gen("g") + tc.call(time.sleep, name="n")

    def one(name):
        with tc.app(name):
            prog.run(app=name, backend=endpoint).sync()

    threads = [threading.Thread(target=one, args=(f"app{i}",)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(peer.generates) == 8
    assert all(body["tokencake"]["app_id"] == body["text"] for body in peer.generates)


def test_a_running_tool_reports_its_stages_by_name_and_call(peer, endpoint):
    @tc.tool(stages=[tc.Stage("network", 1.5), tc.Stage("rank", 0.5)])
    def search():
        tc.stage_done("network")
        return "found"

    @tc.agent
    def prog(s):
        s += "x" + sgl.gen("g") + tc.call(search)

    state = prog.run(backend=endpoint)
    assert state["result"] == "found"
    state.sync()
    started, stage, finished = peer.events[:3]
    assert stage == {
        "event": "stage_finished",
        "agent_id": started["agent_id"],
        "call_id": started["call_id"],
        "stage": "network",
    }
    assert finished["event"] == "stall_finished"


def test_a_coroutine_tool_reports_its_stages_too(peer, endpoint):
    @tc.tool(stages=[tc.Stage("one", 1.0)])
    async def later():
        tc.stage_done("one")

    @tc.agent
    def prog(s):
        s += "x" + sgl.gen("g") + tc.call(later)

    prog.run(backend=endpoint).sync()
    assert [event["stage"] for event in peer.events if event["event"] == "stage_finished"] == ["one"]


def test_a_tool_that_is_called_directly_reports_no_stage_and_neither_does_code_outside_a_tool(peer, endpoint):
    @tc.tool(stages=[tc.Stage("network", 1.5)])
    def search():
        tc.stage_done("network")
        return "found"

    @tc.agent
    def prog(s):
        s += "x" + sgl.gen("g") + tc.call(search)
        s += tc.call(search, lambda view: {} if tc.stage_done("network") is None else None)
        s.sync()
        tc.stage_done("network")
        assert search() == "found"

    prog.run(backend=endpoint).sync()
    assert search() == "found"
    assert [event["event"] for event in peer.events].count("stage_finished") == 2


def test_no_stage_is_sent_for_a_call_whose_start_was_refused(peer, endpoint):
    @tc.tool(stages=[tc.Stage("network", 1.5)])
    def search():
        tc.stage_done("network")

    @tc.agent
    def prog(s):
        s += tc.call(search)  # before its first request the agent is unknown

    prog.run(backend=endpoint).sync()
    assert [event["event"] for event in peer.events][:1] == ["stall_started"]
    assert all(event["event"] != "stage_finished" for event in peer.events)


@pytest.mark.parametrize("stages", [
    [tc.Stage("a", 1.0), tc.Stage("a", 2.0)], [tc.Stage(f"s{i}", 1.0) for i in range(33)]])
def test_stages_that_the_server_would_refuse_are_refused(stages):
    with pytest.raises(ValueError, match="stages of tool"):
        tc.tool(lambda: None, name="t", stages=stages)


def test_a_stage_without_a_proper_name_is_refused():
    with pytest.raises(ValueError, match="stage name"):
        tc.Stage("", 1.0)
