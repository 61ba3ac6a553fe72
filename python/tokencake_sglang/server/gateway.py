"""Control calls from the HTTP process to the scheduler and back. The one file of server/ that imports SGLang.

Many calls may be in flight; each carries a control_id, and the scheduler's answer with the same id completes it.
SGLang's own FanOutCommunicator allows one call at a time, which would make concurrent clients queue for each other.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import uuid
from dataclasses import dataclass, field
from typing import Any

from sglang.srt.plugins.hook_registry import HookRegistry, HookType
from sglang.utils import TypeBasedDispatcher
from starlette.middleware import Middleware

from tokencake_sglang.core.config import TokenCakeConfig
from tokencake_sglang.core.errors import TokenCakeError
from tokencake_sglang.engine.ipc import TokenCakeControlReq, TokenCakeControlReqOutput, register_ipc_types
from tokencake_sglang.server.action_routes import build_action_router
from tokencake_sglang.server.auth import UnauthorizedSentence
from tokencake_sglang.server.graphs import build_graph_router
from tokencake_sglang.server.identity import FIELD, AgentIdentityMiddleware, attach_metadata
from tokencake_sglang.server.replicas import ALL, Replicas, merge
from tokencake_sglang.server.routes import build_router, error_body
from tokencake_sglang.server.tool_events import ToolEvents, WithToolEvents
from tokencake_sglang.server.turns import StallInference

logger = logging.getLogger(__name__)

SETUP_TARGET = "sglang.srt.entrypoints.http_server._setup_and_run_http_server"
AUTH_TARGET = "sglang.srt.utils.auth.add_api_key_middleware"
GENERATE_TARGET = "sglang.srt.managers.tokenizer_manager.TokenizerManager.generate_request"


@dataclass
class _Call:
    """A control call under way, and the answers of the replicas that were asked."""

    asked: int
    all_answered: asyncio.Future
    answers: dict[int, TokenCakeControlReqOutput] = field(default_factory=dict)


class ControlGateway:
    """Sends control calls through SGLang's tokenizer manager; to be used on that manager's event loop."""

    def __init__(self, tokenizer_manager: Any, max_in_flight: int = 4096) -> None:
        self._manager = tokenizer_manager
        self._max_in_flight = max_in_flight
        self._waiting: dict[str, _Call] = {}
        dp_size = getattr(getattr(tokenizer_manager, "server_args", None), "dp_size", 1)
        self.replicas = Replicas(dp_size) if dp_size > 1 else None
        tokenizer_manager.tokencake_replicas = self.replicas
        self._prefix = uuid.uuid4().hex[:12]
        self._count = itertools.count()
        register_ipc_types()
        tokenizer_manager._result_dispatcher += TypeBasedDispatcher([(TokenCakeControlReqOutput, self.handle_reply)])

    @property
    def in_flight(self) -> int:
        return len(self._waiting)

    async def call(self, op: str, payload: dict[str, Any], timeout_s: float = 30.0) -> tuple[int, dict[str, Any]]:
        """Ask the scheduler; returns an HTTP status and a JSON object. 429 when too many are in flight, 504 when the
        scheduler does not answer in `timeout_s` seconds (the call may still take effect: events are idempotent)."""
        if len(self._waiting) >= self._max_in_flight:
            return 429, error_body(429, "busy", f"{len(self._waiting)} control calls wait for the scheduler; allowed:"
                                   f" {self._max_in_flight}. Send this one again after a pause.")
        self._manager.auto_create_handle_loop()
        control_id = f"{self._prefix}-{next(self._count)}"
        dp_rank = ALL if self.replicas is None else self.replicas.of_call(op, payload)
        asked = self.replicas.count if self.replicas is not None and dp_rank == ALL else 1
        call = self._waiting[control_id] = _Call(asked, asyncio.get_running_loop().create_future())
        try:
            self._manager._dispatch_to_scheduler(TokenCakeControlReq(
                control_id=control_id, op=op, payload=json.dumps(payload), dp_rank=dp_rank))
            await asyncio.wait_for(call.all_answered, timeout_s)
            answers = [(reply.status, json.loads(reply.body)) for _, reply in sorted(call.answers.items())]
            return answers[0] if len(answers) == 1 else merge(op, answers)
        except asyncio.TimeoutError:
            return 504, error_body(504, "timeout", f"the scheduler did not answer the {op} call within {timeout_s:g} s;"
                                   " it may be busy with a long step. Send the same call again: a repeated event is"
                                   " answered as a duplicate.")
        finally:
            self._waiting.pop(control_id, None)

    def handle_reply(self, reply: TokenCakeControlReqOutput) -> None:
        """Called by the tokenizer manager for each answer. Never raises: an exception here would end the server."""
        call = self._waiting.get(reply.control_id)
        if call is None:
            return
        call.answers[reply.dp_rank] = reply
        if len(call.answers) == call.asked and not call.all_answered.done():
            call.all_answered.set_result(None)


def mount(app: Any, gateway: ControlGateway | None, infer: str = "none", tool_events: str = "",
          tenant_header: str = "") -> None:
    """Put routes and the metadata middleware on SGLang's app; with no gateway (TokenCake is off) routes answer 503.

    The middleware is innermost: authentication, CORS, decompression and metrics see the request first. `infer`: as the
    setting of that name, and so `tenant_header`. `tool_events`: the endpoint on which they are received, if any.
    """
    events = ToolEvents(gateway, tool_events) if gateway is not None and tool_events else None
    app.include_router(build_router(gateway, {} if events is None else {"tool_events": events.report}))
    app.include_router(build_action_router(gateway))
    app.include_router(build_graph_router(gateway))
    if gateway is not None:
        stalls = StallInference(gateway) if infer == "clients" else None
        app.user_middleware.append(Middleware(
            AgentIdentityMiddleware, infer=infer != "none", gateway=gateway, stalls=stalls,
            tenant_header=tenant_header))
    if events is not None:
        app.user_middleware.append(Middleware(WithToolEvents, events=events))


def before_generate(manager: Any, obj: Any, *args: Any, **kwargs: Any) -> None:
    """Of each request, before SGLang's own checks: its agent's metadata, and the replica that its agent is on."""
    attach_metadata(manager, obj, *args, **kwargs)
    replicas = getattr(manager, "tokencake_replicas", None)
    if replicas is not None and hasattr(obj, "routed_dp_rank"):
        asked = obj.routed_dp_rank
        if asked is None or (isinstance(asked, int) and 0 <= asked < replicas.count):  # SGLang refuses others
            obj.routed_dp_rank = replicas.route(getattr(obj, FIELD, None), asked)


def register_hooks(config: TokenCakeConfig | None) -> None:
    """Register the hooks of the HTTP process; SGLang applies them at the end of its plugin loading."""

    def before_setup(*args: Any, **kwargs: Any) -> None:
        from sglang.srt.entrypoints import http_server

        manager = kwargs["tokenizer_manager"] if "tokenizer_manager" in kwargs else args[1]
        if config is None:
            mount(http_server.app, None)
        else:
            mount(http_server.app, ControlGateway(manager), infer=config.infer, tool_events=config.tool_events,
                  tenant_header=config.tenant_header)

    def after_auth(_result: Any, app: Any, **_kwargs: Any) -> None:
        app.add_middleware(UnauthorizedSentence)

    HookRegistry.register(SETUP_TARGET, before_setup, HookType.BEFORE)
    HookRegistry.register(AUTH_TARGET, after_auth, HookType.AFTER)
    if config is not None:
        HookRegistry.register(GENERATE_TARGET, before_generate, HookType.BEFORE)


def verify_hooks(enabled: bool) -> None:
    """Raise TokenCakeError unless the hooks are in place (SGLang only logs a hook that failed to attach)."""
    targets = (SETUP_TARGET, AUTH_TARGET, *([GENERATE_TARGET] if enabled else []))
    missing = [target for target in targets if target not in HookRegistry._patched]
    if missing:
        raise TokenCakeError(
            f"the HTTP side of TokenCake did not attach to {missing[0]}. Either the plugin 'tokencake' was not loaded"
            " (SGLANG_PLUGINS or SGLANG_PLATFORM may exclude it) or SGLang was loaded before TokenCake was set up."
            " Run `tokencake doctor`.")
