"""First tokens after a tool, turn by turn against another run of the same programs, where a load takes long.

A turn is a call that came back from a tool. Its load on demand is what the call itself brought back from the host; it
is long where the profile's link takes over LONG_LOAD_S for it.
"""

from __future__ import annotations

from typing import Any

from tokencake_sglang.emulator.profile import DeviceProfile
from tokencake_sglang.emulator.result import quantile

LONG_LOAD_S = 0.05
KINDS = ("stock", "either", "other")
Turn = tuple[float, bool]  # seconds to the first token, and whether its load was long


def turns_of(document: dict[str, Any]) -> dict[tuple[str, str], Turn]:
    """The turns of a run by application and call."""
    found = {}
    profile = None
    for call in document["calls"]:
        if not call["after_tool_s"] or call["first_token_s"] is None:
            continue
        profile = profile or DeviceProfile.from_dict(document["profile"])
        load_s = profile.copy_s(call["cached_host_tokens"], 1, "h2d")
        found[call["app_id"], call["name"]] = (call["first_token_s"] - call["submitted_s"], load_s > LONG_LOAD_S)
    return found


def compared(mine: dict[tuple[str, str], Turn], stock: dict[tuple[str, str], Turn]) -> dict[str, float | None]:
    """Over the turns that both runs have: those with a long load in `stock`, in either run, and in none ("other"); how
    many, the median of both runs, and the ratio of these medians."""
    both = [(mine[turn], stock[turn]) for turn in mine if turn in stock]
    chosen = {
        "stock": [pair for pair in both if pair[1][1]],
        "either": [pair for pair in both if pair[0][1] or pair[1][1]],
        "other": [pair for pair in both if not (pair[0][1] or pair[1][1])]}
    figures: dict[str, float | None] = {}
    for kind in KINDS:
        p50, stock_p50 = (quantile([pair[side][0] for pair in chosen[kind]], 0.5) for side in (0, 1))
        figures |= {f"{kind}_turns": len(chosen[kind]), f"{kind}_p50_s": p50, f"{kind}_stock_p50_s": stock_p50,
                    f"{kind}_ratio": p50 / stock_p50 if p50 is not None and stock_p50 else None}
    return figures
