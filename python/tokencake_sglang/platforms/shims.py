"""What SGLang does only with CUDA, done with torch on the CPU: the host pool, the KV copy, the grammar bitmask."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def alloc_host_memory(dims: tuple, dtype: torch.dtype, device: str, pin_memory: bool, allocator) -> torch.Tensor:
    """Host KV pool of shape ``dims`` from SGLang's allocator. Nothing to register: there is no device to pin it for."""
    return allocator.allocate(dims, dtype=dtype, device=device)


def transfer_kv_direct(
    src_layers: Sequence[torch.Tensor],
    dst_layers: Sequence[torch.Tensor],
    src_indices: torch.Tensor,
    dst_indices: torch.Tensor,
    page_size: int,
) -> None:
    """Copy KV slots between pools: ``dst[dst_indices[i]] = src[src_indices[i]]`` in every pair of layers.

    Args:
        src_layers, dst_layers: pools of shape [slots, heads, head_dim], pairwise.
        src_indices, dst_indices: [num_tokens] slots, the targets without repetition.
        page_size: slots per page; whole pages are asked for, in any order and with any slots.

    Raises:
        ValueError: if the index lists differ in length or do not fill whole pages.
    """
    if len(src_indices) != len(dst_indices) or len(src_indices) % page_size:
        raise ValueError(
            f"A KV copy needs equally many source and target slots, in whole pages of {page_size}; "
            f"got {len(src_indices)} and {len(dst_indices)}."
        )
    for src, dst in zip(src_layers, dst_layers, strict=True):
        dst.index_copy_(0, dst_indices, src.index_select(0, src_indices))


def allocate_vocab_mask(vocab_size: int, batch_size: int, device) -> torch.Tensor:
    """xgrammar's bitmask [batch_size, ceil(vocab_size / 32)] int32, all tokens allowed, in ordinary memory."""
    from xgrammar import bitmask_dtype, get_bitmask_shape

    return torch.full(get_bitmask_shape(batch_size, vocab_size), -1, dtype=bitmask_dtype)


def apply_vocab_mask(logits: torch.Tensor, vocab_mask: torch.Tensor) -> None:
    """Set the logits [batch_size, vocab_size] of forbidden tokens to -inf, in place, with xgrammar's CPU kernel."""
    from xgrammar import apply_token_bitmask_inplace

    apply_token_bitmask_inplace(logits, vocab_mask)


def install() -> None:
    """Put the functions above where SGLang looks for them. Called once in each process that runs a model."""
    from sglang.srt.constrained.xgrammar_backend import XGrammarGrammar, XGrammarGrammarBackend
    from sglang.srt.mem_cache.pool_host import common, mha

    common.ALLOC_MEMORY_FUNCS["cpu"] = alloc_host_memory
    mha.transfer_kv_direct = transfer_kv_direct
    XGrammarGrammarBackend.allocate_vocab_mask = staticmethod(allocate_vocab_mask)
    XGrammarGrammarBackend.apply_vocab_mask = staticmethod(apply_vocab_mask)
    XGrammarGrammar.allocate_vocab_mask = (
        lambda self, vocab_size, batch_size, device: allocate_vocab_mask(vocab_size, batch_size, device)
    )
    XGrammarGrammar.apply_vocab_mask = lambda self, logits, vocab_mask: apply_vocab_mask(logits, vocab_mask)
