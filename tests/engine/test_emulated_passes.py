"""The emulated forward pass: when it ends if its KV is still being loaded, layer by layer."""

from __future__ import annotations

import pytest

from tokencake_sglang.emulator.worker import _pipelined_end

LAYERS, DURATION = 10, 100


@pytest.mark.parametrize(("begin", "ready", "end"), [
    (50, [20, 40], 150),  # loaded before it begins
    (0, [5, 10], 101),  # a short load: only its first layer is waited for
    (0, [500, 1000], 1010),  # a long one: the last layer waits for the end of the load
    (0, [50, 100], 110),  # as long as the pass
    (30, [50, 100], 130),  # under way when the pass begins, and always ahead of it
])
def test_a_pass_waits_for_the_first_or_for_the_last_layer_of_a_load(begin, ready, end):
    assert _pipelined_end(begin, DURATION, ready, LAYERS) == end


def test_the_emulated_layers_stand_for_the_modelled_ones():
    """However many layers the stand-in model has, a load of equal length delays the pass equally."""
    for emulated in (2, 3, 5):
        ready = [300 * (layer + 1) // emulated for layer in range(emulated)]
        assert _pipelined_end(0, DURATION, ready, LAYERS) == 310
