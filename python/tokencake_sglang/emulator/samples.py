"""Who holds the KV cache, sampled over virtual time: running, stalled, shared, idle, free."""

from __future__ import annotations

from array import array
from typing import Any

from tokencake_sglang.emulator.clients import CallRun
from tokencake_sglang.emulator.clock import SECOND, START_NS
from tokencake_sglang.emulator.tree_path import kv_of, path_of
from tokencake_sglang.engine.requests import on_device

FIRST_INTERVAL_S = 0.25
RUNNING, STALLED = 1, 2


class KvSamples:
    """Samples at even virtual times; when there are too many, every second one goes and the interval doubles.

    A token is `running` if exactly one agent holds it and that one has a request on the device, `stalled` if
    exactly one holds it and waits for a tool, `shared` if several of both do, `idle` if it is only cached, `free`
    if the slot is empty. On the host, copies of what running requests use count as idle.
    """

    def __init__(self, server: Any, limit: int) -> None:
        self._server, self._limit = server, limit
        self._interval_ns = int(FIRST_INTERVAL_S * SECOND)
        self.stalled: dict[str, CallRun] = {}  # calls whose tool runs, by agent
        self.samples: list[dict[str, Any]] = []

    def start(self) -> None:
        if self._limit > 0:
            self._schedule()

    def _schedule(self) -> None:
        self._server.clock.at(self._server.clock.now_ns + self._interval_ns, self._take, wakes=False)

    def _take(self) -> None:
        self.samples.append(self.measure())
        if len(self.samples) >= 2 * self._limit:
            self.samples = self.samples[1::2]
            self._interval_ns *= 2
        self._schedule()

    def measure(self) -> dict[str, Any]:
        scheduler = self._server.scheduler
        tree = scheduler.tree_cache
        holders = self._holders(scheduler, tree)
        device = dict.fromkeys(("running", "stalled", "shared", "idle"), 0)
        host = dict.fromkeys(("stalled", "shared", "idle"), 0)
        in_use = in_tree = 0
        stack = list(tree.root_node.children.values())
        while stack:
            node = stack.pop()
            stack.extend(node.children.values())
            count, kinds = holders.get(node.id, (0, 0))
            kind = "shared" if count > 1 else "running" if kinds & RUNNING else "stalled" if kinds else "idle"
            kv = kv_of(node)
            if kv.value is not None:
                device[kind] += len(kv.value)
                in_tree += len(kv.value)
                in_use += len(kv.value) if kinds & RUNNING else 0
            if kv.host_value is not None:
                host["idle" if kind == "running" else kind] += len(kv.host_value)
        total, free = scheduler.max_total_num_tokens, scheduler.token_to_kv_pool_allocator.available_size()
        outside = max(0, total - free - in_tree)  # of running requests, not in the tree yet
        device["running"] += outside
        device["free"] = total - sum(device.values())
        pool = getattr(tree, "token_to_kv_pool_host", None)
        host["free"] = max(0, pool.size - sum(host.values())) if pool is not None else 0
        now = (self._server.clock.now_ns - START_NS) / SECOND
        return {"t_s": now, "device": device, "host": host, "in_use": in_use + outside}

    def _holders(self, scheduler: Any, tree: Any) -> dict[int, tuple[int, int]]:
        """Per node id: how many agents or requests hold it, and which kinds of them."""
        marks: dict[int, tuple[int, int]] = {}
        for req in _running(scheduler):
            node = tree.resolve_node_handle(req.last_node)
            while node is not None and node is not tree.root_node:
                count, kinds = marks.get(node.id, (0, 0))
                marks[node.id] = (count + 1, kinds | RUNNING)
                node = node.parent
        for call in self.stalled.values():
            for node in _path(tree, call.prompt + call.output):
                count, kinds = marks.get(node.id, (0, 0))
                marks[node.id] = (count + 1, kinds | STALLED)
        return marks


def _running(scheduler: Any) -> list[Any]:
    return list({id(req): req for req in on_device(scheduler) if not req.finished()}.values())


def _path(tree: Any, tokens: array) -> list[Any]:
    """The nodes whose tokens begin `tokens`, on either tier."""
    return [node for node, shared in path_of(tree, tokens) if shared == len(node.key)]
