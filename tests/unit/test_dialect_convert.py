"""One unit, one polarity, bounded names: the converters, and the resolver on values of every type and size."""

from __future__ import annotations

import math
from dataclasses import fields

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tokencake_sglang.core.hints import RequestHints
from tokencake_sglang.core.types import IDENTITY_FIELDS
from tokencake_sglang.server.dialects import HEADER_NAMES, convert, resolve
from tokencake_sglang.server.dialects.resolver import DIALECTS, Resolved
from tokencake_sglang.server.schema import METADATA_KEYS, parse_metadata

NOT_TIMES = (None, True, "", "soon", "5 minutes", "-1s", "1e3", "5m30s", -1, 86401, math.nan, math.inf, 10**400, [5],
             {"s": 5}, "9" * 5000, "24h1m", "٣s")
NOT_NUMBERS = (None, True, "7", "", math.nan, -math.inf, 10**400, [1], {})


@pytest.mark.parametrize(("convert_", "value", "expected"), [
    (convert.seconds, 30, 30.0), (convert.seconds, 0.5, 0.5), (convert.seconds, "30", 30.0),
    (convert.seconds, "30s", 30.0), (convert.seconds, " 5M ", 300.0), (convert.seconds, "1h", 3600.0),
    (convert.seconds, "250 ms", 0.25), (convert.seconds, "1d", 86400.0), (convert.seconds, 86400, 86400.0),
    (convert.milliseconds, 1500, 1.5), (convert.milliseconds, "1500", 1.5), (convert.milliseconds, "2s", 2.0),
    (convert.duration_text, "2s", 2.0), (convert.duration_text, 2, None), (convert.duration_text, "2", None),
    (convert.cache_control, {"type": "ephemeral"}, 300.0),
    (convert.cache_control, {"type": "ephemeral", "ttl": "90s"}, 90.0),
    (convert.cache_control, {"type": "ephemeral", "ttl": "long"}, None),
    (convert.cache_control, {"type": "persistent", "ttl": "1h"}, None),
    (convert.cache_control, {"ttl": "1h"}, None), (convert.cache_control, "1h", None),
    (convert.higher_first, 0, 0), (convert.higher_first, 42, 42), (convert.higher_first, 2.9, 2),
    (convert.higher_first, -5, 0), (convert.higher_first, 10**9, 99),
    (convert.lower_first, 0, 99), (convert.lower_first, -5, 99), (convert.lower_first, 42, 57),
    (convert.lower_first, 10**9, 0),
    (convert.count, 1, 1), (convert.count, 2**31, 2**31), (convert.count, 0, None), (convert.count, 2**31 + 1, None),
    (convert.count, 1.0, None), (convert.count, True, None), (convert.count, "9", None),
    (convert.truth, True, True), (convert.truth, 1, True), (convert.truth, "TRUE ", True), (convert.truth, 0, False),
    (convert.truth, "false", False), (convert.truth, 2, None), (convert.truth, 1.0, None), (convert.truth, "yes", None),
    (convert.is_close, "close", True), (convert.is_close, "bind", False), (convert.is_close, True, None),
    (convert.identifier, " a b ", "a b"), (convert.identifier, "", None), (convert.identifier, " ", None),
    (convert.identifier, "a\nb", None), (convert.identifier, "\ud800", None), (convert.identifier, 5, None),
    (convert.identifier, "Null", None), (convert.identifier, "x" * 256, "x" * 256),
    (convert.identifier_or_number, 5, "5"), (convert.identifier_or_number, -(2**63), str(-(2**63))),
    (convert.identifier_or_number, 2**5000, None), (convert.identifier_or_number, True, None),
    (convert.identifier_or_number, 1.5, None),
    *((convert.seconds, value, None) for value in NOT_TIMES), *((convert.milliseconds, v, None) for v in ("x", -1, [])),
    *((convert.higher_first, v, None) for v in NOT_NUMBERS), *((convert.lower_first, v, None) for v in NOT_NUMBERS),
])
def test_a_value_becomes_what_it_means_or_nothing(convert_, value, expected):
    found = convert_(value)
    assert found == expected and type(found) is type(expected)


def test_a_longer_name_becomes_a_short_one_of_its_own_and_always_the_same():
    names = ["a" * 257, "a" * 258, "a" * 256 + "b", "a" * 10**6]
    short = [convert.identifier(name) for name in names]
    assert len(set(short)) == 4 and all(len(name) == 71 and name.startswith("sha256-") for name in short)
    assert short == [convert.identifier(name) for name in names]


names = st.text(st.characters(categories=("L", "N", "P")), min_size=1, max_size=5) | st.sampled_from(
    ["a", "a/b", "b", "a%2Fb", "%", "/", "x" * 300])


@example(["a/b", "c", "d"], ["a", "b/c", "d"])
@example(["a/b", "c", "d"], ["a%2Fb", "c", "d"])
@given(st.lists(names, min_size=3, max_size=3), st.lists(names, min_size=3, max_size=3))
def test_different_parts_make_different_names(one, other):
    assert (convert.joined(one[:2], one[2]) == convert.joined(other[:2], other[2])) == (one == other)


# -- values of every type and size at every place that is read -----------------------------------------------------

PLACES = sorted({rule.path for dialect in DIALECTS if not dialect.of_headers for rule in dialect.rules} | {
    ("vllm_xargs", "agentic_context", "program_id"), ("vllm_xargs", "job_id"), ("vllm_xargs", "is_last_step"),
    ("vllm_xargs", "agentic_context"), ("vllm_xargs", "agentic_context", "priority"), ("vllm_xargs",),
    ("kv_transfer_params", "agent_hint"), ("kv_transfer_params", "agent_hint", "trajectory_id"), ("metadata",),
    ("metadata", "user_id"), ("user",), ("system",), ("tools",), ("messages",), ("cache_control",), ("nvext",),
    ("nvext", "agent_context"), ("agent_hints",)})
leaves = (st.none() | st.booleans() | st.integers() | st.sampled_from([10**400, -10**400, 2**63, "x" * 300, "[" * 2000])
          | st.floats() | st.text(max_size=12) | st.sampled_from(["5m", "close", "true", '{"session_id": [1]}', "a/b"])
          | st.sampled_from(['{"program_id": 5}', "user__session_x", "\ud800", "NaN", "1e999", "undefined"]))
values = st.recursive(leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
    st.sampled_from(["cache_control", "type", "ttl", "content", "session_id", "x"]), inner, max_size=3), max_leaves=8)


def put(body: dict, path: tuple[str, ...], value: object) -> None:
    for key in path[:-1]:
        inner = body.get(key)
        if not isinstance(inner, dict):
            inner = body[key] = {}
        body = inner
    body[path[-1]] = value


@st.composite
def bodies(draw):
    body: dict = {}
    for path in draw(st.lists(st.sampled_from(PLACES), max_size=12)):
        put(body, path, draw(values))
    return body


@settings(deadline=None, max_examples=300)
@given(st.sampled_from(["/generate", "/v1/chat/completions", "/v1/messages", "/v1/responses"]),
       st.dictionaries(st.sampled_from(sorted(HEADER_NAMES)), st.text(max_size=300), max_size=6), bodies() | values)
def test_whatever_is_sent_is_understood_within_its_bounds_or_ignored(path, headers, body):
    found = resolve(path, headers, body)
    assert found == resolve(path, headers, body) and hash(found) == hash(resolve(path, headers, body))
    assert set(found.identity) <= set(IDENTITY_FIELDS)
    for text in (*found.identity.values(), found.parent_agent_id, found.tool_kind):
        assert text is None or (type(text) is str and 1 <= len(text) <= 256 and text.isprintable())
    assert found.priority is None or (type(found.priority) is int and 0 <= found.priority <= 99)
    assert found.expected_output_tokens is None or 1 <= found.expected_output_tokens <= 2**31
    for time_s in (found.expected_tool_s, found.cache_ttl_s):
        assert time_s is None or (type(time_s) is float and 0 <= time_s <= 86400)
    assert type(found.final) is bool and type(found.last_step) is bool
    assert set(found.sources) <= {field.name for field in fields(Resolved)} | set(IDENTITY_FIELDS)
    if found.metadata() is not None:
        metadata = found.metadata()
        assert all(type(value) is str and len(value) <= 256 for value in metadata.values())
        identity = {name: value for name, value in metadata.items() if name in IDENTITY_FIELDS}
        assert parse_metadata(identity) == identity == found.identity
        hints = RequestHints.from_metadata(metadata)
        assert hints.expected_output_tokens == found.expected_output_tokens and hints.priority == (found.priority or 0)
        assert hints.cache_ttl_s == (found.cache_ttl_s or None)


def test_the_identity_fields_are_those_of_the_native_object():
    assert set(IDENTITY_FIELDS) == set(METADATA_KEYS)
