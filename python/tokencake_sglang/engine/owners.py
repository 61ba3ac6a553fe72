"""Which agents own which radix-tree nodes: tags on the nodes, kept right through insert, split and removal.

A node's owners are those whose requests went through it, so a parent has every owner of its children. A node
used by a request without identity is owned by `ANONYMOUS` as well and counts as shared for good. The tags
live on SGLang's TreeNode (an attribute `agent_owners`, and `owned_tokens`, its length, which SGLang counts at every
question); this class holds the way back, from agent to nodes. A tag says as well whether the node lies on the path
that its owner's last request took: what an agent has left behind (it has cut its prompt, or begun anew) is still its
own, but nobody expects it to be read again. How often such a branch was read again all the same is counted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tokencake_sglang.core.spatial.ledger import Ledger
from tokencake_sglang.core.types import Footprint

ANONYMOUS = ""
MANY_OWNERS = 32  # of one node: KV of so many is not followed, and taken to be wanted soon
RANK_DEAD, RANK_ORDINARY, RANK_PROTECTED = 0, 1, 2  # eviction classes, given up in this order
LEAST_RETURN_SHARE = 0.02  # what was left behind and went off both tiers cannot show that it was wanted
NO_OWNERS: dict[str, bool] = {}
NO_NODES: dict[int, Any] = {}

Node = Any  # sglang.srt.mem_cache.radix_cache.TreeNode


def owners_of(node: Node) -> dict[str, bool]:
    """The node's owners; true of each whose latest path goes through it."""
    return getattr(node, "agent_owners", NO_OWNERS)


def path_end(node: Node) -> int:
    """Tokens from the root to the end of `node`. That never changes, also when a part of it or of what is above it
    becomes a node of its own, so it is kept on the node."""
    unknown = []
    while node.parent is not None and getattr(node, "path_tokens", None) is None:
        unknown.append(node)
        node = node.parent
    end = 0 if node.parent is None else node.path_tokens
    for below in reversed(unknown):  # a loop, since a path may have more nodes than Python allows calls in calls
        below.path_tokens = end = end + len(below.key)
    return end


class OwnerIndex:
    """Owners of nodes. Does not change the tree; the cache calls it at the tree's own notifications."""

    def __init__(self) -> None:
        self.nodes: dict[str, dict[int, Node]] = {}  # agent -> its nodes by id
        self.leaf: dict[str, Node] = {}  # agent -> end of the path inserted last
        self.lost: dict[str, int] = {}  # agent -> tokens of that path that are on no tier any more
        self.protected: dict[str, None] = {}  # agents whose KV is evicted after all other
        self.dead: dict[int, Node] = {}  # nodes that had owners, all of which have ended
        self.dead_tokens = 0  # of those, what is on the device and not locked
        self._counted: dict[int, int] = {}  # dead node -> its part of that
        self.came_back: dict[str, None] = {}  # agents that have gone back to a branch that they had left
        self._branches_left = self._branches_returned_to = 0  # of agents that had not gone back to one before
        self.next_use: dict[str, float] = {}  # agent -> when its KV is expected to be used again
        self.on_lowered: Callable[[Node], None] = lambda node: None  # what a node is worth may have fallen
        self.on_lost_changed: Callable[[str], None] = lambda key: None
        self.ledger = Ledger()  # by program
        self.program_of: Callable[[str], str] = lambda key: key

    def clear(self) -> None:
        self.nodes.clear()
        self.leaf.clear()
        self.lost.clear()
        self.protected.clear()
        self.dead.clear()
        self._counted.clear()
        self.dead_tokens = 0
        self.next_use.clear()
        self.came_back.clear()
        self.ledger.clear()

    def tag_path(self, node: Node, key: str) -> None:
        """Make `key` an owner of `node` and of all its ancestors, which are its latest path from now on."""
        left, is_back = self.leaf.get(key), False
        if key != ANONYMOUS:
            self.leaf[key] = node
            if self.lost.pop(key, None) is not None:
                self.on_lost_changed(key)
        while node.parent is not None and not owners_of(node).get(key):
            if key in owners_of(node):
                node.agent_owners[key] = is_back = True  # it has come back to what it had left
            else:
                self._add(node, key)
            node = node.parent
        if key not in self.came_back:
            self._branches_left += left is not None and left is not node and left.parent is not None
            if is_back:
                self._branches_returned_to += 1
                self.came_back[key] = None
        while left is not None and left is not node and left.parent is not None:
            left.agent_owners[key] = False
            self.on_lowered(left)
            left = left.parent

    def on_split(self, new_node: Node, child: Node) -> None:
        new_node.owned_tokens, child.owned_tokens = len(new_node.key), len(child.key)
        self.ledger.split(new_node.id, new_node.owned_tokens, child.id, child.owned_tokens)
        for key, is_latest in owners_of(child).items():
            self._own(new_node, key, is_latest)
        if child.id in self.dead:
            self.dead[new_node.id] = new_node
            self.recount(new_node)
            self.recount(child)

    def on_removed(self, node: Node) -> None:
        self._revive(node)
        self.ledger.drop(node.id)
        for key in owners_of(node):
            mine = self.nodes.get(key)
            if mine is not None:
                mine.pop(node.id, None)
            if self.leaf.get(key) is node:
                self.lost[key] = self.lost.get(key, 0) + node.owned_tokens
                self.on_lost_changed(key)
                if node.parent is not None and node.parent.parent is not None:
                    self.leaf[key] = node.parent
                else:
                    del self.leaf[key]

    def forget(self, key: str) -> None:
        """The agent is gone: untag its nodes; those that nobody else owns are dead."""
        self.protected.pop(key, None)
        self.next_use.pop(key, None)
        self.leaf.pop(key, None)
        if self.lost.pop(key, None) is not None:
            self.on_lost_changed(key)
        self.came_back.pop(key, None)
        for node in self.nodes.pop(key, {}).values():
            del node.agent_owners[key]
            self.ledger.remove(node.id, self.program_of(key))
            if not node.agent_owners:
                self.dead[node.id] = node
                self.recount(node)
            self.on_lowered(node)

    def is_left_behind(self, node: Node) -> bool:
        """Whether all its owners have left it, and none of them has ever gone back to what it had left."""
        owners = owners_of(node)
        return bool(owners) and not any(owners.values()) and self.came_back.keys().isdisjoint(owners)

    @property
    def return_share(self) -> float:
        """How likely a branch that was left behind is read again. The first are taken to be."""
        return max(LEAST_RETURN_SHARE, (1 + self._branches_returned_to) / (1 + self._branches_left))

    def unprotect(self, key: str) -> None:
        """The agent's lease is over."""
        if self.protected.pop(key, self) is None:
            self._lower(key)

    def expect(self, key: str, at: float | None) -> None:
        """The agent's KV will be used again at that time (of the controller's clock); None: nobody knows when."""
        before = self.next_use.get(key)
        if at is None:
            self.next_use.pop(key, None)
        else:
            self.next_use[key] = at
        if before is not None and (at is None or at > before):
            self._lower(key)

    def _lower(self, key: str) -> None:
        for node in self.nodes.get(key, {}).values():
            self.on_lowered(node)

    def unshared(self, key: str) -> list[Node]:
        """Nodes that only this agent owns."""
        return [node for node in self.nodes.get(key, {}).values() if len(owners_of(node)) == 1]

    def rank(self, node: Node) -> int:
        """Eviction class of a node; the lowest goes first."""
        if node.id in self.dead:
            return RANK_DEAD
        if self.protected and not self.protected.keys().isdisjoint(owners_of(node)):
            return RANK_PROTECTED
        return RANK_ORDINARY

    def footprint(self, key: str) -> Footprint:
        device = host = unshared = backed_up = 0
        for node in self.nodes.get(key, NO_NODES).values():
            tokens, has_copy = node.owned_tokens, node.host_value is not None
            if node.value is not None:
                device += tokens
                if len(node.agent_owners) == 1:
                    unshared += tokens
                    if has_copy:
                        backed_up += tokens
            if has_copy:
                host += tokens
        restore, end = 0, self.leaf.get(key)
        node = end
        while node is not None and node.parent is not None and node.value is None:
            restore += node.owned_tokens
            node = node.parent
        return Footprint(device, host, unshared, restore, 0 if end is None else path_end(end), backed_up)

    def device_tokens(self, key: str) -> int:
        """Of `footprint`."""
        nodes = self.nodes.get(key, NO_NODES).values()
        return sum([node.owned_tokens for node in nodes if node.value is not None])

    def path_tokens(self, key: str) -> int:
        """Of `footprint`."""
        end = self.leaf.get(key)
        return 0 if end is None else path_end(end)

    def ending_at(self, node: Node) -> list[str]:
        """Agents whose latest paths end with `node`; none where it has so many owners that a look would take long."""
        owners = owners_of(node)
        if len(owners) > MANY_OWNERS:
            return []
        return [key for key in owners if self.leaf.get(key) is node]

    def evicted_path(self, key: str) -> list[Node]:
        """Nodes of the agent's latest path that are on the host only, root side first."""
        path = []
        node = self.leaf.get(key)
        while node is not None and node.parent is not None and node.value is None:
            path.append(node)
            node = node.parent
        path.reverse()
        return path

    def dead_evictable_tokens(self, enough: int) -> int:
        """Device tokens of dead, unlocked nodes, as far as there is need to know."""
        return min(enough, self.dead_tokens)

    def recount(self, node: Node) -> None:
        """A dead node has come or gone, from the device or altogether, or has been locked or unlocked."""
        free = node.id in self.dead and node.value is not None and node.lock_ref == 0
        tokens = node.owned_tokens if free else 0
        self.dead_tokens += tokens - self._counted.pop(node.id, 0)
        if tokens:
            self._counted[node.id] = tokens

    def recount_path(self, node: Node) -> None:
        """`node` and what is above it has been locked or unlocked. Nothing above a node that lives is dead."""
        while node.id in self.dead:
            self.recount(node)
            node = node.parent

    def _revive(self, node: Node) -> None:
        if self.dead.pop(node.id, None) is not None:
            self.recount(node)

    def _add(self, node: Node, key: str) -> None:
        node.owned_tokens = len(node.key)
        self.ledger.add(node.id, node.owned_tokens, self.program_of(key))
        self._own(node, key)

    def _own(self, node: Node, key: str, is_latest: bool = True) -> None:
        if not hasattr(node, "agent_owners"):
            node.agent_owners = {}
        node.agent_owners[key] = is_latest
        self._revive(node)
        if key != ANONYMOUS:
            self.nodes.setdefault(key, {})[node.id] = node
