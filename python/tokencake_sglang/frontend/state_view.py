"""What a tool call in a program may see of the state that it belongs to."""

from __future__ import annotations

from typing import Any

from tokencake_sglang.frontend.tool import ToolError


class StateView:
    """What the arguments of a call may look at: the state as it is when the call's turn has come."""

    def __init__(self, executor: Any):
        self._executor = executor

    def __getitem__(self, name: str) -> Any:
        variables = self._executor.variables
        if name not in variables:
            raise KeyError(f"variable {name!r} has no value yet when the call's turn comes; it has {sorted(variables)}")
        value = variables[name]
        return value.read_on(self._executor) if isinstance(value, ToolError) else value

    def __contains__(self, name: str) -> bool:
        return name in self._executor.variables

    def text(self) -> str:
        """The state's whole text so far."""
        return self._executor.text_

    def messages(self) -> list[dict[str, Any]]:
        """The state's finished chat messages so far."""
        return list(self._executor.messages_)
