"""What moving and recomputing KV costs on this server, as formulas over learnt figures. All results are seconds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Costs:
    """Figures of the two cost models; `_token_s` are seconds per token, `_base_s` per operation.

    Copies are linear in tokens and in runs of neighbouring slots (paper section 4: linear in blocks; published code:
    12 GB/s and 3 microseconds a run). Prefill is linear in new tokens and in pairs of a new token and an earlier one.
    """

    upload_base_s: float = 0.001
    upload_token_s: float = 1.6e-5
    offload_base_s: float = 0.001
    offload_token_s: float = 1.6e-5
    run_s: float = 3e-6
    prefill_base_s: float = 0.005
    prefill_token_s: float = 1e-4
    prefill_pair_s: float = 0.0

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
