"""What clients may send, and that nothing they send can raise anything but a MetadataError."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokencake_sglang.core.errors import MetadataError
from tokencake_sglang.server.schema import (
    EVENT_KEYS,
    METADATA_KEYS,
    decode_object,
    parse_event,
    parse_metadata,
    parse_request_metadata,
)

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4), max_leaves=12)
FIELD_NAMES = st.sampled_from([*METADATA_KEYS, "event", "kind", "call_id", "outcome", "estimated_duration_s", "stages",
                               "estimated_p90_s", "purpose",
                               "stage", "name", "estimated_s", "x"])


def nested(depth: int) -> object:
    value: object = "bottom"
    for _ in range(depth):
        value = {"a": value}
    return value


@pytest.mark.parametrize("metadata", [
    {"agent_id": "a"},
    {"lifecycle_id": "l"},
    {"agent_id": "a", "lifecycle_id": "l"},
    {key: "v" * 256 for key in METADATA_KEYS},
    {"agent_id": "Ünïcode agent 智能体"},
    {"agent_id": "a", "purpose": "prefill"}, {"agent_id": "a", "parent_agent_id": "b"},
])
def test_good_metadata_comes_back_unchanged(metadata):
    assert parse_metadata(metadata) == metadata


def test_a_null_optional_field_counts_as_not_given():
    assert parse_metadata({"agent_id": "a", "app_id": None}) == {"agent_id": "a"}


@pytest.mark.parametrize(("metadata", "words"), [
    (None, "null"), ([], "a list of 0"), ("a", "'a'"), (3, "3"), (True, "true"),
    ({}, "names no agent"), ({"app_id": "x"}, "names no agent"), ({"agent_id": None}, "names no agent"),
    ({"agent_id": ""}, "has 0 characters"), ({"agent_id": "a" * 257}, "has 257 characters"),
    ({"agent_id": "a" * 10_000_000}, "has 10000000 characters"),
    ({"agent_id": 1}, "agent_id is 1"), ({"agent_id": True}, "agent_id is true"),
    ({"agent_id": 10 ** 5000}, "a number of"), ({"agent_id": {"id": "a"}}, "an object with 1 fields"),
    ({"agent_id": ["a"]}, "a list of 1"), ({"agent_id": nested(3000)}, "an object with 1 fields"),
    ({"agent_id": "a\n"}, "unprintable"), ({"agent_id": "\x00"}, "unprintable"),
    ({"agent_id": "\ud800"}, "unprintable"),
    ({"agent_id": "a", "agent": "b"}, "'agent'"), ({"agent_id": "a", "Agent_id": "b"}, "'Agent_id'"),
    ({"agent_id": "a", "purpose": "talk"}, "purpose is 'talk'"), ({"agent_id": "a", "purpose": 1}, "purpose is 1"),
    ({"purpose": "prefill"}, "names no agent"),
    ({"agent_id": "a", "k" * 5000: "b"}, "kkk"), ({"agent_id": "a", 3: "b"}, "3"),
])
def test_bad_metadata_is_refused_in_a_sentence_that_names_what_was_found(metadata, words):
    with pytest.raises(MetadataError, match=".") as caught:
        parse_metadata(metadata)
    message = str(caught.value)
    assert words in message and "allowed:" in message and len(message) < 400


@pytest.mark.parametrize(("sent", "read"), [
    ({"event": "stall_started", "agent_id": "a"}, {"event": "stall_started", "agent_id": "a", "kind": "tool"}),
    ({"event": "stall_started", "lifecycle_id": "l", "kind": "search", "estimated_duration_s": 2, "call_id": "c"},
     {"event": "stall_started", "lifecycle_id": "l", "kind": "search", "estimated_duration_s": 2.0, "call_id": "c"}),
    ({"event": "stall_started", "agent_id": "a", "estimated_duration_s": 0},
     {"event": "stall_started", "agent_id": "a", "kind": "tool", "estimated_duration_s": 0.0}),
    ({"event": "stall_started", "agent_id": "a", "estimated_duration_s": 86400.0, "kind": None},
     {"event": "stall_started", "agent_id": "a", "kind": "tool", "estimated_duration_s": 86400.0}),
    ({"event": "stall_started", "agent_id": "a", "stages": [{"name": "s", "estimated_s": 2}]},
     {"event": "stall_started", "agent_id": "a", "kind": "tool", "stages": [{"name": "s", "estimated_s": 2.0}]}),
    ({"event": "stall_started", "agent_id": "a", "estimated_duration_s": 2, "estimated_p90_s": 9},
     {"event": "stall_started", "agent_id": "a", "kind": "tool", "estimated_duration_s": 2.0, "estimated_p90_s": 9.0}),
    ({"event": "stall_started", "agent_id": "a", "stages": [{"name": "s", "estimated_s": 2}], "estimated_p90_s": 2},
     {"event": "stall_started", "agent_id": "a", "kind": "tool", "stages": [{"name": "s", "estimated_s": 2.0}],
      "estimated_p90_s": 2.0}),
    ({"event": "stall_started", "agent_id": "a", "stages": []},
     {"event": "stall_started", "agent_id": "a", "kind": "tool"}),
    ({"event": "stage_finished", "agent_id": "a", "call_id": "c", "stage": "s"},
     {"event": "stage_finished", "agent_id": "a", "call_id": "c", "stage": "s"}),
    ({"event": "stage_finished", "lifecycle_id": "l", "call_id": None, "stage": "s"},
     {"event": "stage_finished", "lifecycle_id": "l", "stage": "s"}),
    ({"event": "stall_finished", "agent_id": "a"}, {"event": "stall_finished", "agent_id": "a", "outcome": "ok"}),
    ({"event": "stall_finished", "agent_id": "a", "call_id": "c", "outcome": "cancelled"},
     {"event": "stall_finished", "agent_id": "a", "call_id": "c", "outcome": "cancelled"}),
    ({"event": "agent_finished", "agent_id": "a", "lifecycle_id": "l"},
     {"event": "agent_finished", "agent_id": "a", "lifecycle_id": "l"}),
])
def test_good_events_are_read_with_their_defaults(sent, read):
    assert parse_event(sent) == read


@pytest.mark.parametrize(("event", "words"), [
    (None, "null"), ([1], "a list of 1"), ("x", "'x'"), ({}, "event is missing"),
    ({"event": None}, "event is null"), ({"event": "start", "agent_id": "a"}, "'start'"),
    ({"event": ["stall_started"]}, "a list of 1"), ({"event": {}}, "an object with 0"),
    ({"event": "stall_started"}, "names no agent"),
    ({"event": "stall_started", "agent_id": "a", "outcome": "ok"}, "'outcome'"),
    ({"event": "stall_finished", "agent_id": "a", "kind": "x"}, "'kind'"),
    ({"event": "stall_finished", "agent_id": "a", "estimated_duration_s": 1}, "'estimated_duration_s'"),
    ({"event": "agent_finished", "agent_id": "a", "call_id": "c"}, "'call_id'"),
    ({"event": "stall_finished", "agent_id": "a", "outcome": "great"}, "'great'"),
    ({"event": "stall_finished", "agent_id": "a", "outcome": ["ok"]}, "a list of 1"),
    ({"event": "stall_started", "agent_id": "a", "kind": 3}, "kind is 3"),
    ({"event": "stall_started", "agent_id": "a", "call_id": "c" * 257}, "257"),
    ({"event": "stall_started", "agent_id": "a", "estimated_duration_s": -0.001}, "-0.001"),
    ({"event": "stall_started", "agent_id": "a", "estimated_duration_s": 86401}, "86401"),
    ({"event": "stall_started", "agent_id": "a", "estimated_duration_s": True}, "true"),
    ({"event": "stall_started", "agent_id": "a", "estimated_duration_s": "2"}, "'2'"),
    ({"event": "stall_started", "agent_id": "a", "estimated_duration_s": math.nan}, "nan"),
    ({"event": "stall_started", "agent_id": "a", "estimated_duration_s": math.inf}, "inf"),
    ({"event": "stall_started", "agent_id": "a", "estimated_duration_s": 10 ** 5000}, "bits"),
    ({"event": "stall_started", "agent_id": "a", "estimated_p90_s": 2}, "given alone"),
    ({"event": "stall_started", "agent_id": "a", "estimated_duration_s": 3, "estimated_p90_s": 2}, "3.0 s are exp"),
    ({"event": "stall_started", "agent_id": "a", "estimated_p90_s": 2, "estimated_duration_s": None,
      "stages": [{"name": "s", "estimated_s": 3}]}, "3.0 s are expected"),
    ({"event": "stall_started", "agent_id": "a", "estimated_duration_s": 3, "estimated_p90_s": "x"}, "p90_s is 'x'"),
    ({"event": "stage_finished", "agent_id": "a", "call_id": "c"}, "stage is missing"),
    ({"event": "stage_finished", "agent_id": "a", "stage": ""}, "stage has 0"),
    ({"event": "stage_finished", "agent_id": "a", "stage": 3}, "stage is 3"),
    ({"event": "stall_finished", "agent_id": "a", "stage": "s"}, "'stage'"),
    *[({"event": "stall_started", "agent_id": "a", "stages": stages}, words) for stages, words in [
        ("network", "stages is 'network'"), ({"name": "s"}, "an object with 1"), (0, "stages is 0"),
        (False, "stages is false"), ("", "stages is ''"),
        ([{"name": f"s{i}", "estimated_s": 1} for i in range(33)], "a list of 33"),
        (["s"], "stages[0] is 's'"), ([{"name": "s"}], "stages[0] has no estimated_s"),
        ([{"estimated_s": 1}], "stages[0] has no name"), ([{"name": "s", "estimated_s": 1, "x": 2}], "'x'"),
        ([{"name": "s", "estimated_s": None}], "no estimated_s"),
        ([{"name": "s", "estimated_s": 1}, {"name": "t", "estimated_s": -1}], "stages[1].estimated_s is -1"),
        ([{"name": "s", "estimated_s": 1}, {"name": "s", "estimated_s": 2}], "an earlier stage"),
        ([{"name": "", "estimated_s": 1}], "stages[0].name has 0"),
        ([{"name": ["s"], "estimated_s": 1}], "a list of 1")]],
])
def test_bad_events_are_refused_in_a_sentence_that_names_what_was_found(event, words):
    with pytest.raises(MetadataError) as caught:
        parse_event(event)
    assert words in str(caught.value) and "allowed:" in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize("raw", [
    b"", b"{", b"nonsense", b"\xff\xfe", b'{"a": NaN}', b'{"a": -Infinity}', b'{"a": 1, "a": 2}', b"1" * 5000,
    b"[" * 60_000, b'{"a":' * 10_000, b'"' + b"a" * 70_000 + b'"',
], ids=lambda raw: f"{raw[:12]!r}-{len(raw)}")
def test_text_that_is_not_an_ordinary_json_object_is_refused(raw):
    with pytest.raises(MetadataError) as caught:
        parse_event(decode_object(raw))
    assert len(str(caught.value)) < 400


def test_one_object_serves_a_whole_batch_and_a_list_must_fit_it():
    one = {"agent_id": "a"}
    assert parse_request_metadata(one, prompts=3, samples=4) == one
    assert parse_request_metadata([one, one], prompts=2, samples=1) == [one, one]
    for wrong, prompts in ((([one]), None), ([one], 2), ([], 1), ([one, None], 2)):
        with pytest.raises(MetadataError):
            parse_request_metadata(wrong, prompts=prompts, samples=1)


@pytest.mark.parametrize(("metadata", "prompts", "samples"), [
    ({"lifecycle_id": "l"}, 2, 1), ({"lifecycle_id": "l"}, None, 2), ({"lifecycle_id": "l"}, 1, 2),
    ([{"lifecycle_id": "l"}, {"lifecycle_id": "l"}], 2, 1), ([{"lifecycle_id": "l"}, {"agent_id": "a"}], 2, 3),
])
def test_a_lifecycle_id_names_exactly_one_call(metadata, prompts, samples):
    with pytest.raises(MetadataError, match="names one call"):
        parse_request_metadata(metadata, prompts, samples)


def test_a_lifecycle_id_is_fine_for_a_batch_of_one_and_for_distinct_prompts():
    assert parse_request_metadata({"lifecycle_id": "l"}, 1, 1) == {"lifecycle_id": "l"}
    both = [{"lifecycle_id": "l"}, {"lifecycle_id": "m"}]
    assert parse_request_metadata(both, 2, 1) == both


@given(JSON_VALUES | st.dictionaries(FIELD_NAMES, JSON_VALUES | st.sampled_from(list(EVENT_KEYS))))
def test_no_value_raises_anything_but_a_metadata_error(value):
    for parse in (parse_metadata, parse_event, lambda v: parse_request_metadata(v, 2, 1)):
        try:
            json.dumps(parse(value), allow_nan=False)
        except MetadataError as error:
            assert 0 < len(str(error)) < 500


@given(st.binary(max_size=200) | st.text().map(lambda t: t.encode("utf-8", "surrogatepass")))
def test_no_bytes_raise_anything_but_a_metadata_error(raw):
    try:
        decode_object(raw)
    except MetadataError as error:
        assert str(error)
