"""Pools on the device: measures who has which tokens, and gives borrowers' resting KV up first. It never decides.

Every token of the device pool is in one account (`books`): pieces of the tree belong to the agents that own them, what
a running request computed beyond the tree to its agent, and the rest is free.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from tokencake_sglang.core.controller import Controller
from tokencake_sglang.core.spatial import SpatialScheduler, Waiting
from tokencake_sglang.core.spatial.ledger import MOST_PARTS, parts
from tokencake_sglang.core.spatial.pools import Account, Device, Pools, Tokens
from tokencake_sglang.core.spatial.pools.account import NOBODY, DeviceBooks
from tokencake_sglang.core.spatial.programs import AgentState
from tokencake_sglang.engine.cache import TokenCakeHiRadixCache, agent_key
from tokencake_sglang.engine.owners import owners_of
from tokencake_sglang.engine.requests import on_device, runs_any

Node = Any  # sglang.srt.mem_cache.radix_cache.TreeNode


class PoolMeter:
    """Looks at the device; changes nothing."""

    def __init__(self, cache: TokenCakeHiRadixCache, scheduler: Any) -> None:
        self.cache = cache
        self.scheduler = scheduler

    def running(self) -> list[Any]:
        """Requests that hold memory, each once."""
        found = {req.rid: req for req in on_device(self.scheduler) if not req.finished() and _holds(req)}
        return list(found.values())

    def used(self) -> dict[str, int]:
        """Tokens by running request; a piece of the tree that several use is split in equal parts."""
        found: dict[str, int] = {}
        users: dict[int, tuple[Node, list[str]]] = {}
        for req in self.running():
            found[req.rid] = self._beyond_tree(req)
            for node in _path(req.last_node):
                users.setdefault(node.id, (node, []))[1].append(req.rid)
        for node, rids in users.values():
            for rid, part in zip(rids, parts(len(node.key), len(rids)), strict=True):
                found[rid] += part
        return found

    def books(self) -> DeviceBooks:
        """All tokens of the device that are not free, by agent. Walks the whole tree."""
        books, moving, used = DeviceBooks(), self.cache.nodes_in_load(), set()
        for req in self.running():
            books.charge(Tokens(used=self._beyond_tree(req)), [agent_key(req)])
            used.update(node.id for node in _path(req.last_node))
        for node in self._device_nodes():
            tokens = len(node.key)
            if node.id in moving or node.write_through_pending_id is not None:
                piece = Tokens(in_transfer=tokens)
            else:
                piece = Tokens(used=tokens) if node.id in used else Tokens(cached=tokens)
            books.charge(piece, list(owners_of(node)))
        return books

    def _device_nodes(self) -> Iterator[Node]:
        stack = [self.cache.root_node]
        while stack:
            node = stack.pop()
            stack.extend(child for child in node.children.values() if child.value is not None)
            if node is not self.cache.root_node:
                yield node

    def _beyond_tree(self, req: Any) -> int:
        """Tokens of whole pages that the request holds and the tree does not."""
        page = self.cache.page_size
        return -(-req.kv.kv_allocated_len // page) * page - req.cache_protected_len


class DevicePools:
    """Between the queue and `Pools`: requests into values, answers into places of the victim queue."""

    def __init__(self, scheduler: Any, cache: TokenCakeHiRadixCache, controller: Controller,
                 spatial: SpatialScheduler, program_of: dict[str, str], state: AgentState) -> None:
        self.scheduler, self.cache, self.controller, self.spatial = scheduler, cache, controller, spatial
        self.pools = Pools(controller.config)
        self.pools.place = controller.runs.place
        self.pools.importance = lambda agent: controller.runs.importance(agent)[0]
        self.pools.returning = self._returning
        self.pools.order_of = self._order_of
        self.pools.agents_at_it = self._agents_at_it
        self.program_of = program_of
        self.state = state
        self.pools.on_denied = self._count
        self.meter = PoolMeter(cache, scheduler)
        self.recalled: dict[Account, int] = {}  # tokens that resting KV of each account is still to give back
        if self.pools.is_on:
            cache.worth.is_recalled = self._is_recalled
            cache.on_given_up = self._given_up

    def request_added(self, waiting: Waiting) -> None:
        expected = waiting.expected_tokens
        if expected is None:
            expected = self.spatial.lengths.expected(waiting.kind, waiting.max_new_tokens)
        before = self.pools.account_of.get(waiting.agent)
        self.pools.request_added(self.controller.now, waiting, min(expected, waiting.max_new_tokens))
        if self.recalled and before != self.pools.account_of.get(waiting.agent):
            for node in self.cache.owners.nodes.get(waiting.agent, {}).values():
                self.cache.owners.on_lowered(node)

    def step(self) -> None:
        """Before the queue is gone through."""
        if not self.pools.is_on:
            return
        now = self.controller.now
        if self.pools.is_due(now):
            seen = Device(self.scheduler.max_total_num_tokens, self.meter.used())
            self.pools.look(now, seen, self.spatial.holds_back)
            if not self.pools.wants_back:
                self.recalled = {}
            elif self.pools.recall_is_due(now):
                self._recall(self.pools.recall(now, self.held()))
        self.pools.begin_step(runs_any(self.scheduler))

    def passes_over(self, req: Any) -> bool:
        return self.pools.passes_over(self.controller.now, req.rid)

    def held(self) -> dict[Account, Tokens]:
        return self.meter.books().by(self.pools.account_of, NOBODY)

    def _count(self, reason: str) -> None:
        self.controller.counters[f"denied_by_{reason}"] += 1

    def _order_of(self, agent: str) -> int:
        """Of its program's arrival; a plain request has no claims before it."""
        program = self.spatial.programs.get(self.program_of.get(agent, ""))
        return 0 if program is None else program.order

    def _returning(self, by: float) -> Iterable[tuple[str, int]]:
        """Agents whose tools are expected back until then, with the tokens that they will need."""
        for agent in map(self.controller.agents.get, self.controller.records.open_agents()):
            stall = self.controller.stall_view(agent) if agent.calls.open and not agent.rids else None
            if stall is not None and stall.predicted_end <= by:
                output = self.spatial.lengths.expected(agent.identity.agent_type or "", 1 << 30)
                yield agent.key, self.cache.owners.path_tokens(agent.key) + int(output)

    def _agents_at_it(self) -> Iterable[str]:
        """Agents of programs that have requests, or are away for a call or a moment."""
        for program in self.spatial.programs.at_it(self.controller.now, self.state):
            yield from program.agents

    # -- what is lent ---------------------------------------------------------------------------------------

    def _recall(self, tokens: dict[Account, int]) -> None:
        is_more = any(account not in self.recalled for account in tokens)
        self.recalled = tokens
        if is_more:
            for node in sorted(self.cache.evictable_leaves, key=lambda node: node.id):
                if self._is_recalled(node):
                    self.cache.device_victims.push(node)

    def _accounts(self, node: Node) -> list[Account]:
        owners = owners_of(node)
        account = self.pools.account_of
        return [account.get(key, NOBODY) for key in owners] if len(owners) <= MOST_PARTS else []

    def _is_recalled(self, node: Node) -> bool:
        """Whether all its owners are to give something back."""
        if not self.recalled:
            return False
        accounts = self._accounts(node)
        return bool(accounts) and all(account in self.recalled for account in accounts)

    def _given_up(self, node: Node) -> None:
        """`node` leaves the device: its part of what is recalled is given back."""
        if not self.recalled or not self._is_recalled(node):
            return
        accounts = self._accounts(node)
        for account, part in zip(accounts, parts(len(node.key), len(accounts)), strict=True):
            left = self.recalled.get(account, 0) - part
            if left > 0:
                self.recalled[account] = left
            else:
                self.recalled.pop(account, None)


def _holds(req: Any) -> bool:
    return req.kv is not None and req.last_node is not None


def _path(node: Node) -> Iterator[Node]:
    """`node` and what is above it, without the root."""
    while node is not None and node.parent is not None:
        yield node
        node = node.parent
