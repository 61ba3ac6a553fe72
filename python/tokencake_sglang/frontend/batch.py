"""Agents that may have to stop before they are done: Ctrl-C in `run_batch`, a cancelled task in `arun`."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from tokencake_sglang.core.errors import TokenCakeError
from tokencake_sglang.frontend.identity import AgentContext

logger = logging.getLogger(__name__)


class AgentStopped(TokenCakeError):
    """What the program of a stopped agent sees at its next step."""


class BatchInterrupted(KeyboardInterrupt):
    """Ctrl-C in `run_batch`; the message says what has become of its agents."""


class Batch:
    """The agents of one `run_batch` or `arun`. `size` counts all of them, started or not."""

    def __init__(self, name: str, size: int):
        self.name, self.size = name, size
        self.is_stopped = False
        self.ended = 0
        self._executors: list[Any] = []  # only appended to: a signal handler reads it and may take no lock
        self._signals = 0

    def start(self, executor: Any, context: AgentContext) -> None:
        """An agent begins on this executor. Raises AgentStopped if none may begin any more."""
        if not self.is_stopped:
            executor.agent_context = context
            self._executors.append(executor)
        if self.is_stopped:  # also if that has just happened
            raise self._reason()

    def stop(self) -> None:
        """No agent begins any more, and those under way get AgentStopped at their next step. Waits for nothing."""
        self.is_stopped = True
        for executor in list(self._executors):
            _stop(executor, self._reason())

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Ctrl-C in the body stops the agents, waits for their last steps, and raises BatchInterrupted.

        Only the main thread gets Ctrl-C; elsewhere this does nothing.
        """
        previous = signal.getsignal(signal.SIGINT)
        if threading.current_thread() is not threading.main_thread() or not callable(previous):
            yield
            return

        def on_signal(number: int, frame: Any) -> None:
            self._signals += 1
            self.stop()
            previous(number, frame)

        signal.signal(signal.SIGINT, on_signal)
        try:
            yield
        except KeyboardInterrupt:
            if not self._signals:
                raise  # a program's own
            self._wait()
            raise BatchInterrupted(self._message()) from None
        finally:
            signal.signal(signal.SIGINT, previous)

    def each(self, results: Iterator[Any]) -> Iterator[Any]:
        """The results one by one, Ctrl-C handled while the next one is waited for."""
        while True:
            with self.interruptible():
                try:
                    result = next(results)
                except StopIteration:
                    return
            yield result

    async def on_thread(self, work: Callable[[], Any]) -> Any:
        """Await `work()` on a thread of its own. A cancelled await stops the agents."""
        future: concurrent.futures.Future[Any] = concurrent.futures.Future()
        future.set_running_or_notify_cancel()

        def run() -> None:
            try:
                future.set_result(work())
            except BaseException as error:  # it belongs to whoever awaits
                future.set_exception(error)

        threading.Thread(target=contextvars.copy_context().run, args=(run,), name=f"arun {self.name}").start()
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            self.stop()
            raise

    def _wait(self) -> None:
        """Until the workers have ended, which reports the ends; a second Ctrl-C reports them at once."""
        waiting = [executor for executor in _with_forks(self._executors) if executor.worker.is_alive()]
        try:
            if waiting and self._signals == 1:
                logger.warning("run_batch of %r was interrupted; waiting for the requests and tools that are under way "
                               "(press Ctrl-C again to leave them)", self.name)
                for executor in waiting:
                    executor.worker.join()
        except KeyboardInterrupt:
            pass
        for executor in waiting:
            executor.backend.finish_program(executor)  # does nothing for an end that was reported

    def _message(self) -> str:
        started = len(self._executors)
        return (f"run_batch of {self.name!r} was interrupted: of {self.size} agents {self.ended} had ended, "
                f"{started - self.ended} were stopped, {self.size - started} were not started. The server was told the "
                "end of all that were started")

    def _reason(self) -> AgentStopped:
        return AgentStopped(f"agent {self.name!r} was stopped: its batch was interrupted, or its task cancelled")


def _with_forks(executors: list[Any]) -> list[Any]:
    found = []
    for executor in executors:
        found += [executor, *_with_forks(list(executor.agent_context.child_executors))]
    return found


def _stop(executor: Any, reason: AgentStopped) -> None:
    """Drop what is queued, release who waits for it, and refuse what comes; the step under way is not broken off."""

    def refuse(*_arguments: Any) -> NoReturn:
        raise reason

    context = executor.agent_context
    for child in list(context.child_executors):
        _stop(child, reason)
    if not context.ended:
        context.stopped = executor.error_ = reason
        executor.submit = executor.fork = refuse
        executor._execute = lambda _expression: None  # the rest of a sum of expressions whose first part is under way
        if executor.use_thread:
            executor._discard_queue()
