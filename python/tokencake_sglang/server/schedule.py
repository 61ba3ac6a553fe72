"""Who orders the waiting queue: SGLang's --schedule-policy with one name more, `tokencake`.

TokenCake orders it unless the user asks SGLang for an order, by a schedule policy or by client priorities.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokencake_sglang.core.config import TokenCakeConfig
from tokencake_sglang.core.errors import ConfigError

OWN = "tokencake"
SETTING = "order"


def settle(given: Mapping[str, Any], values: dict[str, Any], enabled: bool) -> dict[str, Any]:
    """TokenCake's settings by name, `values`, with the order that the ServerArgs values `given` ask for."""
    asked, priorities = given.get("schedule_policy"), given.get("enable_priority_scheduling")
    if asked != OWN:
        is_sglangs = asked is not None or priorities
        return {SETTING: "sglang", **values} if enabled and is_sglangs else values
    if not enabled:
        raise ConfigError("--schedule-policy tokencake is given but TokenCake is not on. Add --enable-tokencake, or"
                          " name one of SGLang's policies.")
    if priorities or values.get(SETTING) == "sglang":
        other = "--enable-priority-scheduling" if priorities else "--tokencake-order sglang"
        raise ConfigError(f"--schedule-policy tokencake and {other} are both given, but only one can order the queue."
                          " Leave one out.")
    return {**values, SETTING: "program"}


def check(config: TokenCakeConfig | None, given: Mapping[str, Any]) -> None:
    """Raise ConfigError when both would order the queue; `given` holds what SGLang read, its --config file too."""
    if config is None or config.order == "sglang":
        return
    for name in ("schedule_policy", "enable_priority_scheduling"):
        if given.get(name):
            flag = "--" + name.replace("_", "-")
            raise ConfigError(f"TokenCake orders the queue (order is {config.order!r}) and SGLang's {flag} is set too."
                              " Add --tokencake-order sglang to leave the order to SGLang, or remove it.")
