"""Which conversation a request goes on with: by the results that it brings, the response it names, or its beginning.

When two conversations fit alike the request belongs to neither: a wrong pairing would end another agent's stall, a
missing one leaves a stall to its forecast.
"""

from __future__ import annotations

import re
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from hashlib import blake2b

from tokencake_sglang.server.turns.answer import Answer
from tokencake_sglang.server.turns.request import Reply, Turn

CONVERSATIONS_KEPT = 16_384
PLACES_KEPT = 65_536
OF_ONE_AGENT = 256  # conversations; each of its requests looks at all of them
CALLS_KEPT = 256  # of one conversation: ids by which its results are known
UNIQUE_ID = re.compile(r"[0-9a-f]{16}")  # parts of ids that nobody makes twice; some parsers just count their calls


@dataclass(eq=False)
class Conversation:
    """One history that grows. `agent_id` is shared by all conversations of an agent that its client names.

    `digest` and `reply` are of its last complete turn; `open_calls` are the calls of that turn's stall, or one that
    stands for the person who reads the answer (`awaits_person`).
    """

    agent_id: str
    named: bool
    digest: bytes = b""
    reply: Reply = field(default_factory=Reply)
    response_id: str | None = None
    open_calls: tuple[str, ...] = ()
    awaits_person: bool = False
    running: int = 0  # requests of it that have not been answered
    issued: dict[str, None] = field(default_factory=dict)

    @property
    def place(self) -> bytes:
        """Stands for its last turn and what the model said to it."""
        said = "\0".join(self.reply.call_ids or (self.reply.text,)).encode("utf-8", "replace")
        return blake2b(self.digest + said, digest_size=16).digest()


class ConversationTable:
    """Conversations, that with the oldest turn first; it is forgotten beyond `most`, or OF_ONE_AGENT of one agent."""

    def __init__(self, most: int = CONVERSATIONS_KEPT) -> None:
        self._most = most
        self._all: OrderedDict[int, Conversation] = OrderedDict()
        self._by_call: defaultdict[str, dict[int, Conversation]] = defaultdict(dict)
        self._by_digest: defaultdict[bytes, dict[int, Conversation]] = defaultdict(dict)
        self._by_response: dict[str, Conversation] = {}
        self._by_agent: defaultdict[str, dict[int, Conversation]] = defaultdict(dict)
        self._left: OrderedDict[bytes, None] = OrderedDict()  # places where one has been

    def __len__(self) -> int:
        return len(self._all)

    def of_agent(self, agent_id: str) -> list[Conversation]:
        return list(self._by_agent.get(agent_id, {}).values())

    def find(self, turn: Turn, agent_id: str | None) -> Conversation | None:
        """The conversation that this request goes on with; `agent_id` is the agent that its client names, None if it
        names none. One whose last request is still being answered is not gone on with: that is a branch, or the request
        once more, and nobody can tell a repeated request from another agent's with the same history."""
        def mine(found: Iterable[Conversation]) -> list[Conversation]:
            """A name tells conversations apart; without one, those with names count, or two would be taken for one."""
            return [one for one in found if agent_id is None or (one.named and one.agent_id == agent_id)]

        if turn.previous_response is not None:
            found = _only(mine(filter(None, [self._by_response.get(turn.previous_response)])))
        else:
            found = self._by_results(turn, mine) if turn.results else self._by_reply(turn, mine)
            if found is not None and found.place in self._left:  # who was there before may be sending his request again
                return None
        fits = found is not None and found.named == (agent_id is not None) and not found.running
        return found if fits else None

    def add(self, agent_id: str, named: bool) -> Conversation:
        conversation = Conversation(agent_id, named)
        self._all[id(conversation)] = conversation
        self._by_agent[agent_id][id(conversation)] = conversation
        while len(self._all) > self._most:
            self.forget(next(iter(self._all.values())))
        while len(self._by_agent[agent_id]) > OF_ONE_AGENT:
            self.forget(next(iter(self._by_agent[agent_id].values())))
        return conversation

    def answered(self, conversation: Conversation, turn: Turn, answer: Answer) -> None:
        """The model has answered this turn of it."""
        number = id(conversation)
        if number not in self._all:
            return
        self._all.move_to_end(number)
        of_agent = self._by_agent[conversation.agent_id]
        of_agent[number] = of_agent.pop(number)
        self._leave(conversation)
        self._drop(self._by_digest, conversation.digest, number)
        if conversation.response_id is not None:
            self._by_response.pop(conversation.response_id, None)
        conversation.digest = turn.digest
        conversation.reply = Reply(answer.text, tuple(call.call_id for call in answer.calls))
        conversation.response_id = answer.response_id
        self._by_digest[turn.digest][number] = conversation
        if answer.response_id is not None:
            self._by_response[answer.response_id] = conversation
        for call in answer.calls:
            conversation.issued[call.call_id] = None
            self._by_call[call.call_id][number] = conversation
        while len(conversation.issued) > CALLS_KEPT:
            oldest = next(iter(conversation.issued))
            del conversation.issued[oldest]
            self._drop(self._by_call, oldest, number)

    def forget(self, conversation: Conversation) -> None:
        number = id(conversation)
        if self._all.pop(number, None) is None:
            return
        self._leave(conversation)
        self._drop(self._by_digest, conversation.digest, number)
        self._drop(self._by_agent, conversation.agent_id, number)
        for call_id in conversation.issued:
            self._drop(self._by_call, call_id, number)
        if conversation.response_id is not None:
            self._by_response.pop(conversation.response_id, None)

    def _leave(self, conversation: Conversation) -> None:
        if conversation.digest:
            self._left[conversation.place] = None
        while len(self._left) > PLACES_KEPT:
            self._left.popitem(last=False)

    def _by_results(self, turn: Turn, mine: Callable) -> Conversation | None:
        """The one conversation whose last turn made these calls. Results of an earlier turn are a branch, or a client
        that goes back: a conversation of its own."""
        known = [one for one in turn.results if one in self._by_call]
        found = {id(c): c for call_id in known for c in mine(self._by_call[call_id].values())}.values()
        latest = [one for one in found if set(known) & set(one.reply.call_ids)]
        asked = {turn.digests[at]: said.call_ids for at, said in turn.replies.items()}
        grown = [one for one in latest if asked.get(one.digest) == one.reply.call_ids]
        if grown:
            return _only(grown)
        return _only(latest) if any(UNIQUE_ID.search(call_id) for call_id in known) else None

    def _by_reply(self, turn: Turn, mine: Callable) -> Conversation | None:
        """The one whose last request this one begins with, followed by what the model then said."""
        for at in sorted(turn.replies, reverse=True):
            said = turn.replies[at]
            fitting = [one for one in mine(self._by_digest.get(turn.digests[at], {}).values())
                       if one.reply == said or (said.call_ids and said.call_ids == one.reply.call_ids)]
            if fitting:
                return _only(fitting)
        return None

    @staticmethod
    def _drop(index: dict, key: object, number: int) -> None:
        entries = index.get(key)
        if entries is not None:
            entries.pop(number, None)
            if not entries:
                del index[key]


def _only(found: Iterable[Conversation]) -> Conversation | None:
    """The single one; None when there are several, or none."""
    several = list(found)
    return several[0] if len(several) == 1 else None
