"""Which nodes of a radix tree hold the KV of a sequence; looking neither refreshes nor splits them."""

from __future__ import annotations

from array import array
from typing import Any


def path_of(tree: Any, tokens: array) -> list[tuple[Any, int]]:
    """The nodes along `tokens` on either tier, from the root side on, and how many tokens each shares with them. Only
    of the last it may be fewer than the node has."""
    from sglang.srt.mem_cache.radix_cache import RadixKey

    path, node, position = [], tree.root_node, 0
    while position < len(tokens):
        child = node.children.get(RadixKey(tokens[position:position + tree.page_size]).child_key(tree.page_size))
        if child is None:
            break
        shared = _common(child.key.token_ids[:len(child.key)], tokens[position:position + len(child.key)])
        if shared:
            path.append((child, shared))
        if shared < len(child.key):
            break
        node, position = child, position + shared
    return path


def kv_of(node: Any) -> Any:
    """What holds a node's slots: the node, or the full-attention part of a node of the unified tree."""
    parts = getattr(node, "component_data", None)
    return node if parts is None else parts[0]


def _common(first: Any, second: Any) -> int:
    """How many tokens at their start are equal."""
    if first == second:
        return len(first)
    low, high = 0, min(len(first), len(second))
    while low < high:
        middle = (low + high + 1) // 2
        if first[:middle] == second[:middle]:
            low = middle
        else:
            high = middle - 1
    return low
