"""Running many agents: progress bar, errors, the prefix trace, Ctrl-C, and `arun` on an event loop."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time

import pytest
import sglang as sgl

import tokencake_sglang as tc


@tc.agent(type="worker")
def work(s, topic):
    s += topic + sgl.gen("g")
    return s["g"]


def finished(peer):
    return sorted(event["agent_id"] for event in peer.events if event["event"] == "agent_finished")


def agents(peer):
    return sorted({body["tokencake"]["agent_id"] for body in peer.generates if "tokencake" in body})


@pytest.mark.parametrize("num_threads", ["auto", 1])
@pytest.mark.parametrize("generator_style", [False, True])
def test_a_batch_with_progress_bar_is_a_batch_of_agents(
    peer, endpoint, capsys, eventually, num_threads, generator_style
):
    rows = [{"topic": f"t{i}"} for i in range(3)]
    with tc.app("bar"):
        states = list(work.run_batch(rows, backend=endpoint, progress_bar=True, num_threads=num_threads,
                                     generator_style=generator_style))
    assert [state.ret_value[:4] for state in states] == ["word"] * 3
    assert "3/3" in capsys.readouterr().err
    assert len(agents(peer)) == 3
    assert {body["tokencake"]["app_id"] for body in peer.generates} == {"bar"}
    eventually(lambda: finished(peer) == agents(peer))


@pytest.mark.parametrize("num_threads", ["auto", 1])
def test_an_error_of_one_program_surfaces_and_every_agent_is_reported_as_ended(peer, endpoint, eventually, num_threads):
    @tc.agent
    def some_fail(s, number):
        s += "x" + sgl.gen("g")
        if s["g"] and number == 0:
            raise LookupError("number 0 is wrong")

    with pytest.raises(LookupError, match="number 0 is wrong"):
        some_fail.run_batch([{"number": i} for i in range(3)], backend=endpoint, progress_bar=True,
                            num_threads=num_threads)
    eventually(lambda: agents(peer) and finished(peer) == agents(peer))


@pytest.mark.filterwarnings("ignore:Error in stream_executor")
@pytest.mark.parametrize("route", ["run", "run_batch", "map", "arun", "stream", "fork", "joined texts"])
def test_an_error_of_a_programs_worker_surfaces_on_every_route(peer, endpoint, eventually, route):
    @tc.agent
    def prog(s, number):
        s += "x" + sgl.gen("g")
        if route in ("fork", "joined texts"):
            s.sync()
            forks = s.fork(2)
            peer.fail_generate_with = 400
            forks += sgl.gen("h")
            forks.join("gather_variable" if route == "fork" else "concate_and_append")
        else:
            s["g"]
            peer.fail_generate_with = 400
            s += sgl.gen("h")  # nobody reads it

    if route == "map":
        with pytest.raises(RuntimeError, match="told to fail"):
            prog.map([0], backend=endpoint)
    elif route in ("fork", "joined texts"):
        with pytest.raises(RuntimeError, match="told to fail"):
            prog.run(0, backend=endpoint)
    else:
        if route == "arun":
            state = asyncio.run(prog.arun(0, backend=endpoint))
        elif route == "run_batch":
            (state,) = prog.run_batch([{"number": 0}], backend=endpoint)
        else:
            state = prog.run(0, backend=endpoint, stream=route == "stream")
        assert "".join(state.text_iter()).startswith("xword")
        assert "told to fail" in str(state.error())
        if route != "stream":  # there the variable keeps what has come of it
            with pytest.raises(RuntimeError, match="told to fail"):
                state["h"]
    eventually(lambda: agents(peer) and finished(peer) == agents(peer))


def test_what_a_streamed_agent_raises_is_its_states_error(peer, endpoint, eventually, monkeypatch):
    monkeypatch.setattr(threading, "excepthook", lambda _arguments: None)

    @tc.agent
    def prog(s):
        s += "x" + sgl.gen("g")
        raise LookupError("the program itself is wrong")

    state = prog.run(backend=endpoint, stream=True)
    assert "".join(state.text_iter()).startswith("xword")
    assert isinstance(state.error(), LookupError)
    eventually(lambda: agents(peer) and finished(peer) == agents(peer))


@pytest.mark.filterwarnings("ignore:Error in stream_executor")
def test_an_error_of_the_server_surfaces_from_a_batch(peer, endpoint):
    peer.fail_generate_with = 400
    with pytest.raises(RuntimeError, match="told to fail"):
        work.run_batch([{"topic": "a"}, {"topic": "b"}], backend=endpoint)


@pytest.mark.parametrize("failure", [KeyError, ValueError, ZeroDivisionError])
def test_what_the_prefix_trace_meets_without_real_arguments_does_not_stop_the_batch(endpoint, failure):
    @tc.agent
    def prog(s, topic):
        if not isinstance(topic, str):
            raise failure("the trace has no topic")
        s += topic + sgl.gen("g")

    assert len(prog.run_batch([{"topic": "a"}, {"topic": "b"}], backend=endpoint)) == 2


def press_ctrl_c_when(condition):
    def press():
        while not condition():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=press)
    thread.start()
    return thread


@pytest.mark.parametrize("generator_style", [False, True])
def test_ctrl_c_ends_a_batch_with_a_message_and_the_ends_of_the_agents_it_started(peer, endpoint, generator_style):
    release, begun = threading.Event(), []

    def hold():
        begun.append(1)
        release.wait(30)

    later = []

    @tc.agent
    def slow(s, number):
        s += "x" + sgl.gen("g") + tc.call(hold, name="held") + sgl.gen("after")
        forks = s.fork(1)
        forks += sgl.gen("never")
        later.append(s["after"])

    def both_hold():
        if len(begun) == 2:
            threading.Timer(0.3, release.set).start()
        return len(begun) == 2

    threads = set(threading.enumerate())
    thread = press_ctrl_c_when(both_hold)
    before = signal.getsignal(signal.SIGINT)
    sentence = "run_batch of 'slow' was interrupted: of 5 agents 0 had ended, 2 were stopped, 3 were not started"
    with pytest.raises(tc.BatchInterrupted, match=sentence) as caught:
        list(slow.run_batch([{"number": i} for i in range(5)], backend=endpoint, num_threads=2,
                            generator_style=generator_style))
    thread.join()
    assert isinstance(caught.value, KeyboardInterrupt)
    assert signal.getsignal(signal.SIGINT) is before
    assert len(agents(peer)) == 2
    assert finished(peer) == agents(peer)  # already: the batch has waited for them
    assert later == []
    assert len(peer.generates) == 2
    for left in set(threading.enumerate()) - threads:  # a fork that was under way, too
        left.join(5)
        assert left.daemon or not left.is_alive(), f"{left.name} would keep the process from ending"


def test_ctrl_c_in_a_batch_on_one_thread_is_no_different(peer, endpoint):
    @tc.agent
    def slow(s, number):
        s += "x" + sgl.gen("g") + tc.call(lambda: time.sleep(0.5), name="held") + sgl.gen("after")
        return s["after"]

    thread = press_ctrl_c_when(lambda: peer.events)
    with pytest.raises(tc.BatchInterrupted, match="of 3 agents 0 had ended, 1 were stopped, 2 were not started"):
        slow.run_batch([{"number": i} for i in range(3)], backend=endpoint, num_threads=1)
    thread.join()
    assert finished(peer) == agents(peer)
    assert len(peer.generates) == 1


def test_a_second_ctrl_c_leaves_a_tool_that_does_not_end_and_reports_its_agent_all_the_same(peer, endpoint):
    release, presses = threading.Event(), []

    @tc.agent
    def stuck(s, number):
        s += "x" + sgl.gen("g") + tc.call(lambda: release.wait(30), name="held")
        s["held"]

    def press_twice():
        while len(peer.events) < 2:
            time.sleep(0.01)
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
            presses.append(1)
            time.sleep(0.5)

    thread = threading.Thread(target=press_twice)
    thread.start()
    with pytest.raises(tc.BatchInterrupted, match="2 were stopped"):
        stuck.run_batch([{"number": i} for i in range(2)], backend=endpoint)
    assert finished(peer) == agents(peer)
    release.set()
    thread.join()
    assert len(finished(peer)) == 2  # and not once more when the tool came back


def test_a_program_that_raises_keyboard_interrupt_itself_is_not_ctrl_c(endpoint):
    @tc.agent
    def prog(s, number):
        raise KeyboardInterrupt("of the program")

    with pytest.raises(KeyboardInterrupt, match="of the program") as caught:
        prog.run_batch([{"number": 0}, {"number": 1}], backend=endpoint)
    assert not isinstance(caught.value, tc.BatchInterrupted)


def test_arun_runs_agents_at_the_same_time_each_with_its_app_while_the_loop_goes_on(peer, endpoint, eventually):
    meeting = threading.Barrier(3)

    @tc.agent
    def meet(s):
        s += "x" + sgl.gen("g") + tc.call(lambda: meeting.wait(30), name="seat") + sgl.gen("after")

    async def one(name):
        with tc.app(name):
            return await meet.arun(backend=endpoint)

    async def main():
        return await asyncio.gather(*(one(f"app{i}") for i in range(3)))

    states = asyncio.run(main())
    assert sorted(state["seat"] for state in states) == [0, 1, 2]
    assert len(peer.generates) == 6  # awaited means done: nothing had to be read for it
    assert {body["tokencake"]["app_id"] for body in peer.generates} == {"app0", "app1", "app2"}
    eventually(lambda: finished(peer) == agents(peer))


def test_arun_raises_what_the_program_raises(endpoint):
    @tc.agent
    def prog(s):
        s += "x" + tc.call(lambda: 1 / 0, name="out")
        return s["out"]

    with pytest.raises(tc.ToolError, match="ZeroDivisionError"):
        asyncio.run(prog.arun(backend=endpoint))


def test_arun_streams(endpoint):
    async def main():
        state = await work.arun("a", backend=endpoint, stream=True)
        return [part async for part in state.text_async_iter()]

    assert "".join(asyncio.run(main())).startswith("aword")


def test_a_cancelled_task_stops_its_agent_at_the_next_step(peer, endpoint, eventually):
    release, seen = threading.Event(), []

    @tc.agent
    def slow(s):
        s += "x" + sgl.gen("g") + tc.call(lambda: release.wait(30), name="held")
        try:
            s["held"]
        except tc.AgentStopped as error:
            seen.append(str(error))
            raise
        s += sgl.gen("after")

    async def main():
        task = asyncio.create_task(slow.arun(backend=endpoint))
        while not peer.events:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        release.set()

    asyncio.run(main())
    eventually(lambda: seen and finished(peer) == agents(peer))
    assert "task cancelled" in seen[0]
    assert len(peer.generates) == 1
