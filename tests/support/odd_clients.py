"""Hypothesis strategies for requests of clients that send anything at all in the fields and headers that are read."""

from __future__ import annotations

import copy
import json
from typing import Any

from hypothesis import strategies as st

from tests.unit.test_dialect_convert import PLACES, put, values
from tests.unit.test_dialects import BODIES as GOLDEN_BODIES
from tests.unit.test_dialects import HEADERS as GOLDEN_HEADERS
from tokencake_sglang.server.actions import TYPES
from tokencake_sglang.server.dialects import HEADER_NAMES
from tokencake_sglang.server.hints import PLACES as HINT_PLACES
from tokencake_sglang.server.schema import METADATA_KEYS

PROMPT = "The quick brown fox jumps over the lazy dog."
MESSAGES = [{"role": "user", "content": PROMPT}]
BODIES: dict[str, dict[str, Any]] = {  # a good request on each route
    "/generate": {"text": PROMPT, "sampling_params": {"temperature": 0, "max_new_tokens": 4}},
    "/v1/completions": {"model": "demo", "prompt": PROMPT, "temperature": 0, "max_tokens": 4},
    "/v1/chat/completions": {"model": "demo", "messages": MESSAGES, "temperature": 0, "max_tokens": 4},
    "/v1/messages": {"model": "demo", "messages": MESSAGES, "temperature": 0, "max_tokens": 4},
    "/v1/responses": {"model": "demo", "input": PROMPT, "temperature": 0, "max_output_tokens": 4, "store": False},
}
OF_SGLANG = ("system", "tools", "messages", "cache_control")  # part of the prompt: SGLang reads and refuses them itself
FIELDS = sorted({place for place in PLACES if place[0] not in OF_SGLANG and place != ("body",)} | {
    *HINT_PLACES, *((*place, "actions") for place in HINT_PLACES), ("kv_transfer_params",), ("tokencake",),
    *(("tokencake", key) for key in METADATA_KEYS)} - {("session",)})


def _nested(depth: int, kind: str) -> Any:
    value: Any = "x"
    for _ in range(depth):
        value = [value] if kind == "list" else {"a": value}
    return value


large = st.one_of(
    st.builds(_nested, st.sampled_from([50, 240, 900]), st.sampled_from(["list", "dict"])),
    st.sampled_from([100, 100_000]).map(lambda n: "x" * n), st.sampled_from([64, 65, 3000]).map(lambda n: [{}] * n),
    st.just({f"k{i}": i for i in range(3000)}))
actions = st.lists(st.fixed_dictionaries({
    "action_type": st.sampled_from([*TYPES, "kv.retain@1", "kv.other"]), "payload": st.dictionaries(
        st.sampled_from(["agent_id", "session_id", "ttl_seconds", "resume_in_s", "kind", "call_id"]),
        values | st.sampled_from(["a", "b", 5, "5m"]), max_size=4)}), max_size=4)
names = st.sampled_from(["a", "b", "run-7", "5m", "true", "x" * 300, "häßlich 智"]) | st.text(min_size=1, max_size=12)
anything = names | values | large | actions | actions.map(lambda some: {"actions": some})
GOOD_BODIES = [body for body, _ in GOLDEN_BODIES.values()]
GOOD_HEADERS = [sent for sent, _ in GOLDEN_HEADERS.values()]
headers = st.sampled_from(GOOD_HEADERS) | st.dictionaries(
    st.sampled_from(sorted(HEADER_NAMES)),
    st.text(st.characters(min_codepoint=32, max_codepoint=255, exclude_characters="\x7f"), max_size=40)
    | st.sampled_from(["true", "s", "x" * 4000, "[" * 500, "null", "a/b%2F"]), max_size=5)


@st.composite
def fields(draw: st.DrawFn) -> dict[str, Any]:
    """What is added to a good request: anything at all, at times beside what a real client sends."""
    body = copy.deepcopy(draw(st.just({}) | st.sampled_from(GOOD_BODIES)))
    for place in draw(st.lists(st.sampled_from(FIELDS), min_size=0 if body else 1, max_size=6)):
        put(body, place, draw(anything))
    return body


def encoded(body: dict[str, Any]) -> bytes | None:
    """The body as a client would send it; None for values of which no JSON text can be made."""
    try:
        return json.dumps(body).encode()
    except (ValueError, RecursionError, UnicodeEncodeError):
        return None
