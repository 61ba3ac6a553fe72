"""Copies to the host: offloads, which then take the KV off the device, and backups, which leave it there.

Two-phase: nodes without a host copy are backed up first (SGLang locks them until the copy is acknowledged), and
only then leave the device, leaf first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tokencake_sglang.core.plan import MoveDone, Outcome
from tokencake_sglang.engine.cache import TokenCakeHiRadixCache
from tokencake_sglang.engine.owners import RANK_ORDINARY, owners_of


@dataclass
class _Offload:
    nodes: list[Any]  # leaf side first
    leaves_device: bool = True  # a backup only copies

    @property
    def kind(self) -> str:
        return "offload" if self.leaves_device else "backup"


class Offloads:
    """Those under way, by agent; `done` collects the ends. Equal on every rank."""

    def __init__(self, cache: TokenCakeHiRadixCache, done: list[MoveDone]) -> None:
        self.cache = cache
        self.under_way: dict[str, _Offload] = {}
        self.done = done

    def forget(self, key: str) -> None:
        """The agent is gone: its KV stays where it is."""
        move = self.under_way.pop(key, None)
        if move is not None:
            self.done.append(MoveDone(key, move.kind, 0))

    def reset(self) -> None:
        for key in list(self.under_way):
            self.forget(key)

    def report(self) -> list[dict[str, Any]]:
        return [{"agent": key, "kind": move.kind, "tokens": sum(len(node.key) for node in move.nodes)}
                for key, move in self.under_way.items()]

    def start(self, key: str, protect: bool) -> Outcome:
        nodes = [n for n in self.cache.owners.unshared(key) if n.value is not None]
        nodes.sort(key=self.cache.get_height)
        missing = self._without_host_copy(nodes)
        wanted = sum(len(n.key) for n in missing)
        if not self._host_has_room(wanted):
            return Outcome(False, reason="host_full")
        shortfall = wanted - self.cache.token_to_kv_pool_host.available_size()
        if shortfall > 0:  # write_backup would push out a whole node's length, protected KV too
            self.cache.evict_host(shortfall)
        for node in missing:
            if self.cache.write_backup(node) == 0:
                break
        nodes.reverse()
        if not any(n.backuped for n in nodes):
            return Outcome(False, reason="nothing_to_move" if not nodes else "host_full")
        self.under_way[key] = _Offload(nodes)
        if protect:
            self.cache.owners.protected[key] = None
        return Outcome(True, sum(len(n.key) for n in nodes))

    def start_backup(self, key: str) -> Outcome:
        """Copies of what is worth more than what has to leave the host for it, root side first."""
        nodes = [n for n in self.cache.owners.unshared(key) if n.value is not None]
        copied = []
        for node in self._without_host_copy(nodes):
            if not self.cache.make_host_room(len(node.key), self.cache.worth.on_host(node)):
                break
            if self.cache.write_backup(node) == 0:
                break
            copied.append(node)
        if not copied:
            return Outcome(False, reason="host_full" if nodes else "nothing_to_move")
        self.under_way[key] = _Offload(copied, leaves_device=False)
        return Outcome(True, sum(len(n.key) for n in copied))

    def _without_host_copy(self, nodes: list[Any]) -> list[Any]:
        """`nodes` and their ancestors that have no host copy, root side first (a copy needs its parent's)."""
        missing: dict[int, Any] = {}
        for node in nodes:
            while node is not self.cache.root_node and not node.backuped and node.id not in missing:
                missing[node.id] = node
                node = node.parent
        return sorted(missing.values(), key=self.cache.get_height)

    def _host_has_room(self, tokens: int) -> bool:
        """Whether `tokens` fit on the host without pushing out KV that is protected."""
        room = self.cache.token_to_kv_pool_host.available_size()
        if room >= tokens:
            return True
        for node in self.cache.evictable_host_leaves:
            if node.host_ref_counter == 0 and self.cache.owners.rank(node) <= RANK_ORDINARY:
                room += len(node.host_value)
                if room >= tokens:
                    return True
        return False

    def go_on(self, key: str) -> None:
        """Once every copy is acknowledged, take off the device what nobody else uses."""
        move = self.under_way[key]
        nodes = move.nodes
        if any(n.write_through_pending_id is not None for n in nodes if n.value is not None):
            return
        if not move.leaves_device:
            del self.under_way[key]
            self.done.append(MoveDone(key, move.kind, sum(len(n.key) for n in nodes if n.backuped)))
            return
        moved = 0
        for node in nodes:
            if self._may_leave(node, key):
                self._clear_dead_below(node)
                if all(child.value is None for child in node.children.values()):
                    moved += self.cache._evict_backuped(node)
        del self.under_way[key]
        self.done.append(MoveDone(key, "offload", moved))

    def _clear_dead_below(self, node: Any) -> None:
        """Evict dead KV that continues `node` (an ended agent's); SGLang cannot take a node off the device before
        its children."""
        path = [child for child in node.children.values() if child.id in self.cache.owners.dead]
        below = []
        while path:
            child = path.pop()
            below.append(child)
            path.extend(child.children.values())
        for child in reversed(below):
            if child.value is None or child.lock_ref > 0:
                continue
            if child.backuped:
                self.cache._evict_backuped(child)
            elif not child.children:
                self.cache._evict_regular(child)

    def _may_leave(self, node: Any, key: str) -> bool:
        """Whether it is on both tiers, in nobody's use, and this agent's alone."""
        return (
            node.value is not None and node.backuped and node.lock_ref == 0 and owners_of(node).keys() == {key})

    def cancel(self, key: str) -> Outcome:
        if key not in self.under_way or not self.under_way[key].leaves_device:
            return Outcome(False, reason="no offload is under way")
        del self.under_way[key]
        self.done.append(MoveDone(key, "offload", 0))
        return Outcome(True)
