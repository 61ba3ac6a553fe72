"""Where the time of a program went, quantiles, and when the pools are sampled."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tokencake_sglang.emulator.clients import Answer, Clients
from tokencake_sglang.emulator.clock import SECOND, START_NS, VirtualClock
from tokencake_sglang.emulator.observe import BLOCK, CallTimes, ComputedPrefixes
from tokencake_sglang.emulator.oracle import TokenChain
from tokencake_sglang.emulator.program import Call, Program, Text, ToolCall, Workload
from tokencake_sglang.emulator.result import _app, quantile
from tokencake_sglang.emulator.samples import KvSamples
from tokencake_sglang.emulator.spec import Configuration
from tokencake_sglang.emulator.tokens import text_tokens

LENGTHS = {"x": 3.0, "y": 5.0, "z": 2.0}  # seconds from request to answer


class TimedServer:
    """Answers each call after its LENGTHS."""

    def __init__(self) -> None:
        self.clock = VirtualClock()

    def submit(self, rid: str, prompt: Any, plan: Any, max_new_tokens: int, **fields: Any) -> None:
        answer = Answer(plan.tokens, len(prompt), 0, 0, 0, 0, "length")
        self.clock.after(LENGTHS[rid[-1]] * SECOND, lambda: self.clients.answered(rid, answer))


def played(times: dict[str, CallTimes]) -> dict[str, Any]:
    """The app entry of a program x, y side by side, then z after a pause; y has a tool of 4 s, x one of 1 s."""
    calls = (
        Call("x", "a", "t", (Text("x", 10),), 4, tool=ToolCall("search", 1.0)),
        Call("y", "b", "t", (Text("y", 10),), 4, tool=ToolCall("search", 4.0), delay_s=0.5),
        Call("z", "a", "t", (Text("z", 10),), 4, ("x", "y"), delay_s=0.25))
    server = TimedServer()
    server.clients = clients = Clients(server, Workload("w", (Program("p", calls, 1.0),)), Configuration("stock"))
    clients.start()
    server.clock.advance_to(START_NS + 100 * SECOND)
    return _app(clients.runs[0], times, 7.0)


def spent(queue: float, prefill: float, upload: float = 0.0, **fields: Any) -> CallTimes:
    return CallTimes(queue_ns=int(queue * SECOND), prefill_ns=int(prefill * SECOND),
                     upload_wait_ns=int(upload * SECOND), **fields)


def test_the_parts_follow_the_path_that_ended_last_and_sum_up_to_the_latency():
    app = played({"p/x": spent(3.0, 0.0), "p/y": spent(1.0, 0.5, 0.25), "p/z": spent(0.5, 0.25)})
    assert (app["arrival_s"], app["end_s"], app["latency_s"]) == (1.0, 12.75, 11.75)
    assert app["breakdown"] == pytest.approx({  # y (9.5 s with its tool), then z; x ended earlier and does not count
        "client_s": 0.75, "queue_s": 1.5, "prefill_s": 0.75, "recomputed_prefill_s": 0.0, "upload_wait_s": 0.25,
        "decode_s": 3.25 + 1.25, "tool_s": 4.0})
    assert sum(app["breakdown"].values()) == pytest.approx(app["latency_s"])
    assert app["critical_path_s"] == 7.0 and app["calls_done"] == 3


def test_prefill_of_tokens_that_had_been_computed_before_is_told_apart():
    times = {"p/x": spent(0, 0), "p/y": spent(0, 2.0, new_tokens=100, recomputed_tokens=25), "p/z": spent(0, 1.0)}
    parts = played(times)["breakdown"]
    assert parts["recomputed_prefill_s"] == pytest.approx(0.5) and parts["prefill_s"] == pytest.approx(2.5)


def test_prefill_after_a_retraction_is_all_recomputed():
    retracted = spent(
        0, 2.0, new_tokens=100, recomputed_tokens=60, repeated_prefill_ns=int(1.2 * SECOND), retractions=1)
    parts = played({"p/x": spent(0, 0), "p/y": retracted, "p/z": spent(0, 0)})["breakdown"]
    assert parts["recomputed_prefill_s"] == pytest.approx(1.2) and parts["prefill_s"] == pytest.approx(0.8)


def test_a_quantile_is_the_smallest_value_that_enough_others_do_not_exceed():
    values = [5.0, 1.0, 3.0, 2.0, 4.0]
    assert [quantile(values, share) for share in (0.2, 0.21, 0.5, 0.9, 1.0)] == [1.0, 2.0, 3.0, 5.0, 5.0]
    assert quantile([], 0.5) is None and quantile([7.0], 0.99) == 7.0


def test_prefixes_that_were_computed_are_known_in_whole_blocks():
    computed, tokens = ComputedPrefixes(), text_tokens("a", 10 * BLOCK)
    computed.add(TokenChain(tokens[:5 * BLOCK + BLOCK // 2]).prints)
    assert computed.longest(TokenChain(tokens).prints) == 5 * BLOCK
    assert computed.longest(TokenChain(tokens[:3 * BLOCK - 1]).prints) == 2 * BLOCK
    assert computed.longest(TokenChain(tokens[1:]).prints) == 0
    assert computed.longest(TokenChain(tokens[:0]).prints) == 0


class Clocked(KvSamples):
    """Notes the time only."""

    def measure(self) -> dict[str, Any]:
        return {"t_s": self._server.clock.elapsed_s()}


def sampled(limit: int, seconds: float) -> tuple[list[float], VirtualClock]:
    clock = VirtualClock()
    samples = Clocked(SimpleNamespace(clock=clock), limit)
    samples.start()
    clock.advance_to(START_NS + int(seconds * SECOND))
    return [sample["t_s"] for sample in samples.samples], clock


def test_samples_are_even_in_time_and_never_more_than_twice_the_limit():
    assert sampled(10, 2.0)[0] == [0.25 * (i + 1) for i in range(8)]
    for seconds in (5, 50, 500, 5000):
        times, _ = sampled(10, seconds)
        steps = {round(after - before, 6) for before, after in zip(times, times[1:], strict=False)}
        assert len(steps) == 1 and 8 <= len(times) < 20
        assert times[-1] > seconds - 2 * steps.pop()


def test_samples_never_wake_an_idle_server_and_none_are_taken_at_limit_0():
    assert sampled(10, 2.0)[1].next_wake_ns() is None
    assert sampled(0, 100.0)[0] == []
