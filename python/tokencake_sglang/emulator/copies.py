"""KV copies of HiCache on the emulated links: they take the profile's time and land at their virtual end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from tokencake_sglang.emulator.clock import SECOND
from tokencake_sglang.emulator.device import EmulatedDevice
from tokencake_sglang.emulator.oracle import KvOracle


class EmulatedCopies:
    """Stands for `transfer_kv_direct` (sgl_kernel), which SGLang's host pool calls once per layer to load and once
    for all layers to back up. The stream that is current when it is called says the direction.
    """

    def __init__(self, device: EmulatedDevice, profile: Any, layers: int, oracle: KvOracle | None) -> None:
        self._device = device
        self._profile = profile
        self._layers = layers
        self._oracle = oracle
        self.tokens = {"h2d": 0, "d2h": 0}
        self.operations = {"h2d": 0, "d2h": 0}
        self.load_stream: Any = None
        self._next_layer = 0
        self._loads: list[tuple[int, torch.Tensor]] = []  # end and device slots of those under way

    def transfer(self, src_layers: Sequence[torch.Tensor], dst_layers: Sequence[torch.Tensor],
                 src_indices: torch.Tensor, dst_indices: torch.Tensor, page_size: int) -> None:
        stream = self._device.current_stream()
        direction = "h2d" if stream is self.load_stream else "d2h"
        layers = self._which_layers(direction)
        count = len(src_indices)
        seconds = self._profile.copy_s(count, self._runs(dst_indices), direction) * len(layers) / self._layers
        begin, end = stream.charge(seconds * SECOND)
        if layers.start == 0:
            self.tokens[direction] += count
            self.operations[direction] += 1
        if direction == "h2d" and layers.stop == self._layers:
            now = self._device.clock.now_ns
            self._loads = [load for load in self._loads if load[0] > now] + [(end, dst_indices)]
        copy = None
        if self._oracle is not None:
            copy = self._oracle.start_copy(direction, layers, src_indices, dst_indices)
            self._device.clock.at(begin, copy.begin, wakes=False)
            self._device.clock.at(end, copy.end, wakes=False)
        self._device.clock.at(end, _landed)

    def loading(self, slots: torch.Tensor) -> int:
        """How many of these device slots a load under way has yet to fill."""
        now = self._device.clock.now_ns
        return sum(int(torch.isin(slots, filled.to(slots.dtype)).sum()) for end, filled in self._loads if end > now)

    def _which_layers(self, direction: str) -> range:
        """A backup moves all layers at once; a load calls once per layer, in order."""
        if direction == "d2h":
            return range(self._layers)
        layer, self._next_layer = self._next_layer, (self._next_layer + 1) % self._layers
        return range(layer, layer + 1)

    def _runs(self, indices: torch.Tensor) -> int:
        """Contiguous runs of slots, counted only where the profile charges for them."""
        if not getattr(self._profile, "copy_run_s", 0.0) or len(indices) < 2:
            return 1
        return int((indices[1:] - indices[:-1] != 1).sum()) + 1


def _landed() -> None:
    """Wakes an idle server, which collects finished copies in its next step."""
