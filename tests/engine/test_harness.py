"""The fixture itself: requests leave KV behind that later requests find, and the audit finds what is wrong."""

from __future__ import annotations

import pytest

A = list(range(100, 148))


def test_a_second_request_finds_the_kv_of_the_first_and_the_books_agree(make):
    h = make()
    done = h.serve(A, "a", steps=20)
    h.audit()
    assert h.on_device(done) == len(done) >= 48
    req = h.start(done + [7], "a")
    assert len(req.prefix_indices) >= len(done)
    h.decode(req, 3)
    h.audit()
    h.finish(req)
    h.audit()


def test_the_audit_sees_a_lost_slot_and_a_lost_owner(make):
    h = make()
    h.serve(A, "a")
    del h.nodes()[0].agent_owners["a"]
    with pytest.raises(AssertionError):
        h.audit()
    h.flush()
    h.serve(A, "a")
    h.allocator.alloc(16)
    with pytest.raises(AssertionError, match="slots lost"):
        h.audit()
