"""The emulated server's channels: requests come from a list, answers go to a function."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from typing import Any

from sglang.srt.managers.scheduler_components.output_sender import SenderWrapper
from sglang.srt.managers.scheduler_components.request_receiver import SchedulerRequestReceiver

from tokencake_sglang.emulator.clients import Answer


class MemorySender(SenderWrapper):
    def __init__(self, sink: Callable[[Any], None]) -> None:
        super().__init__(None)
        self._sink = sink

    def send_output(self, output: Any, recv_obj: Any = None) -> None:
        self._sink(output)


class MemoryReceiver(SchedulerRequestReceiver):
    """SGLang's receiver, with its two sockets replaced by `pull`: all else, extensions too, is its own."""

    __slots__ = ()
    pull: Callable[[], list[Any]] = staticmethod(list)

    def _pull_raw_reqs(self) -> list[Any]:
        return type(self).pull()


class AnswerReader:
    """Puts together the answers that the scheduler sends in pieces, as SGLang's tokenizer manager does."""

    def __init__(self, on_answer: Callable[[str, Answer], None]) -> None:
        self._on_answer = on_answer
        self._output: dict[str, array] = {}
        self._tiers: dict[str, tuple[int, int]] = {}

    def __call__(self, message: Any) -> None:
        for index, rid in enumerate(getattr(message, "rids", None) or ()):
            output = self._output.setdefault(rid, array("q"))
            if message.output_ids is not None:
                output.extend(message.output_ids[index])
            details = message.cached_tokens_details[index] if message.cached_tokens_details else None
            if details is not None:
                self._tiers[rid] = (details["device"] or 0, details["host"] or 0)
            finish = message.finished_reasons[index]
            if finish is not None:
                self._finish(rid, message, index, finish["type"])

    def _finish(self, rid: str, message: Any, index: int, finish: str) -> None:
        cached = message.cached_tokens[index]
        device, host = self._tiers.pop(rid, (cached, 0))
        self._on_answer(rid, Answer(
            output=self._output.pop(rid), prompt_tokens=message.prompt_tokens[index], cached_tokens=cached,
            cached_device_tokens=device, cached_host_tokens=host,
            retractions=message.retraction_counts[index] if message.retraction_counts else 0, finish=finish))
