"""The envelope `kv_hints` of SGLang's and vLLM's proposals: actions that a client asks for, checked and in one form.

An envelope is `{"protocol_version", "message_id", "actions": [{"action_id", "action_type", "action_version",
"payload"}]}`. What an action does to which agent is in its payload; docs/control-api.md has the fields.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tokencake_sglang.core.errors import MetadataError
from tokencake_sglang.server.dialects.convert import MAX_DURATION_S, identifier, milliseconds, seconds
from tokencake_sglang.server.schema import MAX_TEXT

MAX_ACTIONS = 64
DEFAULT_RETAIN_S = 300.0
MAJOR_VERSION = "1"  # of the actions
PROTOCOL_MAJORS = ("0", "1")  # of the envelope, whose form is the same in both
TARGETS = ("agent_id", "session_id", "lifecycle_id")


@dataclass(frozen=True)
class Argument:
    """One argument of an action: the names under which it comes with the converter of each, and what is allowed."""

    name: str
    sources: tuple[tuple[str, Callable[[Any], Any]], ...]
    allowed: str
    default: Any = None
    needed: bool = False


_TIME = f"0 to {MAX_DURATION_S:g} seconds"
_CALL = Argument("call_id", (("call_id", identifier), ("tool_call_id", identifier)), "a text")
TYPES: dict[str, tuple[str, tuple[Argument, ...]]] = {  # action type -> kind of core/actions.py, arguments
    "kv.retain": ("retain", (
        Argument("for_s", (("ttl_seconds", seconds), ("duration", seconds), ("ttl_ms", milliseconds)), _TIME,
                 DEFAULT_RETAIN_S),)),
    "kv.demote": ("demote", ()),
    "kv.prefetch": ("prefetch", ()),
    "kv.release": ("release", ()),
    "signal.tool_wait": ("tool_wait", (
        Argument("kind", (("kind", identifier), ("tool_name", identifier)), "a text", "tool"), _CALL,
        Argument("estimated_duration_s", (("estimated_duration_s", seconds),
                                          ("expected_tool_duration_ms", milliseconds)), _TIME))),
    "signal.resume_estimate": ("resume_estimate", (
        Argument("resume_in_s", (("resume_in_s", seconds), ("resume_in_ms", milliseconds)), _TIME, needed=True),
        _CALL)),
}


@dataclass(frozen=True)
class Asked:
    """One action of an envelope: checked (`action`), or refused with a sentence."""

    action_id: str
    action_type: str
    action: dict[str, Any] | None = None
    refusal: str = ""


def parse_envelope(obj: Any, own: str | None = None) -> tuple[str, list[Asked]]:
    """The message id and the actions. `own`: the agent of an action that names none.

    MetadataError when the envelope is none; an action that cannot be carried out as it stands is refused by itself.
    """
    if not isinstance(obj, dict):
        raise MetadataError("the body is no JSON object; allowed: an object with the list actions. Send an envelope.")
    version = obj.get("protocol_version", "0.1")
    if not isinstance(version, str) or version.split(".")[0] not in PROTOCOL_MAJORS:
        raise MetadataError("protocol_version is not known; allowed: 0.x and 1.x, as a text. Send \"0.1\", or leave it"
                            " out.")
    actions = obj.get("actions")
    if not isinstance(actions, list) or not 1 <= len(actions) <= MAX_ACTIONS:
        raise MetadataError(f"actions is no list of 1 to {MAX_ACTIONS} objects. Send one, in several envelopes if there"
                            " are more.")
    return _id(obj.get("message_id"), ""), [_parse_action(item, str(i), own) for i, item in enumerate(actions)]


def _parse_action(item: Any, number: str, own: str | None) -> Asked:
    values = item if isinstance(item, dict) else {}
    action_id = _id(values.get("action_id"), number)
    given = values.get("action_type")
    if not isinstance(given, str):
        return Asked(action_id, "", refusal="action_type is no text. Send one of " + ", ".join(TYPES) + ".")
    name, _, version = given[:MAX_TEXT].partition("@")
    known = TYPES.get(name)
    if known is None:
        return Asked(action_id, name, refusal="this server does not know that action_type; it knows "
                     + ", ".join(TYPES) + ".")
    version = values.get("action_version") or version or MAJOR_VERSION
    if not isinstance(version, str) or version.split(".")[0] != MAJOR_VERSION:
        return Asked(action_id, name, refusal=f"action_version is not known. Send \"{MAJOR_VERSION}\".")
    try:
        return Asked(action_id, name, {"action": known[0], **_payload(values.get("payload"), known[1], own)})
    except MetadataError as error:
        return Asked(action_id, name, refusal=str(error))


def _payload(payload: Any, arguments: tuple[Argument, ...], own: str | None) -> dict[str, Any]:
    values = {} if payload is None else payload
    if not isinstance(values, dict):
        raise MetadataError("payload is no object. Send one that names an agent.")
    found: dict[str, Any] = {}
    for name in TARGETS:
        if values.get(name) is not None:
            text = identifier(values[name])
            if text is None:
                raise MetadataError(f"payload.{name} is not a text of printable characters. Correct it.")
            found.setdefault("lifecycle_id" if name == "lifecycle_id" else "agent_id", text)
    if not found:
        if own is None:
            raise MetadataError("payload names no agent; allowed: " + ", ".join(TARGETS) + ". Add one of them.")
        found["agent_id"] = own
    for argument in arguments:
        value = _argument(values, argument)
        if value is not None:
            found[argument.name] = value
    return found


def _argument(values: dict[str, Any], argument: Argument) -> Any:
    for name, convert in argument.sources:
        if values.get(name) is None:
            continue
        value = convert(values[name])
        if value is None:
            raise MetadataError(f"payload.{name} is not what is allowed: {argument.allowed}. Correct it.")
        return value
    if argument.needed:
        names = " or ".join(name for name, _ in argument.sources)
        raise MetadataError(f"payload has no {names}. Add one.")
    return argument.default


def _id(value: Any, default: str) -> str:
    return value[:MAX_TEXT] if isinstance(value, str) else default
