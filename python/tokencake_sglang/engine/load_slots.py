"""More host-to-device copies in flight than SGLang's three.

SGLang keeps three sets of per-layer events and asserts when a fourth load starts (cache_controller.py,
LayerDoneCounter). Loads that start outside a prefill batch would reach that, so there are more slots here.
"""

from __future__ import annotations

from sglang.srt.managers.cache_controller import LayerDoneCounter, LayerLoadingEvent


class WideLayerDoneCounter(LayerDoneCounter):
    def __init__(self, num_layers: int, num_counters: int) -> None:
        super().__init__(num_layers)
        missing = num_counters - self.num_counters
        self.events.extend(LayerLoadingEvent(num_layers) for _ in range(missing))
        self.num_counters = len(self.events)

    def update_producer(self) -> int:
        """The next slot. Waits for its earlier load where SGLang would stop the process."""
        following = self.events[(self.producer_index + 1) % self.num_counters]
        following.finish_event.synchronize()
        return super().update_producer()
