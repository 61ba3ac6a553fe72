"""Fixtures of the frontend tests: a protocol peer per test, and a guard against hanging programs."""

from __future__ import annotations

import threading
import time

import pytest
from http_peer import HttpPeer


@pytest.fixture(autouse=True)
def no_test_hangs(request):
    request.node.add_marker(pytest.mark.timeout(60))


@pytest.fixture
def peer():
    server = HttpPeer()
    yield server
    server.close()


@pytest.fixture
def make_peer():
    servers = []

    def make(**options):
        servers.append(HttpPeer(**options))
        return servers[-1]

    yield make
    for server in servers:
        server.close()


@pytest.fixture
def endpoint(peer):
    import tokencake_sglang as tc

    return tc.Endpoint(peer.url, app_id="tests")


@pytest.fixture
def eventually():
    """Wait for something that a program's worker thread does after `run` has returned."""

    def wait(condition, seconds=20.0):
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, "the awaited condition never came true"
            threading.Event().wait(0.01)

    return wait
