"""Who is speaking: the app around a program run, and the agent behind each of its states."""

from __future__ import annotations

import itertools
import uuid
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from tokencake_sglang.core.errors import MetadataError

MAX_ID_CHARS = 256
_APP: ContextVar[str | None] = ContextVar("tokencake_app", default=None)


def check_id(field: str, value: Any) -> str:
    """Return `value` if it may be sent as an id (1 to 256 printable characters), else raise MetadataError."""
    if isinstance(value, str) and 1 <= len(value) <= MAX_ID_CHARS and value.isprintable():
        return value
    raise MetadataError(f"{field}: found {value!r}; allowed is a string of 1 to {MAX_ID_CHARS} printable characters")


@contextmanager
def app(app_id: str) -> Iterator[str]:
    """Programs started inside this block belong to the application `app_id`, on whatever threads they run."""
    token = _APP.set(check_id("app_id", app_id))
    try:
        yield app_id
    finally:
        _APP.reset(token)


def current_app() -> str | None:
    """The app of the innermost `with app(...)` around the caller, or None."""
    return _APP.get()


class AgentContext:
    """The identity of one program state, and of the states forked from it.

    `announces_end`: whether the end of this state is reported to the server (it is, for agents). `stopped` is what the
    program gets at its next step if it was told to stop.
    """

    def __init__(
        self,
        agent_type: str,
        node_id: str | None = None,
        app_id: str | None = None,
        agent_id: str | None = None,
        announces_end: bool = False,
    ):
        self.agent_type = agent_type
        self.node_id = node_id
        self.app_id = app_id
        self.agent_id = agent_id or f"{agent_type[:128]}-{uuid.uuid4().hex[:12]}"
        self.announces_end = announces_end
        self.ended = False
        self.stopped: Exception | None = None
        self.child_executors: weakref.WeakSet[Any] = weakref.WeakSet()
        self._next_child = itertools.count()

    def fork(self) -> AgentContext:
        """The context of a forked state: the same agent type, and an id of its own under this one ("a1.0")."""
        child_id = f"{self.agent_id}.{next(self._next_child)}"
        if len(child_id) > MAX_ID_CHARS:
            child_id = None  # so deep in forks that a fresh id must do
        return AgentContext(self.agent_type, self.node_id, self.app_id, child_id, self.announces_end)

    def identity(self, default_app: str | None = None) -> dict[str, str]:
        """What a request of this state carries as its `tokencake` object."""
        fields = {
            "app_id": self.app_id or default_app,
            "node_id": self.node_id,
            "agent_type": self.agent_type,
            "agent_id": self.agent_id,
        }
        return {key: value for key, value in fields.items() if value is not None}
