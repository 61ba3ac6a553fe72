"""What clients may send: agent metadata on a request, and stall events. Standard library only.

Every refusal is a MetadataError whose sentence says what was asked, what was found, what is allowed and what to do.
An optional field whose value is null counts as not given.
"""

from __future__ import annotations

import json
from typing import Any

from tokencake_sglang.core.errors import MetadataError
from tokencake_sglang.core.wire import MAX_STAGES, MAX_TEXT, STAGE_KEYS, clip, known_fields, show

METADATA_KEYS = ("app_id", "graph_id", "node_id", "agent_type", "agent_id", "lifecycle_id")
IDENTITY_KEYS = ("agent_id", "lifecycle_id")
EVENT_KEYS = {
    "stall_started": ("kind", "estimated_duration_s", "estimated_p90_s", "call_id", "stages"),
    "stage_finished": ("call_id", "stage"),
    "stall_finished": ("call_id", "outcome"),
    "agent_finished": (),
    "program_finished": (),
}
OUTCOMES = ("ok", "error", "cancelled")
PURPOSES = ("prefill",)
MAX_DURATION_S = 86400.0
MAX_EVENT_BYTES = 64 * 1024


def parse_metadata(obj: Any) -> dict[str, str]:
    """One agent's metadata: a flat object of 1..256-character strings, with at least one of agent_id, lifecycle_id.

    `parent_agent_id` names the agent that it works for; `purpose` says that the request is not the agent's next step.
    """
    values = _known(obj, "tokencake", (*METADATA_KEYS, "parent_agent_id", "purpose"))
    found = {key: _text(value, f"tokencake.{key}") for key, value in values.items()}
    if found.get("purpose", PURPOSES[0]) not in PURPOSES:
        raise MetadataError(f"tokencake.purpose is {show(found['purpose'])}; allowed: {', '.join(PURPOSES)}."
                            " Correct it, or leave it out for a request that is the agent's next step.")
    _need_identity(found, "tokencake")
    return found


def parse_request_metadata(obj: Any, prompts: int | None, samples: int) -> dict[str, str] | list[dict[str, str]]:
    """The metadata of one request.

    `prompts` is the number of prompts in a batch, or None for a single prompt; `samples` is `n`, answers per prompt.
    A list needs a batch of the same length. A lifecycle_id names one call, so it cannot be shared by several.
    """
    if isinstance(obj, list):
        if prompts is None:
            raise MetadataError(
                f"tokencake is {show(obj)} but the request has one prompt; allowed: one object."
                " Send the object itself, or a list of prompts.")
        if len(obj) != prompts:
            raise MetadataError(
                f"tokencake is {show(obj)} but the request has {prompts} prompts; allowed: one object for all,"
                " or a list with one object per prompt.")
        parsed: dict[str, str] | list[dict[str, str]] = [parse_metadata(item) for item in obj]
        calls = [item["lifecycle_id"] for item in parsed if "lifecycle_id" in item]
        if len(set(calls)) != len(calls):
            raise MetadataError(
                "tokencake gives the same lifecycle_id to two prompts of one batch; a lifecycle_id names one call."
                " Give each prompt its own, or use agent_id.")
    else:
        parsed = parse_metadata(obj)
        calls = [parsed["lifecycle_id"]] if "lifecycle_id" in parsed else []
        if calls and prompts is not None and prompts > 1:
            raise MetadataError(
                f"tokencake.lifecycle_id {show(calls[0])} is given once for {prompts} prompts; a lifecycle_id names"
                " one call. Send a list with one object per prompt, or use agent_id.")
    if calls and samples > 1:
        raise MetadataError(
            f"tokencake.lifecycle_id {show(calls[0])} is given with n={samples}; a lifecycle_id names one call."
            " Ask for n=1, or use agent_id.")
    return parsed


def parse_event(obj: Any) -> dict[str, Any]:
    """One event, with defaults filled in (kind "tool", outcome "ok"); optional fields that were not given are absent.

    `estimated_duration_s` and each stage's `estimated_s` come back as float seconds; an empty list of stages as none.
    """
    if not isinstance(obj, dict):
        raise MetadataError(f"the event is {show(obj)}; allowed: a JSON object with the field event."
                            " Send the event as an object.")
    name = obj.get("event")
    if not isinstance(name, str) or name not in EVENT_KEYS:
        found = show(name) if "event" in obj else "missing"
        raise MetadataError(f"event is {found}; allowed: {', '.join(EVENT_KEYS)}. Correct the field event.")
    values = _known(obj, name, ("event", *IDENTITY_KEYS, *EVENT_KEYS[name]))
    event: dict[str, Any] = {"event": name}
    for key in (*IDENTITY_KEYS, "kind", "call_id", "stage"):
        if key in values:
            event[key] = _text(values[key], key)
    _need_identity(event, name)
    if "estimated_duration_s" in values:
        event["estimated_duration_s"] = _seconds(values["estimated_duration_s"], "estimated_duration_s")
    if name == "stage_finished" and "stage" not in event:
        raise MetadataError("stage is missing; allowed: the name of a stage that the call was started with. Add it.")
    if name == "stall_started":
        event.setdefault("kind", "tool")
        if values.get("stages", []) != []:
            event["stages"] = _stages(values["stages"])
        if "estimated_p90_s" in values:
            event["estimated_p90_s"] = _p90(values["estimated_p90_s"], event)
    if name == "stall_finished":
        outcome = values.get("outcome", "ok")
        if not isinstance(outcome, str) or outcome not in OUTCOMES:
            raise MetadataError(f"outcome is {show(outcome)}; allowed: {', '.join(OUTCOMES)}."
                                " Correct it, or leave it out for ok.")
        event["outcome"] = outcome
    return event


def decode_object(raw: bytes, most: int = MAX_EVENT_BYTES) -> Any:
    """JSON text to values; MetadataError on malformed or too deeply nested text, NaN, infinities and repeated keys, and
    on more than `most` bytes."""
    if len(raw) > most:
        raise MetadataError(f"the body has {len(raw)} bytes; allowed: {most}. Send one event or graph per request.")
    try:
        return json.loads(raw, parse_constant=_no_constant, object_pairs_hook=_no_repeats)
    except MetadataError:
        raise
    except RecursionError:
        raise MetadataError("the body is nested too deeply; allowed: one JSON object. Send the fields"
                            " themselves.") from None
    except ValueError as error:
        raise MetadataError(f"the body is not JSON ({clip(str(error), 120)}); allowed: one JSON object."
                            " Correct the text.") from None


def _no_constant(text: str) -> Any:
    raise MetadataError(f"the body contains {text}, which JSON does not have; allowed: finite numbers."
                        " Leave the field out if the value is not known.")


def _no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise MetadataError("the body gives a field twice; allowed: each field once. Remove one of them.")
    return values


def _known(obj: Any, what: str, allowed: tuple[str, ...]) -> dict[str, Any]:
    return known_fields(obj, what, allowed, MetadataError)


def _need_identity(values: dict[str, Any], what: str) -> None:
    if not any(key in values for key in IDENTITY_KEYS):
        raise MetadataError(f"{what} names no agent; allowed: agent_id, lifecycle_id, or both. Add one of them.")


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise MetadataError(f"{name} is {show(value)}; allowed: a string of 1 to {MAX_TEXT} printable characters."
                            " Send a string.")
    if not 1 <= len(value) <= MAX_TEXT:
        raise MetadataError(f"{name} has {len(value)} characters; allowed: 1 to {MAX_TEXT}. Use a shorter id,"
                            " or leave an empty one out.")
    if not value.isprintable():
        raise MetadataError(f"{name} is {show(value)}, which has a control or unprintable character; allowed:"
                            " printable characters. Remove the others.")
    return value


def _seconds(value: Any, name: str) -> float:
    fits = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= MAX_DURATION_S
    if not fits:
        raise MetadataError(f"{name} is {show(value)}; allowed: a number of seconds from 0 to {MAX_DURATION_S:g}."
                            " Correct it, or leave it out if it is not known.")
    return float(value)


def _p90(value: Any, event: dict[str, Any]) -> float:
    """What nine of ten such calls stay below: not less than what is expected, which must be given."""
    p90 = _seconds(value, "estimated_p90_s")
    of_stages = sum(stage["estimated_s"] for stage in event["stages"]) if "stages" in event else None
    expected = event.get("estimated_duration_s", of_stages)
    if expected is None:
        raise MetadataError("estimated_p90_s is given alone; allowed: together with estimated_duration_s or stages."
                            " Add one of them.")
    if p90 < expected:
        raise MetadataError(f"estimated_p90_s is {show(p90)} where {show(float(expected))} s are expected; allowed:"
                            " at least as much. Correct one of them.")
    return p90


def _stages(value: Any) -> list[dict[str, Any]]:
    if not isinstance(value, list) or len(value) > MAX_STAGES:
        raise MetadataError(f"stages is {show(value)}; allowed: a list of at most {MAX_STAGES} objects with the fields"
                            f" {', '.join(STAGE_KEYS)}. Correct it, or leave it out.")
    stages, names = [], set()
    for number, item in enumerate(value):
        what = f"stages[{number}]"
        fields = _known(item, what, STAGE_KEYS)
        for key in STAGE_KEYS:
            if key not in fields:
                raise MetadataError(f"{what} has no {key}; allowed: an object with the fields {', '.join(STAGE_KEYS)}."
                                    " Add it.")
        name = _text(fields["name"], f"{what}.name")
        if name in names:
            raise MetadataError(f"{what}.name is {show(name)}, which an earlier stage has; allowed: each name once."
                                " Rename one of them.")
        names.add(name)
        stages.append({"name": name, "estimated_s": _seconds(fields["estimated_s"], f"{what}.estimated_s")})
    return stages
