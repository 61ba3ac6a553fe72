"""The decision log: one JSON object a line, with what a decision rests on."""

from __future__ import annotations

import json

from tokencake_sglang.core.plan import Decision, Offload, Outcome
from tokencake_sglang.engine.decision_log import DecisionLog


def test_a_line_names_the_action_the_reason_the_figures_and_the_outcome(tmp_path):
    log = DecisionLog(str(tmp_path / "log"), 1)
    log(2.0, "a", Decision(Offload(9.0), "it waits", 5.0, (("score", 3.5),)), Outcome(True, 64))
    log(3.0, "a", Decision(None, "nothing"), None)
    first, second = map(json.loads, (tmp_path / "log.rank1").read_text().splitlines())
    assert first == {
        "now": 2.0, "agent": "a", "action": "Offload", "terms": {"lease_until": 9.0}, "reason": "it waits",
        "wake_at": 5.0, "figures": {"score": 3.5}, "outcome": {"accepted": True, "tokens": 64, "reason": ""}}
    assert (second["action"], second["figures"], second["outcome"]) == (None, {}, None)
