"""Messages between the HTTP process and the scheduler, and from rank 0 to all ranks.

`PAYLOAD`s are JSON text: SGLang's msgpack union decodes flat fields only, and a payload that the
scheduler cannot decode would stop it (the HTTP side has validated it before it is sent).
"""

from __future__ import annotations

from sglang.srt.managers.io_struct import BaseReq, hook_custom_types


class TokenCakeControlReq(BaseReq, kw_only=True):
    """One control call, for one data-parallel replica or for all (-1). `op` is "event", "actions", "state", "graph"
    (keep this one), "show_graph" or "save" (the history, now); `payload` is a JSON object."""

    control_id: str
    op: str
    payload: str
    dp_rank: int = -1


class TokenCakeControlReqOutput(BaseReq, kw_only=True):
    """The answer of one replica to a control call: an HTTP status and a JSON body."""

    control_id: str
    status: int
    body: str
    dp_rank: int = 0


class TokenCakeTickReq(BaseReq, kw_only=True):
    """Rank 0's clock (seconds, monotonic), broadcast with the requests of a step: all ranks fold the same time.

    `costs`: what rank 0 has measured, in the order of `Costs.to_tuple`; empty when they are as they were.
    """

    now: float
    costs: list[float] = []


def register_ipc_types() -> None:
    """Make the types decodable in this process (idempotent)."""
    hook_custom_types(TokenCakeControlReq, TokenCakeControlReqOutput, TokenCakeTickReq)
