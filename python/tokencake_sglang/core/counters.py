"""What the controller counts; docs/counters.md says what each means. They only grow."""

from __future__ import annotations

MOVED_TOKENS = {"offload": "tokens_offloaded", "backup": "tokens_backed_up", "upload": "tokens_uploaded"}

COUNTERS = (
    "stalls_started", "stalls_inferred", "stalls_finished",
    "backups_started", "backups_completed", "backups_declined", "tokens_backed_up",
    "offloads_started", "offloads_completed", "offloads_declined",
    "tokens_offloaded", "uploads_started", "uploads_completed", "uploads_on_time", "uploads_late",
    "uploads_declined", "tokens_uploaded", "leases_ended", "agents_ended", "agents_forgotten",
    "actions_accepted", "actions_clipped", "actions_deferred", "actions_rejected", "actions_missing",
)
