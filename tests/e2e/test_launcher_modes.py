"""The launcher with real processes: a server without TokenCake, and starts that are refused. The offline Engine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap

import pytest

from tests.support.server import PACKAGE_ROOT, STRICT_CHECKS, ServerProcess, demo_model_dir, other_model_archs

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

LAUNCHER = "tokencake_sglang.launch_server"


def environment(**changed: str) -> dict[str, str]:
    return {**os.environ, **STRICT_CHECKS, "PYTHONPATH": str(PACKAGE_ROOT), "OMP_NUM_THREADS": "1",
            "SGLANG_DISABLED_MODEL_ARCHS": other_model_archs(), **changed}


def test_without_the_switch_the_routes_answer_503_and_metadata_is_ignored():
    with ServerProcess("--max-total-tokens", "4000", module=LAUNCHER) as server:
        for status, text in (server.get("/v1/tokencake/state"), server.post("/v1/tokencake/events", b"{")):
            assert status == 503 and json.loads(text)["error"]["reason"] == "disabled"
        plain = server.generate("Once upon a time", 8)["text"]
        assert server.generate("Once upon a time", 8, tokencake={"agent_id": {"not": "read"}})["text"] == plain
        assert "TokenCake" in server.log() and ": OFF" in server.log()


@pytest.mark.parametrize(("flags", "said"), [
    (["--pp-size", "2"], "--pp-size 2"),
    (["--sleep-on-idle"], "--sleep-on-idle"),
])
def test_a_refused_start_ends_with_status_2_and_one_line(flags, said):
    command = [sys.executable, "-m", LAUNCHER, "--model-path", str(demo_model_dir()), "--enable-tokencake"]
    done = subprocess.run([*command, *flags], env=environment(), capture_output=True, text=True, timeout=300)
    lines = [line for line in done.stderr.splitlines() if line.startswith("tokencake: ")]
    assert done.returncode == 2 and len(lines) == 1 and said in lines[0] and "Traceback" not in done.stderr


def test_a_plugin_list_that_leaves_tokencake_out_is_refused():
    command = [sys.executable, "-m", LAUNCHER, "--model-path", str(demo_model_dir()), "--enable-tokencake"]
    done = subprocess.run(command, env=environment(SGLANG_PLUGINS="other"), capture_output=True, text=True, timeout=300)
    assert done.returncode == 2 and "SGLANG_PLUGINS" in done.stderr


OFFLINE = """
    import json, sys, time
    from tokencake_sglang.offline import ControlError, Engine

    def refusal(call):
        try:
            call()
        except (ControlError, ValueError) as error:
            return [type(error).__name__, getattr(error, "code", None)]

    def main():
        engine = Engine(model_path=sys.argv[1], enable_tokencake=True,
                        tokencake={"lease_s": 1.0, "offload_policy": "eager"},
                        tokencake_stall_floor_s=0.1, max_total_tokens=4000, dtype="float32", random_seed=1)
        params, agent, prompt = {"temperature": 0, "max_new_tokens": 8}, {"agent_id": "a"}, "word " * 150
        first = engine.generate(prompt, params, agent=agent)["text"]
        started = engine.stall_started(agent_id="a", estimated_duration_s=60.0, call_id="c")["status"]
        moved, deadline = 0, time.monotonic() + 60
        while not moved and time.monotonic() < deadline:
            moved = engine.tokencake_state()["counters"]["tokens_offloaded"]
        finished = engine.stall_finished(agent_id="a", call_id="c")["status"]
        again = engine.generate(prompt, params, agent=agent)["text"]
        refusals = [refusal(lambda: engine.stall_started(agent_id="b")),
                    refusal(lambda: engine.stall_started(agent_id=1)),
                    refusal(lambda: engine.act("kv.nothing", agent_id="a")),
                    refusal(lambda: engine.generate(["x", "y"], params, agent={"lifecycle_id": "l"}))]
        batch = len(engine.generate(["x", "y"], params, agent=[{"agent_id": "x"}, {"agent_id": "y"}]))
        chunks = len(list(engine.generate("x", params, stream=True, agent=agent)))
        kept = engine.act("kv.retain", agent_id="a", ttl_seconds=9e4 - 4e3)["outcome"]
        ended = engine.agent_finished(agent_id="a")["status"]
        left = sorted(each["agent"] for each in engine.tokencake_state()["agents"])
        engine.shutdown()
        result = [first == again, started, moved > 100, finished, refusals, batch, chunks > 0, kept, ended, left]
        print("RESULT " + json.dumps(result))

    if __name__ == "__main__":
        main()
"""


def test_the_offline_engine_takes_the_same_options_and_events(tmp_path):
    script = tmp_path / "offline.py"
    script.write_text(textwrap.dedent(OFFLINE))
    done = subprocess.run([sys.executable, str(script), str(demo_model_dir())], env=environment(), capture_output=True,
                          text=True, timeout=400)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    assert done.returncode == 0 and lines, done.stderr[-4000:]
    refusals = [["ControlError", 404], ["MetadataError", None], ["MetadataError", None], ["MetadataError", None]]
    assert json.loads(lines[0][7:]) == [
        True, "applied", True, "applied", refusals, 2, True, "clipped", "applied", ["x", "y"]]


@pytest.mark.parametrize("flags", [["--enable-tokencake"], []])
def test_an_unpatched_sglang_is_refused_with_the_command_that_mends_it(stock_tree, flags):
    command = [sys.executable, "-m", LAUNCHER, "--model-path", "anything", *flags]
    path = os.pathsep.join([str(stock_tree), str(PACKAGE_ROOT)])
    done = subprocess.run(command, env=environment(PYTHONPATH=path), capture_output=True, text=True, timeout=300)
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1
    assert "is not patched" in done.stderr and "tokencake_sglang.patching apply" in done.stderr
