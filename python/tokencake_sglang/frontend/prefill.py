"""Partial prefill: what is known of the next prompt is sent while a tool runs, so that its KV is there when it returns.

It changes no output: the server computes the KV of a text that starts the next prompt, generates nothing, and the
request is marked so that it does not count as the tool's return.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

logger = logging.getLogger(__name__)

SETTLE_S = 0.05  # how long nothing must have been added behind a call for the program to be taken as waiting for it


def check_prefill(where: str, value: Any) -> Any:
    if value is None or isinstance(value, (bool, str)):
        return value
    raise TypeError(f"{where}: prefill found {value!r}; allowed are True, False, the text that the next prompt goes on "
                    "with, or None")


class Prefill:
    """One partial prefill beside one call. `known_part` says what of a queued expression is known (see `calls.py`)."""

    def __init__(self, executor: Any, endpoint: Any, wanted: bool | str, known_part: Callable[[Any], Any]):
        self.executor, self.endpoint, self.wanted, self.known_part = executor, endpoint, wanted, known_part
        self._is_over = False
        self._thread = threading.Thread(target=self._run, name="partial prefill", daemon=True)

    def start(self) -> Prefill:
        self._thread.start()
        return self

    def finish(self) -> None:
        """The tool is back: send nothing that was not sent yet, and wait for what was.

        The next prompt would wait for it in the server's queue anyway, and an agent's end must come after it.
        """
        queue = self.executor.queue
        with queue.mutex:
            self._is_over = True
            queue.not_empty.notify_all()
        self._thread.join()

    def _run(self) -> None:
        try:
            parts = [self.wanted] if isinstance(self.wanted, str) else self._known_parts()
            text = self._text_after(parts)
            if text is not None and not self._is_over:
                self.endpoint.prefill_text(self.executor, text)
        except Exception as error:  # noqa: BLE001 - only time is lost without it
            logger.warning("a partial prefill failed, which changes no output: %s", error)

    def _known_parts(self) -> list[Any]:
        """The constant texts and roles behind the call, once more than these follows or the program waits."""
        queue = self.executor.queue
        with queue.mutex:
            while not self._is_over:
                queued = len(queue.queue)
                parts, is_all = self._parts_of(list(queue.queue))
                if not is_all:
                    return parts
                notified = queue.not_empty.wait(SETTLE_S)
                if not notified and len(queue.queue) == queued:
                    return parts
        return []

    def _parts_of(self, queued: list[Any]) -> tuple[list[Any], bool]:
        parts: list[Any] = []
        for expression in queued:
            known, is_all = self.known_part(expression)
            parts += known
            if not is_all:
                return parts, False
        return parts, True

    def _text_after(self, parts: list[Any]) -> str | None:
        """The state's text with these added, made by SGLang's own rules on a copy; None if they add nothing."""
        source = self.executor
        copy = type(source)(
            source.backend, source.arguments, source.default_sampling_para, source.chat_template, False,
            use_thread=False)
        copy.text_, copy.messages_ = source.text_, list(source.messages_)
        copy.cur_role, copy.cur_role_begin_pos = source.cur_role, source.cur_role_begin_pos
        for part in parts:
            copy._execute(part)
        return copy.text_ if len(copy.text_) > len(source.text_) else None
