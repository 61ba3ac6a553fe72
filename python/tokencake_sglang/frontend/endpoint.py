"""The endpoint: an SGLang server as the backend of agents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokencake_sglang.core.errors import GraphError
from tokencake_sglang.frontend import derive as dry
from tokencake_sglang.frontend.events import EventClient
from tokencake_sglang.frontend.graph_upload import GraphUpload
from tokencake_sglang.frontend.identity import AgentContext, check_id, current_app
from tokencake_sglang.frontend.sglang_backend import RuntimeEndpoint, StreamExecutor, http_request
from tokencake_sglang.frontend.tool import Stage

PLAIN_FUNCTION_TYPE = "function"


class Endpoint(RuntimeEndpoint):
    """An SGLang server as the backend of agents.

    Every request of a state carries that state's identity as the JSON object `tokencake`. Programs that are plain
    `sgl.function`s run unchanged, each run and each fork as an agent of type "function". A server without TokenCake
    is noticed at the first event; from then on it gets stock requests and no events.
    """

    def __init__(
        self, base_url: str, app_id: str | None = None, api_key: str | None = None, prefill: bool = False, **kwargs: Any
    ):
        """`kwargs` are those of RuntimeEndpoint (verify, chat_template_name). `app_id` is for runs outside `app()`.

        `prefill` is the default of calls that do not say whether they want a partial prefill (see `call`).
        """
        base_url = base_url.rstrip("/")
        super().__init__(base_url, api_key=api_key, **kwargs)
        self.app_id = None if app_id is None else check_id("app_id", app_id)
        if not isinstance(prefill, bool):
            raise TypeError(f"Endpoint: prefill found {prefill!r}; allowed are True and False")
        self.prefill = prefill
        self.events = EventClient(base_url, api_key, self.verify)
        self.graphs = GraphUpload(self.events)

    # Events. Each returns the server's answer, or None if it gave none; none of them raises.

    def stall_started(
        self,
        agent_id: str,
        kind: str = "tool",
        estimated_duration_s: float | None = None,
        call_id: str | None = None,
        stages: Sequence[Stage] = (),
        estimated_p90_s: float | None = None,
    ) -> dict[str, Any] | None:
        """Report that the agent now waits for something outside the model, for about so many seconds, in these
        stages. Nine of ten such waits are over after `estimated_p90_s`."""
        return self.events.send(
            {
                "event": "stall_started",
                "agent_id": agent_id,
                "kind": kind,
                "estimated_duration_s": estimated_duration_s,
                "estimated_p90_s": estimated_p90_s,
                "call_id": call_id,
                "stages": [{"name": stage.name, "estimated_s": float(stage.seconds)} for stage in stages] or None,
            }
        )

    def stage_finished(self, agent_id: str, stage: str, call_id: str | None = None) -> dict[str, Any] | None:
        """Report that a stage of an open call is over."""
        return self.events.send(
            {"event": "stage_finished", "agent_id": agent_id, "call_id": call_id, "stage": stage}
        )

    def stall_finished(self, agent_id: str, call_id: str | None = None, outcome: str = "ok") -> dict[str, Any] | None:
        """Report that the wait is over; `outcome` is ok, error or cancelled."""
        return self.events.send(
            {"event": "stall_finished", "agent_id": agent_id, "call_id": call_id, "outcome": outcome}
        )

    def agent_finished(self, agent_id: str) -> dict[str, Any] | None:
        """Report that the agent has ended: the server then keeps nothing for it."""
        return self.events.send({"event": "agent_finished", "agent_id": agent_id})

    def state(self, agents: int | None = None) -> dict[str, Any] | None:
        """The server's TokenCake state, or None from a server without TokenCake."""
        return self.events.state(agents)

    # What SGLang's interpreter calls.

    def context_of(self, executor: StreamExecutor) -> AgentContext:
        """The agent behind a state; a plain function's state becomes one at its first request."""
        # The program's thread and the worker may both be first; setdefault lets only one of them win.
        if "agent_context" not in executor.__dict__:
            executor.__dict__.setdefault("agent_context", AgentContext(PLAIN_FUNCTION_TYPE, app_id=current_app()))
        return executor.agent_context

    def _add_images(self, s: StreamExecutor, data: dict[str, Any]) -> None:
        # Every request that RuntimeEndpoint makes for a state passes here before it is sent.
        if dry.current():
            raise GraphError("derive: a plain sgl.function was run; decorate it with @tc.agent to have it in the graph")
        super()._add_images(s, data)
        if not self.events.is_off:
            context = self.context_of(s)
            data["tokencake"] = context.identity(self.app_id, self.graphs.id_of(context.app_id))

    def prefill_text(self, s: StreamExecutor, text: str) -> None:
        """Have the server compute the KV of a text that the state's next prompt starts with. Raises what fails."""
        data: dict[str, Any] = {"text": text, "sampling_params": {"max_new_tokens": 0}}
        self._add_images(s, data)
        if "tokencake" in data:
            data["tokencake"]["purpose"] = "prefill"
        response = http_request(self.base_url + "/generate", json=data, api_key=self.api_key, verify=self.verify)
        self._assert_success(response)

    def fork_program(self, src: StreamExecutor, dst: list[StreamExecutor], position_ids_offset: Any = None) -> None:
        context = self.context_of(src)
        if context.stopped is not None:
            for executor in dst:  # nobody else will end them, and their threads keep the process alive
                executor.end()
            raise context.stopped
        for executor in dst:
            executor.agent_context = context.fork()
            context.child_executors.add(executor)

    def end_program(self, s: StreamExecutor) -> None:
        context = getattr(s, "agent_context", None)
        if context is not None:
            context.ended = True
        if not s.use_thread:
            self.finish_program(s)

    def finish_program(self, s: StreamExecutor) -> None:
        context = getattr(s, "agent_context", None)
        if context is not None and context.announces_end:
            context.announces_end = False
            self.agent_finished(context.agent_id)
