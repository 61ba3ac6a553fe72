"""Who is speaking: the app around a program run, and the agent behind each of its states."""

from __future__ import annotations

import itertools
import uuid
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import Context, ContextVar, copy_context
from typing import Any

from tokencake_sglang.core.errors import MetadataError
from tokencake_sglang.frontend.graph_upload import following

MAX_ID_CHARS = 256
_APP: ContextVar[str | None] = ContextVar("tokencake_app", default=None)
_AGENT: ContextVar[AgentContext | None] = ContextVar("tokencake_agent", default=None)
Variables = Context  # of a program: the contextvars that its tools see


def check_id(field: str, value: Any) -> str:
    """Return `value` if it may be sent as an id (1 to 256 printable characters), else raise MetadataError."""
    if isinstance(value, str) and 1 <= len(value) <= MAX_ID_CHARS and value.isprintable():
        return value
    raise MetadataError(f"{field}: found {value!r}; allowed is a string of 1 to {MAX_ID_CHARS} printable characters")


@contextmanager
def app(app_id: str, graph: Any = None) -> Iterator[str]:
    """Programs started inside this block belong to the application `app_id`, on whatever threads they run.

    `graph` is the plan that they follow, which servers are told once. Raises GraphError if it is none.
    """
    check_id("app_id", app_id)
    with following(app_id, graph):
        token = _APP.set(app_id)
        try:
            yield app_id
        finally:
            _APP.reset(token)


def current_app() -> str | None:
    """The app of the innermost `with app(...)` around the caller, or None."""
    return _APP.get()


def current_agent() -> AgentContext | None:
    """The agent whose program, or whose tool, the caller is part of, or None."""
    return _AGENT.get()


@contextmanager
def speaking(context: AgentContext) -> Iterator[None]:
    """The body is the program of this agent: what it starts belongs to its app and has it as parent."""
    app_token, agent_token = _APP.set(context.app_id), _AGENT.set(context)
    context.variables = copy_context()
    try:
        yield
    finally:
        _AGENT.reset(agent_token)
        _APP.reset(app_token)


class AgentContext:
    """The identity of one program state, and of the states forked from it.

    `announces_end`: whether the end of this state is reported to the server (it is, for agents). `stopped` is what the
    program gets at its next step if it was told to stop. `parent` is the agent in whose program this one was started:
    its id is part of this one's, "planner-1f/searcher-2e". Without an app, all below one agent count as its program.
    """

    def __init__(
        self,
        agent_type: str,
        node_id: str | None = None,
        app_id: str | None = None,
        agent_id: str | None = None,
        announces_end: bool = False,
        parent: AgentContext | None = None,
    ):
        self.agent_type = agent_type
        self.node_id = node_id
        self.app_id = app_id
        self.agent_id = agent_id or _new_id(agent_type, parent)
        self.announces_end = announces_end
        self.parent = parent
        self.root_id: str | None = parent.root_id or parent.agent_id if parent else None
        self.backend: Any = None
        self.variables: Variables | None = None
        self.ended = False
        self.stopped: Exception | None = None
        self.child_executors: weakref.WeakSet[Any] = weakref.WeakSet()
        self._next_child = itertools.count()

    def fork(self) -> AgentContext:
        """The context of a forked state: the same agent type, and an id of its own under this one ("a1.0")."""
        child_id = f"{self.agent_id}.{next(self._next_child)}"
        if len(child_id) > MAX_ID_CHARS:
            child_id = None  # so deep in forks that a fresh id must do
        child = AgentContext(self.agent_type, self.node_id, self.app_id, child_id, self.announces_end, self.parent)
        child.root_id, child.backend = self.root_id or self.agent_id, self.backend
        if self.variables is not None:
            child.variables = copy_context()
            child.variables.run(_AGENT.set, child)
        return child

    def identity(self, default_app: str | None = None, graph_id: str | None = None) -> dict[str, str]:
        """What a request of this state carries as its `tokencake` object."""
        fields = {
            "app_id": self.app_id or default_app or self.root_id,
            "graph_id": graph_id,
            "node_id": self.node_id,
            "agent_type": self.agent_type,
            "agent_id": self.agent_id,
            "parent_agent_id": self.parent.agent_id if self.parent else None,
        }
        return {key: value for key, value in fields.items() if value is not None}


def _new_id(agent_type: str, parent: AgentContext | None) -> str:
    own = f"{agent_type[:128]}-{uuid.uuid4().hex[:12]}"
    below = f"{parent.agent_id}/{own}" if parent else own
    return below if len(below) <= MAX_ID_CHARS else own  # so deep below others that a fresh id must do
