"""What `GET /v1/tokencake/state` shows: agents, stalls, owned tokens, moves, counters."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from tokencake_sglang.core.agents import Agent
from tokencake_sglang.core.stalls import Call

if TYPE_CHECKING:
    from tokencake_sglang.engine.extension import TokenCakeExtension

REPORTED_LEVELS = (0.1, 0.5, 0.9)


def state_report(extension: TokenCakeExtension, max_agents: int, max_stalls: int = 0) -> dict[str, Any]:
    controller = extension.controller
    agents = list(controller.agents)[::-1][:max_agents]
    return {
        "enabled": True,
        "policy": extension.config.offload_policy,
        "priority": extension.config.priority,
        "now": controller.now,
        "num_agents": len(controller.agents),
        "agents": [_agent_report(extension, agent) for agent in agents],
        "moves": extension.mover.moves_in_flight(),
        "pool": asdict(extension.mover.measure_pool()),
        "queue": None if extension.queue is None else extension.queue.report(max_agents),
        "runs": controller.runs.reports(controller.now, max_agents),
        "num_graphs": len(controller.runs.graphs),
        "chunks_parked": extension.parking.parked,
        "beside_long_prompts": extension.beside.went,
        "counters": dict(controller.counters),
        "declined": dict(controller.declined),
        "actions": list(extension.actions.recent)[::-1],
        "stalls": [record.report() for record in controller.records.newest(max_stalls)],
        "stall_totals": dict(controller.records.totals),
    }


def _agent_report(extension: TokenCakeExtension, agent: Agent) -> dict[str, Any]:
    controller = extension.controller
    footprint = extension.mover.footprint(agent.key)
    return {
        "agent": agent.key,
        "app_id": agent.identity.app_id,
        "graph_id": agent.identity.graph_id,
        "node_id": agent.identity.node_id,
        "agent_type": agent.identity.agent_type,
        "lifecycle_id": agent.identity.lifecycle_id,
        "parent": agent.identity.parent_agent_id,
        "program": agent.program,
        "state": agent.state,
        "requests": agent.requests,
        "open_calls": [_call_report(extension, agent, call) for call in agent.calls.open.values()],
        "move": agent.move,
        "lease_until": agent.lease_until,
        "used_until": agent.used_until,
        "kept_until": controller.retention.until(agent.key),
        "tokens": asdict(footprint),
    }


def _call_report(extension: TokenCakeExtension, agent: Agent, call: Call) -> dict[str, Any]:
    controller = extension.controller
    forecast = call.forecast(controller.now, controller.forecaster, agent.identity.agent_type)
    return {
        "call_id": call.call_id, "kind": call.kind, "inferred": call.inferred, "started_at": call.started_at,
        "predicted_end": call.started_at + forecast.expected_s,
        "remaining_s": {str(level): forecast.quantile(level) for level in REPORTED_LEVELS},
        "forecast_from": forecast.source,
    }
