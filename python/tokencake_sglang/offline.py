"""SGLang's offline Engine with TokenCake: the same settings, checks and control calls as the server, without HTTP."""

from __future__ import annotations

import json
import logging
import os
from types import SimpleNamespace
from typing import Any

from sglang.srt.entrypoints.engine import Engine as SGLangEngine
from sglang.srt.server_args import ServerArgs

from tokencake_sglang import serving
from tokencake_sglang.core.config import TokenCakeConfig
from tokencake_sglang.core.errors import ConfigError, ControlError, MetadataError
from tokencake_sglang.server import refuse, schedule
from tokencake_sglang.server.actions import parse_envelope
from tokencake_sglang.server.graphs import parse_plan
from tokencake_sglang.server.options import config_from
from tokencake_sglang.server.schema import parse_event, parse_request_metadata

PREFIX = "tokencake_"
SAVE_TIMEOUT_S = 5.0

logger = logging.getLogger(__name__)


class Engine(SGLangEngine):
    """`sglang.Engine` with agents.

    Args:
        enable_tokencake: turns TokenCake on; False is SGLang's engine as it is.
        tokencake: settings by name, as in `TokenCakeConfig`; `tokencake_<name>=` sets one and wins.
        **kwargs: every argument of `sglang.Engine`, that is of `ServerArgs`.

    Raises:
        ConfigError: a setting or combination that cannot be served, or an Engine of other settings in this process.
        TokenCakeError: SGLang is not patched, or a part of TokenCake did not attach.
    """

    def __init__(
        self, *, enable_tokencake: bool = False, tokencake: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        given = {name[len(PREFIX):]: kwargs.pop(name) for name in list(kwargs) if name.startswith(PREFIX)}
        config = _config(enable_tokencake, {**(tokencake or {}), **given}, kwargs)
        if "server_args" in kwargs:
            raise ConfigError("server_args is given to tokencake_sglang.Engine; allowed: its fields as arguments,"
                              " because some are chosen here. Pass the fields themselves.")
        before = os.environ.get(serving.ENV_CONFIG)
        try:
            serving.require_ready()
            serving.load_plugins(config)
            server_args, config = _server_args(kwargs, config)
            super().__init__(server_args=server_args)
        finally:
            if before is None:
                os.environ.pop(serving.ENV_CONFIG, None)
            else:
                os.environ[serving.ENV_CONFIG] = before
        self.tokencake = config
        self._gateway = None
        if config is not None:
            from tokencake_sglang.server.gateway import ControlGateway

            self._gateway = ControlGateway(self.tokenizer_manager)

    def generate(self, *args: Any, agent: Any = None, **kwargs: Any) -> Any:
        """As `sglang.Engine.generate`; `agent` is the object that a client sends as `tokencake`, or a list of them."""
        return super().generate(*args, **_with_agent(args, agent, kwargs))

    async def async_generate(self, *args: Any, agent: Any = None, **kwargs: Any) -> Any:
        """As `sglang.Engine.async_generate`, with `agent` as in `generate`."""
        return await super().async_generate(*args, **_with_agent(args, agent, kwargs))

    def stall_started(self, **fields: Any) -> dict[str, Any]:
        """The agent waits for a tool: `agent_id` and/or `lifecycle_id`, and optionally `kind`,
        `estimated_duration_s` (seconds), `call_id`, `stages` (a list of objects with `name` and `estimated_s`). Returns
        the body of the control API's answer."""
        return self._event("stall_started", fields)

    def stage_finished(self, **fields: Any) -> dict[str, Any]:
        """A stage of an open call is over: identity, `stage`, and optionally `call_id`."""
        return self._event("stage_finished", fields)

    def stall_finished(self, **fields: Any) -> dict[str, Any]:
        """The agent goes on: identity, and optionally `call_id` and `outcome` ("ok", "error", "cancelled")."""
        return self._event("stall_finished", fields)

    def agent_finished(self, **fields: Any) -> dict[str, Any]:
        """The agent has ended: identity only."""
        return self._event("agent_finished", fields)

    def program_finished(self, **fields: Any) -> dict[str, Any]:
        """The run that the agent belongs to has ended: identity only."""
        return self._event("program_finished", fields)

    def add_graph(self, graph: dict[str, Any]) -> dict[str, Any]:
        """Make the plan of an application known, in the form of POST /v1/tokencake/graphs; the answer has the
        `graph_id` that its requests carry. GraphError if it is no plan."""
        return self.loop.run_until_complete(self.async_control("graph", parse_plan(json.dumps(graph).encode())))

    def graph(self, graph_id: str) -> dict[str, Any]:
        """What GET /v1/tokencake/graphs/ID answers."""
        return self.loop.run_until_complete(self.async_control("show_graph", {"graph_id": graph_id}))

    def act(self, action_type: str, **payload: Any) -> dict[str, Any]:
        """One action, as on the route for them: "kv.retain", "kv.demote", "kv.prefetch", "kv.release",
        "signal.tool_wait" or "signal.resume_estimate". `payload` names the agent. Returns its outcome."""
        envelope = {"actions": [{"action_type": action_type, "payload": payload}]}
        return self.loop.run_until_complete(self._act(envelope))

    async def _act(self, envelope: dict[str, Any]) -> dict[str, Any]:
        _, (asked,) = parse_envelope(envelope)
        if asked.action is None:
            raise MetadataError(asked.refusal)
        return (await self.async_control("actions", {"actions": [asked.action]}))["outcomes"][0]

    def shutdown(self) -> None:
        """As `sglang.Engine.shutdown`, which kills the scheduler; what it has learnt is saved before, if it can be."""
        if self.__dict__.get("_gateway") is not None and self.tokencake.history:
            try:
                self.loop.run_until_complete(self._gateway.call("save", {}, timeout_s=SAVE_TIMEOUT_S))
            except Exception:  # the scheduler or the loop is gone, or the program runs in the loop
                logger.warning("The history could not be saved at the shutdown; up to a minute of it is lost.")
        super().shutdown()

    def tokencake_state(self, agents: int = 100, stalls: int = 0) -> dict[str, Any]:
        """What GET /v1/tokencake/state answers, with at most `agents` agents and `stalls` ended stalls listed."""
        return self.loop.run_until_complete(self.async_control("state", {"agents": agents, "stalls": stalls}))

    async def async_event(self, event: str, **fields: Any) -> dict[str, Any]:
        """Any event, for programs that already run in the engine's event loop. MetadataError if it is not valid."""
        return await self.async_control("event", parse_event({"event": event, **fields}))

    async def async_control(self, op: str, payload: dict[str, Any]) -> dict[str, Any]:
        """One control call; raises ControlError on any answer but 200."""
        if self._gateway is None:
            raise ControlError(503, "disabled", "TokenCake is off in this engine. Create it with"
                               " enable_tokencake=True.")
        status, body = await self._gateway.call(op, payload)
        if status != 200:
            error = body["error"]
            raise ControlError(error["code"], error["reason"], error["message"])
        return body

    def _event(self, event: str, fields: dict[str, Any]) -> dict[str, Any]:
        return self.loop.run_until_complete(self.async_event(event, **fields))


def _config(enabled: bool, values: dict[str, Any], kwargs: dict[str, Any]) -> TokenCakeConfig | None:
    """The settings; takes SGLang's argument `schedule_policy` out of `kwargs` where it names TokenCake's order."""
    if not enabled and values:
        raise ConfigError(f"{PREFIX}{next(iter(values))} is given but TokenCake is not on. Add enable_tokencake=True,"
                          " or remove it.")
    values = schedule.settle(kwargs, values, enabled)
    if kwargs.get("schedule_policy") == schedule.OWN:
        del kwargs["schedule_policy"]
    if values.get("tool_events"):
        raise ConfigError("tokencake_tool_events is given to an Engine; allowed: with the server only, whose HTTP"
                          " process receives them. Remove it, and use stall_started and stall_finished.")
    config = config_from(values) if enabled else None
    schedule.check(config, kwargs)
    return config


def _server_args(
    kwargs: dict[str, Any], config: TokenCakeConfig | None
) -> tuple[ServerArgs, TokenCakeConfig | None]:
    """ServerArgs with what fits the device, checked before and after SGLang resolves them, and the settings with it."""
    kwargs.setdefault("log_level", "error")
    enabled = config is not None
    _, chosen, config = serving.prepare(kwargs, config)
    values = {**kwargs, **chosen}
    if enabled:
        refuse.check(SimpleNamespace(**{**_defaults(), **values}))
    server_args = ServerArgs(**values)
    if enabled:
        refuse.check(server_args)
    return server_args, config


def _defaults() -> dict[str, Any]:
    return {item.attribute: getattr(ServerArgs, item.attribute) for item in refuse.REFUSALS}


def _with_agent(args: tuple[Any, ...], agent: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    """The keyword arguments of SGLang's generate, with the validated metadata."""
    if agent is None:
        return kwargs
    named = {**dict(zip(("prompt", "sampling_params", "input_ids"), args, strict=False)), **kwargs}
    prompt, ids, params = (named.get(name) for name in ("prompt", "input_ids", "sampling_params"))
    if prompt is not None:
        prompts = len(prompt) if isinstance(prompt, list) else None
    else:
        prompts = len(ids) if isinstance(ids, list) and ids and isinstance(ids[0], list) else None
    params = params[0] if isinstance(params, list) and params else params
    samples = params.get("n", 1) if isinstance(params, dict) else 1
    return {**kwargs, "agent_metadata": parse_request_metadata(agent, prompts, samples)}
