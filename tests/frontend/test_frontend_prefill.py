"""Partial prefill: which text is sent while a tool runs, under which mark, and that nothing else changes."""

from __future__ import annotations

import threading

import pytest
import sglang as sgl

import tokencake_sglang as tc
from tokencake_sglang.frontend import prefill as module


def prefills(peer):
    return [body for body in peer.generates if body.get("tokencake", {}).get("purpose") == "prefill"]


def steps(peer):
    """The texts of all other requests."""
    return [body["text"] for body in peer.generates if body.get("tokencake", {}).get("purpose") is None]


@pytest.fixture
def hold(peer):
    """A tool that returns once its partial prefill has reached the peer (or after 5 s)."""

    def wait():
        for _ in range(500):
            if prefills(peer):
                break
            threading.Event().wait(0.01)
        return "hit"

    return tc.tool(wait, name="hold")


def test_the_constant_text_up_to_the_first_use_of_the_result_is_sent_while_the_tool_runs(peer, endpoint, hold):
    @tc.agent
    def prog(s):
        s += sgl.user("Ask.") + sgl.assistant(sgl.gen("query"))
        s += tc.call(hold, name="hits", prefill=True)
        s += sgl.user("Here are the results:\n" + tc.value("hits")) + sgl.assistant(sgl.gen("summary"))

    state = prog.run(backend=endpoint)
    text = state.text()
    (body,) = prefills(peer)
    assert body["text"].endswith("Here are the results:\n") and text.startswith(body["text"])
    assert body["sampling_params"] == {"max_new_tokens": 0}
    assert body["tokencake"] == {**peer.generates[0]["tokencake"], "purpose": "prefill"}
    assert steps(peer)[1].startswith(body["text"] + "hit")
    order = [body.get("event") or body["tokencake"].get("purpose", "step") for path, body in peer.requests if body]
    assert sorted(order[1:3]) == ["prefill", "stall_started"] and order[3:5] == ["stall_finished", "step"]


def test_a_text_that_ends_with_the_use_of_the_result_is_sent_at_once_and_an_open_one_when_nothing_follows(
    peer, endpoint, hold, monkeypatch
):
    monkeypatch.setattr(module, "SETTLE_S", 60.0)

    @tc.agent
    def prog(s, reads):
        s += "x" + sgl.gen("g") + tc.call(hold if not reads else lambda: "hit", name="hits", prefill=True)
        s += " known "
        s += s["hits"] if reads else tc.value("hits")
        s += sgl.gen("h")
        return s["h"]

    prog.run(False, backend=endpoint)
    assert [body["text"][-7:] for body in prefills(peer)] == [" known "]
    prog.run(True, backend=endpoint)  # the tool is back long before it is clear that nothing follows
    assert len(prefills(peer)) == 1


def test_a_program_that_reads_the_result_itself_may_say_what_comes_or_open_the_message_before(peer, endpoint, hold):
    @tc.agent
    def says(s):
        s += "a" + sgl.gen("g") + tc.call(hold, name="hits", prefill=" Results: ")
        s += " Results: " + s["hits"] + sgl.gen("h")

    state = says.run(backend=endpoint)
    state.sync()
    assert [body["text"] for body in prefills(peer)] == [f"a{state['g']} Results: "]

    @tc.agent
    def opens(s):
        s += "b" + sgl.gen("g") + tc.call(hold, name="hits", prefill=True)
        with s.user():
            s += "Results: "
            s += s["hits"]
        s += sgl.assistant(sgl.gen("h"))

    peer.requests.clear()
    state = opens.run(backend=endpoint)
    state.sync()
    (body,) = prefills(peer)
    assert body["text"].endswith("Results: ") and state.text().startswith(body["text"])


@pytest.mark.parametrize("wanted", [None, False])
def test_nothing_is_sent_unless_somebody_asked_for_it(peer, endpoint, wanted):
    @tc.agent
    def prog(s):
        s += "x" + sgl.gen("g") + tc.call(lambda: threading.Event().wait(0.2), name="hits", prefill=wanted)
        s += "then" + sgl.gen("h")

    prog.run(backend=endpoint).sync()
    assert prefills(peer) == []


def test_the_endpoint_may_ask_for_all_calls_and_a_call_may_decline(peer):
    endpoint = tc.Endpoint(peer.url, prefill=True)

    @tc.agent
    def prog(s, wanted):
        s += "x" + sgl.gen("g") + tc.call(lambda: threading.Event().wait(0.3), name="hits", prefill=wanted)
        s += "then" + sgl.gen("h")

    prog.run(None, backend=endpoint).sync()
    assert len(prefills(peer)) == 1
    prog.run(False, backend=endpoint).sync()
    assert len(prefills(peer)) == 1
    for wrong in ("yes", 1):
        with pytest.raises(TypeError, match="Endpoint: prefill found"):
            tc.Endpoint(peer.url, prefill=wrong)
    with pytest.raises(TypeError, match="call: prefill found 1"):
        tc.call(lambda: None, prefill=1)


def test_where_nothing_is_known_nothing_is_sent(peer, endpoint):
    @tc.agent
    def prog(s):
        s += "x" + sgl.gen("g") + tc.call(lambda: threading.Event().wait(0.2), name="hits", prefill=True)
        s += tc.value("hits") + sgl.gen("h")
        s += tc.call(lambda: threading.Event().wait(0.2), name="more", prefill=True)
        return s["more"]

    prog.run(backend=endpoint)
    assert prefills(peer) == []


def test_a_tool_that_returns_at_once_is_not_kept_waiting_by_a_program_that_adds_more(peer, endpoint):
    @tc.agent
    def prog(s):
        for number in range(20):
            s += f"{number}" + tc.call(lambda: None, name=f"r{number}", prefill=True)
        s += sgl.gen("g")

    state = prog.run(backend=endpoint)
    assert state["g"].startswith("word") and steps(peer) == ["".join(str(number) for number in range(20))]


@pytest.mark.parametrize("failure", ["refused", "gone"])
def test_a_partial_prefill_that_fails_changes_nothing_but_is_said(make_peer, caplog, failure):
    peer = make_peer()
    endpoint = tc.Endpoint(peer.url)

    def spoil():
        if failure == "refused":
            peer.fail_generate_with = 400
        else:
            endpoint.base_url = "http://127.0.0.1:9"  # the discard port: nobody is there

    def work():
        threading.Event().wait(0.4)
        peer.fail_generate_with, endpoint.base_url = None, peer.url
        return "hit"

    @tc.agent
    def prog(s):
        s += "x" + sgl.gen("g") + tc.call(spoil, name="spoilt") + tc.call(work, name="hits", prefill=True)
        s += "then" + sgl.gen("h")

    state = prog.run(backend=endpoint)
    assert state["hits"] == "hit" and state["h"].startswith("word") and state.error() is None
    assert any("partial prefill failed" in record.getMessage() for record in caplog.records)


def test_the_next_step_and_the_end_of_an_agent_wait_for_the_answer_of_its_partial_prefill_and_the_program_does_not(
    peer, endpoint, hold, eventually
):
    peer.prefill_gate, read = threading.Event(), []

    @tc.agent
    def prog(s):
        s += "x" + sgl.gen("g") + tc.call(hold, name="hits", prefill=True)
        s += " known " + tc.value("hits") + sgl.gen("h")
        read.append(s["hits"])

    state = prog.run(backend=endpoint)
    assert read == ["hit"] and len(steps(peer)) == 1
    assert not any(event["event"] == "agent_finished" for event in peer.events)
    peer.prefill_gate.set()
    assert state["h"].startswith("word")
    eventually(lambda: peer.events[-1]["event"] == "agent_finished")


def test_the_end_of_an_agent_comes_after_its_partial_prefill(peer, endpoint, eventually):
    @tc.agent
    def prog(s):
        s += "x" + sgl.gen("g") + tc.call(lambda: threading.Event().wait(0.2), name="hits", prefill=True)
        s += "never used"

    prog.run(backend=endpoint).sync()
    eventually(lambda: any(event["event"] == "agent_finished" for event in peer.events))
    bodies = [body for path, body in peer.requests if body]
    assert len(prefills(peer)) == 1
    assert bodies.index(prefills(peer)[0]) < next(
        i for i, body in enumerate(bodies) if body.get("event") == "agent_finished")


def test_a_server_without_tokencake_gets_the_text_without_a_mark(make_peer):
    peer = make_peer(tokencake="absent")
    endpoint = tc.Endpoint(peer.url, prefill=True)

    @tc.agent
    def prog(s):
        s += "x" + sgl.gen("g") + tc.call(lambda: threading.Event().wait(0.3), name="first", prefill=False)
        s += sgl.gen("h") + tc.call(lambda: threading.Event().wait(0.3), name="second")
        s += "then" + sgl.gen("i")

    prog.run(backend=endpoint).sync()
    zero = [body for body in peer.generates if body["sampling_params"].get("max_new_tokens") == 0]
    assert len(zero) == 1 and "tokencake" not in zero[0] and zero[0]["text"].endswith("then")


def test_forks_prefill_each_for_itself(peer, endpoint):
    @tc.agent
    def prog(s):
        s += "x"
        forks = s.fork(2)
        for number, fork in enumerate(forks.states):
            fork += f"[{number}]" + sgl.gen("g")
            fork += tc.call(lambda: threading.Event().wait(0.3), name="hits", prefill=True)
            fork += " known"
        forks.join()

    prog.run(backend=endpoint)
    found = {body["tokencake"]["agent_id"].rsplit(".")[-1]: body["text"] for body in prefills(peer)}
    assert set(found) == {"0", "1"} and all(text.startswith(f"x[{n}]word") for n, text in found.items())
