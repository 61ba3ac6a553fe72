"""Calls of the scheduler that no request waits for."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from tokencake_sglang.server.routes import Gateway

logger = logging.getLogger(__name__)


class Background:
    """Each call in a task of its own, on the event loop that sends it; its length is how many are under way.

    `failure` is what the log says when a call fails.
    """

    def __init__(self, gateway: Gateway, failure: str) -> None:
        self._gateway = gateway
        self._failure = failure
        self._running: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._running)

    def send(self, op: str, payload: dict[str, Any], ended: Callable[[int], None] | None = None) -> None:
        """`ended` is told the status, 500 where the call raised. Without it a status of 429 or more is logged: below
        that the scheduler has refused what it does not know (any more)."""
        task = asyncio.get_running_loop().create_task(self._call(op, payload, ended))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _call(self, op: str, payload: dict[str, Any], ended: Callable[[int], None] | None) -> None:
        status = 500
        try:
            status, _ = await self._gateway.call(op, payload)
        except Exception:
            logger.warning(self._failure, exc_info=True)
        else:
            if ended is None and status >= 429:
                logger.warning("%s: the scheduler answered %d", self._failure, status)
        if ended is not None:
            ended(status)
