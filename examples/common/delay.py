"""The stated pause that stands for the network and queueing time of a remote service."""

from __future__ import annotations

import time
import zlib


def delay_for(mean_s: float, key: str) -> float:
    """Half to one and a half times `mean_s` seconds, always the same for the same key."""
    return mean_s * (0.5 + (zlib.crc32(key.encode()) % 1001) / 1000)


def pause(mean_s: float, key: str) -> None:
    if mean_s > 0:
        time.sleep(delay_for(mean_s, key))
