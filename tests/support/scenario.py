"""One fixed day of several agents with tool calls, played against any server: its outputs must not depend on it.

Every agent talks in turns. A turn's prompt is the last prompt, the answer, and a tool's result, so that the KV of a
turn is needed again after the tool. Between turns the agent tells the server about its call. How the call goes is
the agent's `manner`; servers that answer 404 or 503 are played the same way without events.
"""

from __future__ import annotations

import http.client
import json
import random
import threading
import time
from dataclasses import dataclass

from tests.support.server import ServerProcess

TOKEN_RANGE = (300, 3900)
NEW_TOKENS = 12
TURNS = 3


@dataclass(frozen=True)
class Manner:
    """How the tool calls of one agent go: what the client says they last, and how long they really take."""

    name: str
    estimate_s: float
    actual_s: float
    sends_finish: bool = True


MANNERS = (
    Manner("on time", 0.9, 0.9),
    Manner("early", 3.0, 0.4),
    Manner("at once", 2.0, 0.0),
    Manner("late", 0.5, 2.0),
    Manner("without finish", 0.7, 0.8, sends_finish=False),
    Manner("too short to move", 0.05, 0.05),
    Manner("aborted", 1.0, 0.6),
    Manner("doubled", 0.8, 0.7),
)


def tokens(seed: object, count: int) -> list[int]:
    chooser = random.Random(repr(seed))
    return [chooser.randrange(*TOKEN_RANGE) for _ in range(count)]


class Player:
    """Plays the agents of one application against a server and keeps every answer."""

    def __init__(self, server: ServerProcess, app: str) -> None:
        self.server, self.app = server, app
        self.outputs: dict[tuple[str, int], list[int]] = {}
        self.statuses: list[tuple[str, int, str]] = []
        self.errors: list[BaseException] = []
        self.shared = tokens("system", 150)

    def play(self, concurrency: int) -> dict[tuple[str, int], list[int]]:
        """All agents, `concurrency` at a time; returns the answers by agent and turn."""
        waiting = list(MANNERS)
        lock = threading.Lock()

        def work() -> None:
            while True:
                with lock:
                    if not waiting:
                        return
                    manner = waiting.pop(0)
                try:
                    self._agent(manner)
                except BaseException as error:  # noqa: BLE001 - handed to the test's thread
                    self.errors.append(error)
                    return

        threads = [threading.Thread(target=work) for _ in range(concurrency)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if self.errors:
            raise self.errors[0]
        return self.outputs

    def _agent(self, manner: Manner) -> None:
        agent = f"{self.app}/{manner.name}"
        prompt = self.shared + tokens(manner.name, 250)
        for turn in range(TURNS):
            if manner.name == "aborted" and turn == 1:
                self._disconnect(agent, prompt + tokens("thrown away", 40))
            answer = self.server.generate(
                prompt, NEW_TOKENS, sampling_params={"ignore_eos": True},
                tokencake={"agent_id": agent, "app_id": self.app})
            self.outputs[manner.name, turn] = answer["output_ids"]
            prompt = prompt + answer["output_ids"] + tokens((manner.name, turn), 60)
            if turn < TURNS - 1:
                self._tool(agent, manner, f"call-{turn}")
        self._event(event="agent_finished", agent_id=agent)

    def _tool(self, agent: str, manner: Manner, call: str) -> None:
        started = {"event": "stall_started", "agent_id": agent, "kind": "tool",
                   "estimated_duration_s": manner.estimate_s, "call_id": call}
        self._event(**started)
        if manner.name == "doubled":
            self._event(**started)
        time.sleep(manner.actual_s)
        if manner.sends_finish:
            self._event(event="stall_finished", agent_id=agent, call_id=call)

    def _event(self, **event: object) -> None:
        status, text = self.server.post("/v1/tokencake/events", event)
        word = json.loads(text).get("status", "") if status == 200 else ""
        self.statuses.append((str(event["event"]), status, word))

    def _disconnect(self, agent: str, prompt: list[int]) -> None:
        """Start a long streamed generation and hang up after its first words."""
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=60)
        body = {"input_ids": prompt, "stream": True, "tokencake": {"agent_id": agent},
                "sampling_params": {"temperature": 0, "max_new_tokens": 400, "ignore_eos": True}}
        connection.request("POST", "/generate", json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        answer.read(64)
        answer.close()
        connection.close()
