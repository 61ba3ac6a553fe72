"""A clock for copies, and caches of either page size that use it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.support.cache_fixture import CacheHarness
from tests.support.transfer_clock import TransferClock


@pytest.fixture
def clock(monkeypatch) -> TransferClock:
    clock = TransferClock()
    clock.install(monkeypatch)
    return clock


@pytest.fixture(params=[1, 16], ids=["page1", "page16"])
def page(request) -> int:
    return request.param


@pytest.fixture
def make(clock, page) -> Callable[..., Any]:
    """Build a CacheHarness of the page size under test, on the clock."""
    def build(**kwargs: Any) -> CacheHarness:
        return CacheHarness(clock, page_size=page, **kwargs)

    return build


class Moves:
    """A harness with a KvMover that is stepped by hand; `done` collects what the mover reports."""

    def __init__(self, harness: CacheHarness) -> None:
        from tokencake_sglang.engine.moves import KvMover

        self.h = harness
        self.mover = KvMover(harness.cache, harness)
        self.done: list[Any] = []
        harness.cache.on_step = lambda: self.done.extend(self.mover.take_completions())
        harness.cache.on_reset = self.mover.reset

    def offload(self, key: str) -> Any:
        from tokencake_sglang.core.plan import Offload

        return self.mover.execute(key, Offload(1e9))

    def upload(self, key: str, quota: int = 10**6) -> Any:
        from tokencake_sglang.core.plan import Upload

        return self.mover.execute(key, Upload(quota, 1e9))

    def cancel(self, key: str) -> Any:
        from tokencake_sglang.core.plan import CancelOffload

        return self.mover.execute(key, CancelOffload())

    def send_away(self, key: str) -> None:
        """Offload all that `key` owns alone, to the end."""
        assert self.offload(key).accepted
        self.h.settle()
        self.h.audit()


@pytest.fixture
def moving(make) -> Callable[..., Moves]:
    return lambda **kwargs: Moves(make(**kwargs))
