"""What is known of a kind of tool before one call of it has been seen."""

from __future__ import annotations

import math
from dataclasses import dataclass

UNKNOWN_SPREAD = 1.5
ESTIMATE_SPREAD = 0.3
HUMAN_ESTIMATE_SPREAD = 1.0
FAR_SHARE = 0.03
HUMAN_FAR_SHARE = 0.08
HUMAN_KINDS = ("human", "user_confirm")

# kind: median in seconds, spread. Measured where the trace names the tool (TraceLab; InferCept's table of
# interceptions), else the TokenCake paper's table 1 and the defaults of its published harness, made wider.
PRESETS: dict[str, tuple[float, float]] = {
    "file_read": (0.036, 1.4),
    "file_search": (0.05, 2.5),
    "file_system": (0.09, 1.0),
    "file_edit": (0.095, 1.2),
    "file_write": (0.1, 1.2),
    "git": (0.09, 1.0),
    "sqlite": (0.45, 1.0),
    "sql": (0.45, 1.0),
    "shell": (0.41, 2.7),
    "search": (2.5, 1.0),
    "web_search": (2.5, 1.0),
    "web": (10.0, 1.4),
    "sub_agent": (0.18, 3.4),
    "test": (5.5, 1.5),
    "external_test": (5.5, 1.5),
    "text_to_speech": (17.0, 1.0),
    "ai_generation": (14.0, 1.0),
    "image_generation": (18.0, 1.0),
    "user_confirm": (29.0, 1.5),
    "human": (84.0, 2.1),
}

# What the tools of coding agents are called, in lower case and without separators, and the preset that they resemble.
TOOL_NAMES: dict[str, str] = {
    "read": "file_read", "readfile": "file_read", "view": "file_read", "openfile": "file_read",
    "glob": "file_search", "grep": "file_search", "ls": "file_search", "listfiles": "file_search",
    "edit": "file_edit", "multiedit": "file_edit", "applypatch": "file_edit", "strreplace": "file_edit",
    "write": "file_write", "writefile": "file_write",
    "bash": "shell", "shell": "shell", "exec": "shell", "execcommand": "shell", "localshell": "shell",
    "websearch": "web_search", "webfetch": "web", "fetch": "web",
    "task": "sub_agent", "agent": "sub_agent", "spawnagent": "sub_agent",
    "askuserquestion": "user_confirm",
}


def preset_of(kind: str) -> str | None:
    """The preset that a kind of tool has by its name; None: none."""
    if kind in PRESETS:
        return kind
    return TOOL_NAMES.get(kind.lower().replace("_", "").replace("-", ""))


@dataclass(frozen=True)
class Prior:
    """Before the first sample: ln(seconds / unit) has this centre and this standard deviation. `far_share` of calls
    last longer than anything that resembles the others."""

    centre: float
    spread: float
    far_share: float


def prior_of_durations(kind: str | None, default_s: float) -> Prior:
    """In seconds. An unknown kind (None: all kinds together) has the median `default_s`."""
    preset = preset_of(kind) if kind is not None else None
    median, spread = PRESETS[preset] if preset else (max(default_s, 0.001), UNKNOWN_SPREAD)
    return Prior(math.log(median), spread, HUMAN_FAR_SHARE if preset in HUMAN_KINDS else FAR_SHARE)


def prior_of_ratios(kind: str | None) -> Prior:
    """Of duration to estimate: the estimate is right, more or less; people are harder to foresee."""
    human = kind is not None and preset_of(kind) in HUMAN_KINDS
    return Prior(0.0, HUMAN_ESTIMATE_SPREAD if human else ESTIMATE_SPREAD, HUMAN_FAR_SHARE if human else FAR_SHARE)
