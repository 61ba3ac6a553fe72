"""What the controller counts; docs/counters.md says what each means. They only grow."""

from __future__ import annotations

from tokencake_sglang.core.agents import Agent
from tokencake_sglang.core.plan import Action, Backup, Offload, Outcome, Release, Upload
from tokencake_sglang.core.uploads import MIN_UPLOAD_TOKENS

MOVED_TOKENS = {"offload": "tokens_offloaded", "backup": "tokens_backed_up", "upload": "tokens_uploaded"}

COUNTERS = (
    "stalls_started", "stalls_inferred", "stalls_finished",
    "backups_started", "backups_completed", "backups_declined", "tokens_backed_up",
    "offloads_started", "offloads_completed", "offloads_declined",
    "tokens_offloaded", "uploads_started", "uploads_completed", "uploads_on_time", "uploads_late",
    "uploads_declined", "tokens_uploaded", "leases_ended", "agents_ended", "agents_forgotten",
    "actions_accepted", "actions_clipped", "actions_deferred", "actions_rejected", "actions_missing",
    "critical_inversions",
    "denied_by_door", "denied_by_pool", "denied_by_floor", "denied_by_ceiling",
)


class Books:
    """What the mechanism took on, declined and completed, counted and noted on the agent."""

    def __init__(self) -> None:
        self.counters = dict.fromkeys(COUNTERS, 0)
        self.declined: dict[str, int] = {}  # by reason

    def taken_on(self, agent: Agent, action: Action, outcome: Outcome) -> None:
        kind = {Offload: "offload", Backup: "backup", Upload: "upload"}.get(type(action))
        if isinstance(action, Release):
            agent.lease_until = None
            self.counters["leases_ended"] += 1
        if kind is None:
            return
        if not outcome.accepted:
            self.counters[f"{kind}s_declined"] += 1
            self.declined[outcome.reason] = self.declined.get(outcome.reason, 0) + 1
            return
        agent.move = kind
        if kind != "backup":
            agent.upload_ready = False
            agent.lease_until = action.lease_until
        self.counters[f"{kind}s_started"] += 1

    def upload_landed(self, agent: Agent, missing: int, was_asked: bool) -> None:
        """A piece of an upload is there, and so many tokens are still missing. Late is counted once a stall."""
        if agent.calls.open:
            agent.upload_ready = missing < MIN_UPLOAD_TOKENS
        elif not was_asked and not agent.late_counted:
            agent.late_counted = True
            self.counters["uploads_late"] += 1

    def stall_over(self, agent: Agent, *, had_calls: bool) -> None:
        """The tool is back: an upload that had landed before was on time."""
        if had_calls and agent.upload_ready:
            self.counters["uploads_on_time"] += 1
        agent.upload_ready = False

    def completed(self, kind: str, tokens: int) -> None:
        self.counters[f"{kind}s_completed"] += 1
        self.counters[MOVED_TOKENS[kind]] += tokens
