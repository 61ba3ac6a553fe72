"""Programs of the frontend on one real server: partial prefill, sub-agents, and what is left after failures."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import threading
import time

import pytest

from tests.support.server import ServerProcess
from tokencake_sglang.frontend import batch

pytestmark = pytest.mark.e2e

FLAGS = ("--max-total-tokens", "8192", "--hicache-ratio", "2", "--enable-tokencake", "--enable-cache-report",
         "--tokencake-stall-floor-s", "0.1", "--tokencake-min-offload-tokens", "16")
KNOWN = "Answer from these pages only, name each page that you use, and say what they leave open. " * 12


@pytest.fixture(scope="module")
def server():
    with ServerProcess(*FLAGS, module="tokencake_sglang.launch_server") as server:
        yield server


@pytest.fixture
def endpoint(server):
    import tokencake_sglang as tc

    return tc.Endpoint(server.base_url, app_id="e2e")


def state(server):
    return json.loads(server.get("/v1/tokencake/state")[1])


def is_at_zero(server):
    """No agent, no open stall, no move, nothing waiting or running."""
    now = state(server)
    counters = now["counters"]
    return (now["num_agents"] == 0 and counters["stalls_started"] == counters["stalls_finished"]
            and not now["moves"] and now["pool"]["running_requests"] == now["pool"]["waiting_requests"] == 0)


def comes_to_zero(server):
    for _ in range(400):
        if is_at_zero(server):
            return True
        time.sleep(0.05)
    raise AssertionError(json.dumps(state(server), indent=1))


def asks(prefill, seconds, number):
    import sglang as sgl

    import tokencake_sglang as tc

    @tc.tool(predict_time=seconds)
    def search():
        time.sleep(seconds)
        return f"page {number}"

    @tc.agent(type="asker")
    def prog(s):
        s += sgl.user(f"Question {number}.") + sgl.assistant(sgl.gen("query", max_tokens=8, ignore_eos=True))
        s += tc.call(search, name="pages", prefill=prefill)
        s += sgl.user(f"{number}: {KNOWN}" + tc.value("pages"))
        s += sgl.assistant(sgl.gen("answer", max_tokens=16, ignore_eos=True))

    return prog


def test_a_partial_prefill_grows_what_is_cached_when_the_tool_returns_and_changes_no_output(server, endpoint):
    found = {}
    for prefill in (False, True):
        server.flush_cache()
        before = state(server)["counters"]
        ran = asks(prefill, 1.5, 1).run(backend=endpoint, temperature=0)
        found[prefill] = ran["answer"], ran["query"], ran.get_meta_info("answer")
        after = state(server)["counters"]
        assert after["stalls_started"] - before["stalls_started"] == 1
        ran.sync()
        assert comes_to_zero(server)
    (plain, query, without), (same, same_query, with_it) = found[False], found[True]
    assert (plain, query) == (same, same_query)
    assert with_it["prompt_tokens"] == without["prompt_tokens"] > 200
    print("prompt and cached tokens:", with_it["prompt_tokens"], without["cached_tokens"], with_it["cached_tokens"])
    assert without["cached_tokens"] < 60
    assert with_it["cached_tokens"] > with_it["prompt_tokens"] - 40


def test_a_sub_agent_as_a_tool_stalls_its_caller_on_the_server_and_both_end(server, endpoint):
    import sglang as sgl

    import tokencake_sglang as tc

    seen = []

    @tc.agent(type="helper")
    def helper(s):
        s += sgl.user("Help.") + sgl.assistant(sgl.gen("help", max_tokens=8, ignore_eos=True))
        s["help"]
        seen.extend((a["agent"], a["agent_type"], a["app_id"], a["state"]) for a in state(server)["agents"])
        return s["help"]

    @tc.agent(type="boss")
    def boss(s):
        s += sgl.user("Plan.") + sgl.assistant(sgl.gen("plan", max_tokens=8, ignore_eos=True))
        s += tc.call(helper, name="help")
        return s["help"]

    with tc.app("sub"):
        assert boss.run(backend=endpoint, temperature=0).ret_value
    known = {kind: (name, app, doing) for name, kind, app, doing in seen}
    assert known["boss"][1:] == ("sub", "stalled") and known["helper"][1] == "sub"
    assert known["helper"][0].startswith(known["boss"][0] + "/helper-")
    assert comes_to_zero(server)


@pytest.fixture
def failing(endpoint):
    import sglang as sgl

    import tokencake_sglang as tc

    release, pressed = threading.Event(), threading.Event()

    def raises():
        raise ValueError("disk on fire")

    broken = tc.tool(raises, name="broken")
    endless = tc.tool(lambda: release.wait(60), name="endless", timeout=0.5)
    slow = tc.tool(lambda: pressed.wait(60), name="slow", predict_time=1.0)

    @tc.agent(type="failing")
    def prog(s, how, number=0):
        s += sgl.user(f"Go {number}.") + sgl.assistant(sgl.gen("first", max_tokens=8, ignore_eos=True))
        s["first"]
        forks = s.fork(2)
        forks += sgl.gen("side", max_tokens=4, ignore_eos=True)
        if how == "program":
            raise LookupError("the program itself is wrong")
        s += tc.call({"tool": broken, "endless": endless, "slow": slow}[how], name="out")
        return s["out"]

    prog.pressed = pressed
    yield prog, endpoint
    release.set()
    pressed.set()


@pytest.mark.parametrize(("how", "words"), [
    ("program", "LookupError.*the program itself is wrong"),
    ("tool", "ToolError.*tool 'broken' failed: ValueError: disk on fire"),
    ("endless", "ToolError.*tool 'endless' failed: ToolTimeout: it did not return within its timeout of 0.5 s")])
@pytest.mark.parametrize("route", ["run", "map"])
def test_a_failure_is_said_and_leaves_nothing_on_the_server(server, failing, how, words, route):
    prog, endpoint = failing
    with pytest.raises(Exception) as caught:  # noqa: B017 - which one is part of the words
        if route == "run":
            prog.run(how, backend=endpoint, temperature=0)
        else:
            prog.bind(how=how).map([{"number": 1}, {"number": 2}], backend=endpoint, temperature=0)
    assert re.match(words, f"{type(caught.value).__name__} {caught.value}")
    assert comes_to_zero(server)


def test_ctrl_c_in_a_batch_is_said_and_leaves_nothing_on_the_server(server, failing):
    import tokencake_sglang as tc

    prog, endpoint = failing

    def press():
        while sum(a["state"] == "stalled" for a in state(server)["agents"]) < 2:
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    class Interrupted(logging.Handler):
        def emit(self, record):
            if "was interrupted" in record.getMessage():
                threading.Timer(0.2, prog.pressed.set).start()  # the tools return now; both are waited for

    said = Interrupted()
    batch.logger.addHandler(said)
    thread = threading.Thread(target=press)
    thread.start()
    try:
        with pytest.raises(tc.BatchInterrupted, match="of 4 agents 0 had ended, 2 were stopped, 2 were not"):
            prog.run_batch([{"how": "slow", "number": number} for number in range(4)], backend=endpoint, temperature=0,
                           num_threads=2)
    finally:
        batch.logger.removeHandler(said)
    thread.join()
    assert comes_to_zero(server)
