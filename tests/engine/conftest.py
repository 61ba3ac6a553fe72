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
