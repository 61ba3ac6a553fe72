"""What the frontend uses of SGLang's language. The one file here that imports sglang; `agents.py`, `calls.py` and
`endpoint.py` are built on it."""

from __future__ import annotations

from sglang.global_config import global_config
from sglang.lang.backend.runtime_endpoint import RuntimeEndpoint
from sglang.lang.interpreter import StreamExecutor
from sglang.lang.ir import (
    SglConstantText,
    SglExpr,
    SglExprList,
    SglFunction,
    SglGen,
    SglRoleBegin,
    SglRoleEnd,
    SglSelect,
    SglSeparateReasoning,
    SglVarScopeBegin,
)
from sglang.lang.tracer import StopTracing, TracerProgramState
from sglang.utils import http_request

__all__ = [
    "RuntimeEndpoint", "SglConstantText", "SglExpr", "SglExprList", "SglFunction", "SglGen", "SglRoleBegin",
    "SglRoleEnd", "SglSelect", "SglSeparateReasoning", "SglVarScopeBegin", "StopTracing", "StreamExecutor",
    "TracerProgramState", "global_config", "http_request"]
