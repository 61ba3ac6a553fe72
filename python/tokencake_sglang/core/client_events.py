"""What clients tell of their agents: tool calls that start, go on and end, agents and programs that end."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tokencake_sglang.core.agents import Agent
from tokencake_sglang.core.stalls import Reply

if TYPE_CHECKING:
    from tokencake_sglang.core.controller import Controller


class ClientEvents:
    """Folds them into one controller's state and answers each."""

    def __init__(self, controller: Controller) -> None:
        self.controller = controller

    def fold(self, event: dict[str, Any]) -> Reply:
        """`event` was validated; an agent that is not known is answered, too."""
        agents, agent_id, lifecycle_id = self.controller.agents, event.get("agent_id"), event.get("lifecycle_id")
        agent = agents.find(agent_id, lifecycle_id)
        if agent is None:
            return agents.unknown(event["event"], agent_id, lifecycle_id)
        agents.touch(agent, self.controller.now)
        if event["event"] == "agent_finished":
            self._end_agent(agent)
            return Reply(200, "applied", f"Agent {agent.key!r} has ended; its KV is ordinary cache now.")
        if event["event"] == "program_finished":
            return self._end_program(agent.program)
        if event["event"] == "stall_started":
            return self._stall_started(agent, event)
        if event["event"] == "stage_finished":
            return self._stage_finished(agent, event)
        return self._stall_finished(agent, event)

    def _stall_started(self, agent: Agent, event: dict[str, Any]) -> Reply:
        controller, inferred = self.controller, event.get("inferred", False)
        if inferred and agent.tells_calls:
            return Reply(200, "ignored", f"Agent {agent.key!r} reports its calls itself.")
        if not inferred:
            agent.tells_calls = True
            dropped = agent.calls.drop_inferred()
            controller.counters["stalls_finished"] += dropped
            if dropped:
                controller.runs.stall_dropped(agent.key)
        reply = agent.calls.start(
            controller.now, event.get("call_id"), event["kind"], event.get("estimated_duration_s"),
            tuple((stage["name"], stage["estimated_s"]) for stage in event.get("stages", ())), inferred,
            event.get("estimated_p90_s"))
        if reply.result != "applied":
            return reply
        controller.counters["stalls_started"] += 1
        controller.counters["stalls_inferred"] += inferred
        controller.runs.stall_started(controller.now, agent.key, event["kind"])
        stall = controller.stall_view(agent)
        controller.records.opened(
            controller.now, agent.key, agent.identity.agent_type, stall.kind, stall.predicted_end)
        agent.returned_at = None
        agent.late_counted = False
        controller.mark_due(agent)
        back_in = stall.predicted_end - controller.now
        return replace(reply, message=f"{reply.message} The agent is expected to go on in {back_in:.3g} s.")

    def _stage_finished(self, agent: Agent, event: dict[str, Any]) -> Reply:
        reply = agent.calls.finish_stage(self.controller.now, event.get("call_id"), event["stage"])
        self.controller.learn(agent)
        if reply.result == "applied":
            self.controller.mark_due(agent)
        return reply

    def _stall_finished(self, agent: Agent, event: dict[str, Any]) -> Reply:
        controller = self.controller
        reply = agent.calls.finish(controller.now, event.get("call_id"), event["outcome"])
        controller.learn(agent)
        if reply.result == "applied":
            controller.counters["stalls_finished"] += 1
            if not agent.calls.open:
                agent.returned_at = controller.now
                controller.stall_over(agent, event["outcome"], had_calls=True)
            controller.mark_due(agent)
        return reply

    def _end_agent(self, agent: Agent) -> None:
        self.controller.counters["agents_ended"] += 1
        self.controller.remove(agent, ended=True)

    def _end_program(self, program: str) -> Reply:
        """Its agents end, but for those that are being served: they show that it goes on."""
        agents = [self.controller.agents.get(key) for key in self.controller.agents.programs[program]]
        ending = [agent for agent in agents if not agent.rids]
        for agent in ending:
            self._end_agent(agent)
        left = len(agents) - len(ending)
        return Reply(200, "applied", f"Program {program!r} has ended with {len(ending)} agents; {left} others are being"
                     " served.")
