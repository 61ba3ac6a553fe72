"""Paged allocation of KV slots without Triton: the same pages in the same order as SGLang's own allocator."""

from __future__ import annotations

import torch
from sglang.srt.mem_cache.allocator.paged import PagedTokenToKVPoolAllocator, alloc_extend_naive


class TorchPagedTokenToKVPoolAllocator(PagedTokenToKVPoolAllocator):
    """SGLang's paged allocator with its two Triton kernels replaced by torch operations.

    Free pages, sorting, release and clearing are inherited unchanged. One difference: where too few pages are free,
    the kernels read past the free list and the result is thrown away; here that is checked first.
    """

    def alloc_extend(
        self,
        prefix_lens: torch.Tensor,
        prefix_lens_cpu: torch.Tensor,
        seq_lens: torch.Tensor,
        seq_lens_cpu: torch.Tensor,
        last_loc: torch.Tensor,
        extend_num_tokens: int,
        num_new_pages: int | None = None,
    ) -> torch.Tensor | None:
        """Slots for the tokens between ``prefix_lens`` and ``seq_lens`` of each request.

        Args:
            prefix_lens, seq_lens: [batch] tokens present before and after.
            prefix_lens_cpu, seq_lens_cpu: the same on the host; on this platform the same memory.
            last_loc: [batch] slot of each request's last token so far (-1 without a prefix).
            extend_num_tokens: sum of ``seq_lens - prefix_lens``.
            num_new_pages: pages that this takes, where the caller counted them already.

        Returns:
            [extend_num_tokens] int64 slots, request after request, or None when too few pages are free
            (nothing is taken then).
        """
        if self.debug_mode:
            assert torch.all((last_loc + 1) % self.page_size == prefix_lens % self.page_size)
        if self.need_sort and extend_num_tokens // self.page_size + len(prefix_lens) + 1 > len(self.free_pages):
            self.merge_and_sort_free()
        if num_new_pages is None:
            num_new_pages = int((self._num_pages(seq_lens_cpu) - self._num_pages(prefix_lens_cpu)).sum())
        if num_new_pages > len(self.free_pages):
            return None

        out_indices = torch.empty((extend_num_tokens,), dtype=torch.int64, device=self.device)
        alloc_extend_naive(
            prefix_lens, seq_lens, last_loc, self.free_pages, out_indices, self.page_size, self.device
        )
        self.free_pages = self.free_pages[num_new_pages:]
        if self.debug_mode:
            assert len(torch.unique(out_indices)) == len(out_indices)
        return out_indices

    def alloc_decode(
        self, seq_lens: torch.Tensor, seq_lens_cpu: torch.Tensor, last_loc: torch.Tensor
    ) -> torch.Tensor | None:
        """One slot for each request's next token: after its last one, or at the start of a fresh page.

        Args:
            seq_lens: [batch] tokens including the new one; ``seq_lens_cpu`` the same on the host.
            last_loc: [batch] slot of the token before the new one.

        Returns:
            [batch] int64 slots, or None when too few pages are free (nothing is taken then).
        """
        if self.debug_mode:
            assert torch.all((last_loc + 2) % self.page_size == seq_lens % self.page_size)
        if self.need_sort and len(seq_lens) > len(self.free_pages):
            self.merge_and_sort_free()

        starts_page = (seq_lens - 1) % self.page_size == 0
        num_new_pages = int(starts_page.sum())
        if num_new_pages > len(self.free_pages):
            return None

        out_indices = (last_loc + 1).to(torch.int64)
        out_indices[starts_page] = self.free_pages[:num_new_pages] * self.page_size
        self.free_pages = self.free_pages[num_new_pages:]
        if self.debug_mode:
            assert len(torch.unique(out_indices)) == len(out_indices)
        return out_indices

    def _num_pages(self, num_tokens: torch.Tensor) -> torch.Tensor:
        return (num_tokens + self.page_size - 1) // self.page_size
