"""A day of agents for a real and an emulated server: the same requests, one after the other or in lanes.

A request is one turn of an agent. Its prompt is a system text that other agents share, the agent's own text and, of
the turns before, the answers as the server gave them and tool results. Lengths are tokens.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

AGENTS, TURNS, LANES = 25, 5, 5
NEW_TOKENS = 8
SYSTEMS, SYSTEM_TOKENS = 3, 180
PAUSE_S = 0.03  # after each answer; an idle server needs a moment to see that its copies have ended
CHUNK, MAX_RUNNING = 1024, 16
POOL, HOST_RATIO = 12_000, 2.0  # the agents' KV is four times the device pool and twice the host pool


@dataclass
class Turn:
    agent: int
    turn: int

    @property
    def rid(self) -> str:
        return f"{self.agent}/{self.turn}"


@dataclass
class Day:
    """Builds prompts from the answers so far. `seen`: what the server said of each request, in order of answers."""

    outputs: dict[int, list[list[int]]] = field(default_factory=dict)
    seen: dict[str, dict[str, Any]] = field(default_factory=dict)

    def prompt(self, turn: Turn) -> list[int]:
        from tokencake_sglang.emulator.tokens import text_tokens

        lengths = random.Random(turn.agent)
        tokens = list(text_tokens(f"system {turn.agent % SYSTEMS}", SYSTEM_TOKENS)) + list(
            text_tokens(f"user {turn.agent}", lengths.randrange(150, 1000)))
        for index, output in enumerate(self.outputs.get(turn.agent, ())):
            result = text_tokens(f"tool {turn.agent} {index}", lengths.randrange(60, 300))
            tokens += [*output, *result]
        return tokens

    def answered(self, turn: Turn, output: list[int], **seen: Any) -> None:
        self.outputs.setdefault(turn.agent, []).append(output)
        self.seen[turn.rid] = seen

    def result(self) -> dict[str, Any]:
        return {"outputs": {str(agent): outputs for agent, outputs in self.outputs.items()}, "seen": self.seen}


def one_by_one() -> list[list[Turn]]:
    """One lane: turns of all agents, shuffled; an agent's in order."""
    chooser, left = random.Random(5), {agent: 0 for agent in range(AGENTS)}
    lane = []
    while left:
        agent = chooser.choice(sorted(left))
        lane.append(Turn(agent, left[agent]))
        left[agent] += 1
        if left[agent] == TURNS:
            del left[agent]
    return [lane]


def in_lanes() -> list[list[Turn]]:
    """The same turns in several lanes, each with the agents of its own."""
    (lane,) = one_by_one()
    return [[turn for turn in lane if turn.agent % LANES == index] for index in range(LANES)]


ORDERS: dict[str, Callable[[], list[list[Turn]]]] = {"one by one": one_by_one, "in lanes": in_lanes}


def computed_without_loss() -> int:
    """Prompt tokens computed by a server that never loses KV: each agent's own once, each system text once."""
    day = Day(outputs={agent: [[0] * NEW_TOKENS] * (TURNS - 1) for agent in range(AGENTS)})
    own = sum(len(day.prompt(Turn(agent, TURNS - 1))) - SYSTEM_TOKENS for agent in range(AGENTS))
    return own + SYSTEMS * SYSTEM_TOKENS


def play_real(server: Any, order: str) -> dict[str, Any]:
    """Send a day to a real server (tests.support.server.ServerProcess)."""
    day, errors = Day(), []
    counters = {"evicted": "sglang:evicted_tokens_total", "loaded": "sglang:load_back_tokens_total"}
    before = {name: server.metric(metric) for name, metric in counters.items()}

    def play(lane: list[Turn]) -> None:
        try:
            for turn in lane:
                prompt, begin = day.prompt(turn), time.perf_counter()
                answer = server.generate(prompt, NEW_TOKENS, sampling_params={"ignore_eos": True})
                meta = answer["meta_info"]
                tiers = meta.get("cached_tokens_details") or {"device": meta["cached_tokens"], "host": 0}
                day.answered(turn, answer["output_ids"], tokens=len(prompt), cached=meta["cached_tokens"],
                             device=tiers["device"], host=tiers["host"], latency_s=time.perf_counter() - begin)
                time.sleep(PAUSE_S)
        except BaseException as error:
            errors.append(error)
            raise

    threads = [threading.Thread(target=play, args=(lane,)) for lane in ORDERS[order]()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    time.sleep(1)  # the counters of copies that have just ended
    counted = {name: int(server.metric(metric) - before[name]) for name, metric in counters.items()}
    return {**day.result(), **counted}


class Counters:
    """What SGLang's metrics collector of a radix cache would count."""

    def __init__(self) -> None:
        self.evicted = self.loaded = 0

    def increment_eviction_num_tokens(self, tokens: int) -> None:
        self.evicted += tokens

    def increment_load_back_num_tokens(self, tokens: int) -> None:
        self.loaded += tokens

    def observe_eviction_duration(self, seconds: float) -> None: ...

    def observe_load_back_duration(self, seconds: float) -> None: ...


def play_emulated(order: str, outputs: dict[str, list[list[int]]], profile: dict[str, Any]) -> dict[str, Any]:
    """Send a day to an emulated server whose model answers `outputs` (by agent), on a device of `profile`."""
    import tempfile
    from pathlib import Path

    from tokencake_sglang.emulator.model import write_model
    from tokencake_sglang.emulator.profile import DeviceProfile
    from tokencake_sglang.emulator.run import server_args
    from tokencake_sglang.emulator.server import EMULATED_LAYERS, EmulatedServer
    from tokencake_sglang.emulator.spec import RunSpec

    device = DeviceProfile.from_dict(profile)
    spec = RunSpec.from_dict({
        "workload": {"name": "none"}, "pool_tokens": POOL, "host_ratio": HOST_RATIO,
        "configuration": {"name": "stock", "server_args": {
            "enable_hierarchical_cache": True, "hicache_write_policy": "write_through",
            "chunked_prefill_size": CHUNK, "max_running_requests": MAX_RUNNING}}})
    with tempfile.TemporaryDirectory() as directory:
        write_model(Path(directory), EMULATED_LAYERS, 32768)
        server = EmulatedServer(device, server_args(spec, device, directory), oracle=False)
    counters = server.scheduler.tree_cache.metrics_collector = Counters()
    day = Day()
    _send_all(server, day, ORDERS[order](), outputs)
    server.run()
    return {**day.result(), "evicted": counters.evicted, "loaded": counters.loaded}


def _send_all(server: Any, day: Day, lanes: list[list[Turn]], outputs: dict[str, list[list[int]]]) -> None:
    """Let `server` get the turns of each lane, each PAUSE_S after the answer to the one before."""
    from array import array

    from tokencake_sglang.emulator.clock import SECOND
    from tokencake_sglang.emulator.tokens import OutputPlan
    from tokencake_sglang.emulator.transport import AnswerReader

    clock, sent_ns = server.clock, {}
    of_rid = {turn.rid: (turn, lane) for lane in lanes for turn in lane}

    def send(lane: list[Turn]) -> None:
        if lane:
            turn = lane.pop(0)
            sent_ns[turn.rid] = clock.now_ns
            plan = OutputPlan.of(outputs[str(turn.agent)][turn.turn])
            server.submit(turn.rid, array("q", day.prompt(turn)), plan, NEW_TOKENS)

    def answered(rid: str, answer: Any) -> None:
        turn, lane = of_rid[rid]
        day.answered(turn, list(answer.output), tokens=answer.prompt_tokens, cached=answer.cached_tokens,
                     device=answer.cached_device_tokens, host=answer.cached_host_tokens,
                     latency_s=(clock.now_ns - sent_ns[rid]) / SECOND)
        clock.after(PAUSE_S * SECOND, lambda: send(lane))

    server.on_output = AnswerReader(answered)
    server.is_done = lambda: len(day.seen) == len(of_rid)
    for lane in lanes:
        clock.after(0, lambda lane=lane: send(lane))
