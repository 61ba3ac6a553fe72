"""What a workload is made of: programs of LLM calls and tool calls, with lengths and times but no text.

A prompt is a chain of parts. `Text` stands for tokens drawn from its key, so equal keys give equal tokens in every
program; `Output` stands for what an earlier call of the same program generated. Lengths are tokens, times seconds.
"""

from __future__ import annotations

from dataclasses import dataclass

from tokencake_sglang.core.graph import AgentGraph


@dataclass(frozen=True)
class Text:
    """`tokens` tokens whose values follow from `key` alone (a longer text of the same key starts with the shorter)."""

    key: str
    tokens: int


@dataclass(frozen=True)
class Output:
    """The tokens that call `call` of the same program generated; only the first `tokens` of them where given."""

    call: str
    tokens: int | None = None


Part = Text | Output


@dataclass(frozen=True)
class ToolCall:
    """The wait after an LLM call. `forecast_s` is what the client tells the server beforehand (None: nothing).

    `until_next`: the wait ends when the agent's next call can start (it waits for other agents), not by itself.
    """

    kind: str
    duration_s: float
    forecast_s: float | None = None
    until_next: bool = False


@dataclass(frozen=True)
class Call:
    """One LLM call, submitted `delay_s` after every call of `after` and its tool have ended.

    `name` is unique in the program. `agent` is the agent that sends it: the calls of one agent are a conversation.
    `max_new_tokens` is what the client asks for (None: exactly `output_tokens`, EOS ignored); where it is more, the
    output ends by EOS. `critical` is the workload's own flag. `last_of_agent`: then the agent has ended.
    """

    name: str
    agent: str
    agent_type: str
    prompt: tuple[Part, ...]
    output_tokens: int
    after: tuple[str, ...] = ()
    tool: ToolCall | None = None
    delay_s: float = 0.0
    critical: bool = False
    last_of_agent: bool = False
    max_new_tokens: int | None = None


@dataclass(frozen=True)
class Program:
    """One application or session. Arrives at `arrival_s`, or, in a closed loop, when the one before it in its
    `lane` has ended and `arrival_s` (then a pause) has passed. Calls are in an order in which parents come first.
    `graph`: the plan that it follows, which its client tells the server; names of nodes are those of the calls.
    `tenant`: whose it is, as a gateway tells a server with TokenCake in a header.
    """

    app_id: str
    calls: tuple[Call, ...]
    arrival_s: float = 0.0
    lane: int | None = None
    graph: AgentGraph | None = None
    tenant: str = ""


@dataclass(frozen=True)
class Workload:
    """Programs in order of arrival. A run ends when all have ended, or at `horizon_s` (None: no limit)."""

    name: str
    programs: tuple[Program, ...]
    horizon_s: float | None = None
