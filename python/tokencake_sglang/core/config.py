"""Every setting of TokenCake, with its unit, default and range. One frozen value, validated once."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from tokencake_sglang.core.errors import ConfigError
from tokencake_sglang.core.tenant_shares import parse_shares

OFFLOAD_POLICIES = ("cost", "eager", "none", "paper", "score")
WRITE_POLICIES = ("hicache", "tokencake")
ORDERS = ("program", "sglang")
POOLS = ("none", "paper", "shipped", "demand")
PRIORITIES = ("critical-path", "paper", "shipped", "none")
ADMISSIONS = ("forecast", "max-tokens")
CHUNKS = ("auto", "balanced", "fixed")
FORECASTS = ("quantile", "paper")
UPLOADS = ("timer", "at-return", "at-stall", "hybrid", "none")
INFER = ("clients", "names", "none")


def _setting(default: Any, help: str, *, low: float | None = None, high: float | None = None,
             choices: tuple[str, ...] | None = None) -> Any:
    return field(default=default, metadata={"help": help, "low": low, "high": high, "choices": choices})


@dataclass(frozen=True)
class TokenCakeConfig:
    """Settings of the serving side. The launcher offers each as `--tokencake-<name>`; all times are seconds."""

    offload_policy: str = _setting(
        "cost", "What to do with the KV of an agent that waits for a tool: 'cost' weighs what it is worth against the"
        " memory that others want, 'eager' moves it to host memory when the stall is expected to be longer than the"
        " floor, 'none' leaves it to the ordinary cache, 'paper' and 'score' are the two published rules.",
        choices=OFFLOAD_POLICIES)
    order: str = _setting(
        "program", "Who goes next: 'program' orders and admits by program, with a fair share for each pool (the same as"
        " --schedule-policy tokencake); 'sglang' leaves it to --schedule-policy.",
        choices=ORDERS)
    priority: str = _setting(
        "critical-path", "Who goes next inside a program whose graph is known, with the order 'program':"
        " 'critical-path' the request with the longest way to the end of its run, 'paper' and 'shipped' that of the"
        " highest published score, 'none' the one that came first.",
        choices=PRIORITIES)
    admission: str = _setting(
        "forecast", "How many tokens a request is taken to generate when SGLang looks whether it fits, with the order"
        " 'program': 'forecast' what its client says or requests of its agent type generated before, never more than"
        " it asks for; 'max-tokens' what it asks for, as SGLang does.",
        choices=ADMISSIONS)
    chunks: str = _setting(
        "auto", "How many prompt tokens a mixed batch computes: 'balanced' as many as take the device as long as the"
        " decoding beside them, by measured costs, and never more than --chunked-prefill-size; 'fixed' as that says;"
        " 'auto' is balanced where the launcher chooses the chunks, else fixed.", choices=CHUNKS)
    pools: str = _setting(
        "none", "Device memory that is reserved for the agent types that matter most, with the order 'program': 'paper'"
        " and 'shipped' by the published rules, 'demand' by what critical work needs next, 'none' reserves nothing.",
        choices=POOLS)
    seniority_s: float = _setting(
        1800.0, "Older programs go first up to this age in seconds; beyond it requests go by their own age, so that"
        " none waits longer than this for what came after it.",
        low=1.0, high=86400.0)
    score_selection: str = _setting(
        "first_fit", "Which waiting request justifies an offload of the policy 'score': the first of the queue that"
        " fits into the memory, or the largest.",
        choices=("first_fit", "best_fit"))
    upload: str = _setting(
        "timer", "When the KV of an agent that waits for a tool comes back, with the policy 'cost': 'timer' in time for"
        " the earliest likely return, 'at-return' once the tool has returned, 'at-stall' as soon as memory lies free,"
        " 'hybrid' then and by the timer, 'none' with the next request.",
        choices=UPLOADS)
    write_policy: str = _setting(
        "hicache", "When KV of agents is copied to the host: 'hicache' as --hicache-write-policy says, 'tokencake' only"
        " when a decision asks for it.",
        choices=WRITE_POLICIES)
    stall_floor_s: float = _setting(
        0.5, "Stalls expected to be shorter than this many seconds keep their KV on the device.",
        low=0.0, high=86400.0)
    default_stall_s: float = _setting(
        1.0, "Expected length in seconds of a stall of which nothing is known (paper section 4, cold start).",
        low=0.0, high=86400.0)
    forecast: str = _setting(
        "quantile", "How the end of a stall is forecast: 'quantile' learns the spread of durations and of the errors"
        " of estimates, 'paper' is the published average of estimate and history.",
        choices=FORECASTS)
    history: str = _setting(
        "", "Keep what calls took in this file, so that a restarted server need not learn it again; empty: do not.")
    upload_lead_s: float = _setting(
        0.25, "How many seconds before the predicted return an upload starts, at the least.", low=0.0, high=3600.0)
    lease_s: float = _setting(
        5.0, "How many seconds after the predicted return uploaded KV stays protected from eviction.",
        low=0.0, high=3600.0)
    min_offload_tokens: int = _setting(
        64, "An agent with fewer unshared tokens on the device than this keeps them there.", low=1, high=2**31)
    max_agents: int = _setting(
        65536, "Agents remembered at most; beyond it the one that was idle longest is forgotten.", low=1, high=2**24)
    agent_idle_s: float = _setting(
        3600.0, "An agent with no request, event or stall for this many seconds is forgotten.",
        low=1.0, high=604800.0)
    tick_interval_s: float = _setting(
        0.01, "The shortest time between two messages in which rank 0 tells all ranks the time because an agent is"
        " due.",
        low=0.0, high=10.0)
    load_slots: int = _setting(
        16, "Host-to-device copies that may be in flight at a time (SGLang: 3).", low=4, high=256)
    stall_records: int = _setting(
        1024, "Ended stalls whose records the server keeps.", low=0, high=65536)
    decision_log: str = _setting(
        "", "Write every decision of rank N, one JSON object a line, to this file with the ending .rankN; empty: do"
        " not.")
    infer: str = _setting(
        "clients", "What is found out of clients that do not tell: 'names' reads the session and agent ids that agent"
        " stacks send by themselves; 'clients' also takes conversations with tools for agents and infers their stalls"
        " from the tool calls in answers; 'none' reads nothing.",
        choices=INFER)
    tenant_header: str = _setting(
        "", "The name of the request header that tells tenants apart, between which the queue takes turns; empty: all"
        " are one tenant. A secret (authorization, x-api-key) is known by its hash.")
    tenant_shares: str = _setting(
        "", "What each tenant can always get back of the device memory, and what it does not exceed while another"
        " has work, as acme=0.2:0.6,beta=0.1:1; '*' gives a ceiling to all others. Or a .json or .yaml file of such"
        " pairs. Empty: no bounds.")
    tool_events: str = _setting(
        "", "Receive the tool events of NVIDIA Dynamo's harnesses on this ZMQ endpoint, as tcp://127.0.0.1:20390;"
        " empty: do not.")

    def __post_init__(self) -> None:
        for f in fields(self):
            _check(f.name, f.default, getattr(self, f.name), f.metadata)
        if parse_shares(self.tenant_shares) and not self.tenant_header:
            raise ConfigError(
                "TokenCake setting tenant_shares is given but no tenants are told apart; tenant_header names the header"
                " that does. Add it, or remove the shares.")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TokenCakeConfig:
        """Build from plain values; raises ConfigError on an unknown name, wrong type or value out of range."""
        known = [f.name for f in fields(cls)]
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise ConfigError(
                f"unknown TokenCake setting {unknown[0]!r}; the settings are: {', '.join(known)}."
                " Remove it or correct the name.")
        return cls(**values)

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> TokenCakeConfig:
        try:
            values = json.loads(text)
        except ValueError as error:
            raise ConfigError(f"TokenCake settings are not valid JSON: {error}.") from None
        if not isinstance(values, dict):
            raise ConfigError(f"TokenCake settings must be an object, found {type(values).__name__}.")
        return cls.from_dict(values)


def _check(name: str, default: Any, value: Any, meta: Any) -> None:
    wanted = type(default)
    is_number = wanted in (int, float)
    allowed = (int, float) if wanted is float else wanted
    if not isinstance(value, allowed) or (is_number and isinstance(value, bool)):
        raise ConfigError(
            f"TokenCake setting {name} must be {wanted.__name__}, found {value!r} ({type(value).__name__}).")
    if meta["choices"] and value not in meta["choices"]:
        raise ConfigError(f"TokenCake setting {name} is {value!r}; allowed: {', '.join(meta['choices'])}.")
    if is_number and not (meta["low"] <= value <= meta["high"]):
        raise ConfigError(f"TokenCake setting {name} is {value!r}; allowed: {meta['low']:g} to {meta['high']:g}.")
