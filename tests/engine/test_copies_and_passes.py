"""Copies against the pass that is running, and what the cache tells when they land."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from tokencake_sglang.engine.copy_fence import fence_copies

TOKENS = list(range(300, 364))


class Stream:
    def __init__(self) -> None:
        self.waited_for: list[object] = []

    def wait_stream(self, stream: object) -> None:
        self.waited_for.append(stream)


def fenced(freed: bool) -> tuple[SimpleNamespace, list[str]]:
    started: list[str] = []
    controller = SimpleNamespace(
        write_stream=Stream(), load_stream=Stream(), start_writing=lambda: started.append("write"),
        start_loading=lambda: started.append("load") or 7)
    fence_copies(controller, "forward", lambda: freed)
    return controller, started


@pytest.mark.parametrize("freed", [True, False])
def test_a_backup_always_waits_for_the_pass_and_a_load_only_if_slots_were_freed_under_it(freed):
    controller, started = fenced(freed)
    controller.start_writing()
    assert controller.start_loading() == 7
    assert started == ["write", "load"]
    assert controller.write_stream.waited_for == ["forward"]
    assert controller.load_stream.waited_for == (["forward"] if freed else [])


def test_slots_count_as_freed_under_a_pass_until_the_second_step_after_a_request_ended(make):
    h = make()
    h.step()
    h.step()
    assert not h.cache.freed_under_pass()
    req = h.start(TOKENS, "a")
    h.step()
    h.step()
    assert not h.cache.freed_under_pass()
    h.finish(req)
    assert h.cache.freed_under_pass()
    h.step()
    assert h.cache.freed_under_pass()
    h.step()
    assert not h.cache.freed_under_pass()


def test_the_cache_tells_once_that_backups_have_landed(make):
    h = make(write_through=True)
    told: list[int] = []
    h.cache.on_backups_landed = lambda: told.append(h.cache.evictable_size())
    h.serve(TOKENS, "a")
    h.step()
    assert told == [] and h.cache.evictable_size() == 0
    h.settle()
    assert told and told[-1] == len(TOKENS)
    count = len(told)
    h.step()
    assert len(told) == count


def test_memory_that_only_backups_hold_is_waited_for_and_not_refused(make):
    """Else SGLang aborts the last decoding request: the KV of those that have just ended is still being copied."""
    h = make(device_tokens=64, write_through=True)
    h.serve(TOKENS[:32], "a")
    assert h.cache.ongoing_write_through and h.cache.evictable_size() < 16
    assert h.evict(16) >= 16
    assert not h.cache.ongoing_write_through
    h.audit()


def test_an_eviction_that_needs_no_wait_waits_for_nothing(make):
    h = make(device_tokens=128, write_through=True)
    h.serve(TOKENS[:32], "a")
    h.settle()
    h.serve([7000 + i for i in range(24)], "b")
    assert h.cache.ongoing_write_through
    assert h.evict(8) >= 8
    assert h.cache.ongoing_write_through
