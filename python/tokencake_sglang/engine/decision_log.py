"""Writes what the controller decided, one JSON object a line; equal files on all ranks mean equal decisions."""

from __future__ import annotations

import json
from dataclasses import asdict

from tokencake_sglang.core.plan import Decision, Outcome


class DecisionLog:
    def __init__(self, path: str, rank: int) -> None:
        self.file = open(f"{path}.rank{rank}", "w", buffering=1, encoding="utf-8")  # noqa: SIM115 - lives as long as the process

    def __call__(self, now: float, key: str, decision: Decision, outcome: Outcome | None) -> None:
        action = decision.action
        line = {
            "now": now, "agent": key, "reason": decision.reason, "wake_at": decision.wake_at,
            "action": type(action).__name__ if action is not None else None,
            "terms": asdict(action) if action is not None else None,
            "figures": dict(decision.figures),
            "outcome": asdict(outcome) if outcome is not None else None,
        }
        self.file.write(json.dumps(line, sort_keys=True) + "\n")
