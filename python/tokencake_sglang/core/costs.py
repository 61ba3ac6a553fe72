"""What moving and recomputing KV costs on this server, as formulas over learnt figures. All results are seconds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Costs:
    """Figures of the cost models; `_token_s` are seconds per token, `_base_s` per operation.

    Copies are linear in tokens and in runs of neighbouring slots (paper section 4: linear in blocks; published code:
    12 GB/s and 3 microseconds a run). Prefill is linear in new tokens and in pairs of a new token and an earlier one,
    decoding in requests and in the tokens of their contexts. `compute_*` are the arithmetic of any batch, without what
    reading memory takes: tokens, decoding ones too, and pairs of a prompt's tokens.
    """

    upload_base_s: float = 0.001
    upload_token_s: float = 1.6e-5
    offload_base_s: float = 0.001
    offload_token_s: float = 1.6e-5
    run_s: float = 3e-6
    prefill_base_s: float = 0.005
    prefill_token_s: float = 1e-4
    prefill_pair_s: float = 0.0
    compute_token_s: float = 1e-4
    compute_pair_s: float = 0.0
    decode_base_s: float = 0.02
    decode_request_s: float = 1e-5
    decode_token_s: float = 1e-7

    def upload_s(self, tokens: int, runs: int = 1) -> float:
        """From the host to the device."""
        return self.upload_base_s + tokens * self.upload_token_s + runs * self.run_s if tokens > 0 else 0.0

    def offload_s(self, tokens: int, runs: int = 1) -> float:
        """From the device to the host."""
        return self.offload_base_s + tokens * self.offload_token_s + runs * self.run_s if tokens > 0 else 0.0

    def prefill_s(self, tokens: int, position: int) -> float:
        """Computing `tokens` tokens behind `position` earlier ones."""
        if tokens <= 0:
            return 0.0
        return self.prefill_base_s + tokens * self.recompute_token_s(tokens, position)

    def recompute_token_s(self, tokens: int, position: int) -> float:
        """The same per token, without the cost of an operation."""
        return self.prefill_token_s + (position + tokens / 2) * self.prefill_pair_s

    def decode_s(self, requests: int, context: int) -> float:
        """One decode step of `requests` requests whose contexts are `context` tokens together."""
        return self.decode_base_s + requests * self.decode_request_s + context * self.decode_token_s

    def compute_s(self, tokens: int, pairs: float = 0.0) -> float:
        """The arithmetic of a batch of `tokens` tokens, whose prompts attend over `pairs` pairs of tokens."""
        return tokens * self.compute_token_s + pairs * self.compute_pair_s

    def to_tuple(self) -> tuple[float, ...]:
        """The figures in the order of the fields; `from_tuple` reads them."""
        return tuple(getattr(self, field.name) for field in fields(self))

    @classmethod
    def from_tuple(cls, figures: Sequence[float]) -> Costs:
        """Raises ValueError when the number of figures is not that of the fields."""
        expected = len(fields(cls))
        if len(figures) != expected:
            raise ValueError(f"Costs came as {len(figures)} figures; there are {expected}. Run one version everywhere.")
        return cls(*figures)

    def differs(self, other: Costs, share: float) -> bool:
        """Whether any figure is more than `share` (0.05: 5 %) away from that of `other`."""
        return any(abs(mine - its) > share * its for mine, its in zip(self.to_tuple(), other.to_tuple(), strict=True))
