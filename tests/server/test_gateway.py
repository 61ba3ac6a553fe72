"""Many control calls at a time over SGLang's real dispatcher, with a scheduler that answers when it is told to."""

from __future__ import annotations

import asyncio
import inspect
import json
import random

import pytest
from sglang.utils import TypeBasedDispatcher

from tokencake_sglang.core.errors import TokenCakeError
from tokencake_sglang.engine.ipc import TokenCakeControlReqOutput
from tokencake_sglang.server import gateway as gateway_module
from tokencake_sglang.server.gateway import ControlGateway


class LoopbackManager:
    """The three members of the tokenizer manager that the gateway uses; requests wait in `sent`."""

    def __init__(self):
        self._result_dispatcher = TypeBasedDispatcher([])
        self.sent = []

    def auto_create_handle_loop(self):
        pass

    def _dispatch_to_scheduler(self, request):
        self.sent.append(request)

    def answer(self, request, status=200, body=None):
        reply = TokenCakeControlReqOutput(control_id=request.control_id, status=status, body=json.dumps(body or {}))
        self._result_dispatcher(reply)


def test_answers_in_any_order_reach_their_own_callers():
    async def go():
        manager = LoopbackManager()
        gateway = ControlGateway(manager)
        calls = [asyncio.ensure_future(gateway.call("event", {"n": n})) for n in range(200)]
        await asyncio.sleep(0)
        random.Random(1).shuffle(manager.sent)
        for request in manager.sent:
            manager.answer(request, 200, json.loads(request.payload))
        assert [body["n"] for _, body in await asyncio.gather(*calls)] == list(range(200))
        assert gateway.in_flight == 0

    asyncio.run(go())


def test_a_scheduler_that_does_not_answer_gives_a_504_and_its_late_answer_is_dropped():
    async def go():
        manager = LoopbackManager()
        gateway = ControlGateway(manager)
        status, body = await gateway.call("state", {}, timeout_s=0.01)
        assert (status, body["error"]["reason"], gateway.in_flight) == (504, "timeout", 0)
        manager.answer(manager.sent[0])
        manager.answer(manager.sent[0])

    asyncio.run(go())


def test_a_cancelled_call_leaves_nothing_behind():
    async def go():
        gateway = ControlGateway(LoopbackManager())
        call = asyncio.ensure_future(gateway.call("event", {}))
        await asyncio.sleep(0)
        assert gateway.in_flight == 1
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        assert gateway.in_flight == 0

    asyncio.run(go())


def test_beyond_the_limit_a_call_is_told_to_come_back():
    async def go():
        manager = LoopbackManager()
        gateway = ControlGateway(manager, max_in_flight=2)
        calls = [asyncio.ensure_future(gateway.call("event", {})) for _ in range(2)]
        await asyncio.sleep(0)
        status, body = await gateway.call("event", {})
        assert (status, body["error"]["reason"], len(manager.sent)) == (429, "busy", 2)
        for request in manager.sent:
            manager.answer(request)
        assert [status for status, _ in await asyncio.gather(*calls)] == [200, 200]

    asyncio.run(go())


def test_a_send_that_fails_leaves_nothing_behind():
    class Broken(LoopbackManager):
        def _dispatch_to_scheduler(self, request):
            raise OSError("the socket is closed")

    async def go():
        gateway = ControlGateway(Broken())
        with pytest.raises(OSError):
            await gateway.call("event", {})
        assert gateway.in_flight == 0

    asyncio.run(go())


def test_a_hook_that_did_not_attach_is_an_error(monkeypatch):
    registry = gateway_module.HookRegistry
    served = {gateway_module.SETUP_TARGET, gateway_module.AUTH_TARGET}
    monkeypatch.setattr(registry, "_patched", served)
    gateway_module.verify_hooks(enabled=False)
    with pytest.raises(TokenCakeError, match="TokenizerManager.generate_request"):
        gateway_module.verify_hooks(enabled=True)
    monkeypatch.setattr(registry, "_patched", served | {gateway_module.GENERATE_TARGET})
    gateway_module.verify_hooks(enabled=True)
    monkeypatch.setattr(registry, "_patched", {gateway_module.SETUP_TARGET})
    with pytest.raises(TokenCakeError, match="add_api_key_middleware"):
        gateway_module.verify_hooks(enabled=False)


def test_the_hook_fits_the_method_that_it_stands_before():
    from sglang.srt.managers.io_struct import EmbeddingReqInput, GenerateReqInput
    from sglang.srt.managers.tokenizer_manager import TokenizerManager

    assert list(inspect.signature(TokenizerManager.generate_request).parameters)[:3] == ["self", "obj", "request"]
    assert GenerateReqInput(text="x").agent_metadata is None and not hasattr(EmbeddingReqInput, "agent_metadata")
