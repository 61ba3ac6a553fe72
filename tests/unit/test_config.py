"""TokenCakeConfig: every field's range and type, unknown names, and the way through JSON."""

from __future__ import annotations

import math
from dataclasses import FrozenInstanceError, fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokencake_sglang.core.config import TokenCakeConfig
from tokencake_sglang.core.errors import ConfigError, TokenCakeError

FIELDS = {f.name: f for f in fields(TokenCakeConfig)}
NUMBERS = {name: f for name, f in FIELDS.items() if type(f.default) in (int, float)}
WORDS = {name: f for name, f in FIELDS.items() if f.metadata["choices"] is not None}
TEXTS = {name: f for name, f in FIELDS.items() if isinstance(f.default, str) and name not in WORDS}


def outside(name: str) -> list[float]:
    """One value just below and one just above the range of a numeric field."""
    field = NUMBERS[name]
    low, high = field.metadata["low"], field.metadata["high"]
    if type(field.default) is int:
        return [low - 1, high + 1]
    return [math.nextafter(low, -math.inf), math.nextafter(high, math.inf)]


def test_the_defaults_are_valid_and_every_field_says_what_it_is():
    config = TokenCakeConfig()
    for name, field in FIELDS.items():
        assert getattr(config, name) == field.default
        assert field.metadata["help"].endswith("."), name
        assert (name in WORDS or name in TEXTS) == (field.metadata["low"] is None), name


@pytest.mark.parametrize("name", NUMBERS)
def test_both_ends_of_a_range_are_allowed(name):
    field = NUMBERS[name]
    for end in (field.metadata["low"], field.metadata["high"]):
        value = type(field.default)(end)
        assert getattr(TokenCakeConfig.from_dict({name: value}), name) == value


@pytest.mark.parametrize(("name", "value"), [(n, v) for n in NUMBERS for v in outside(n)])
def test_a_value_outside_its_range_is_refused_with_name_value_and_range(name, value):
    with pytest.raises(ConfigError, match=name) as caught:
        TokenCakeConfig.from_dict({name: value})
    assert repr(value) in str(caught.value) and "allowed: " in str(caught.value)


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", ["1", None, True, [1], {"s": 1}])
def test_a_number_must_be_a_number_and_true_is_none(name, value):
    with pytest.raises(ConfigError, match=f"{name} must be"):
        TokenCakeConfig.from_dict({name: value})


@pytest.mark.parametrize("name", [n for n, f in NUMBERS.items() if type(f.default) is float])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_seconds_are_finite(name, value):
    with pytest.raises(ConfigError, match=name):
        TokenCakeConfig.from_dict({name: value})


@pytest.mark.parametrize("name", [n for n, f in NUMBERS.items() if type(f.default) is int])
def test_a_count_must_be_whole(name):
    with pytest.raises(ConfigError, match=f"{name} must be int"):
        TokenCakeConfig.from_dict({name: 10.0})


def test_seconds_may_be_given_as_a_whole_number():
    assert TokenCakeConfig.from_dict({"lease_s": 3}).lease_s == 3


@pytest.mark.parametrize("name", WORDS)
def test_a_word_must_be_one_of_its_choices(name):
    for choice in WORDS[name].metadata["choices"]:
        assert getattr(TokenCakeConfig.from_dict({name: choice}), name) == choice
    with pytest.raises(ConfigError, match="allowed: " + ", ".join(WORDS[name].metadata["choices"])):
        TokenCakeConfig.from_dict({name: "greedy"})
    with pytest.raises(ConfigError, match=f"{name} must be str"):
        TokenCakeConfig.from_dict({name: 1})


def test_an_unknown_name_is_refused_and_the_known_ones_are_listed():
    with pytest.raises(ConfigError, match="unknown TokenCake setting 'lease'") as caught:
        TokenCakeConfig.from_dict({"lease": 1.0})
    for name in FIELDS:
        assert name in str(caught.value)


def test_a_config_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        TokenCakeConfig().lease_s = 1.0


def test_a_config_error_is_a_value_error_and_one_of_ours():
    assert issubclass(ConfigError, ValueError) and issubclass(ConfigError, TokenCakeError)


@pytest.mark.parametrize("text", ["", "{", "nul", "[1, 2]", "3", "null", '"off"'])
def test_text_that_is_not_a_json_object_is_refused(text):
    with pytest.raises(ConfigError):
        TokenCakeConfig.from_json(text)


def test_an_empty_object_gives_the_defaults():
    assert TokenCakeConfig.from_json("{}") == TokenCakeConfig()


def test_json_may_not_smuggle_in_a_number_that_is_none():
    with pytest.raises(ConfigError, match="lease_s"):
        TokenCakeConfig.from_json('{"lease_s": NaN}')


def any_value(field):
    if field.name == "tenant_shares":
        return st.just("")  # tests/unit/test_tenant_shares.py
    if field.name in TEXTS:
        return st.text()
    if field.metadata["choices"]:
        return st.sampled_from(field.metadata["choices"])
    low, high = field.metadata["low"], field.metadata["high"]
    return st.integers(low, high) if type(field.default) is int else st.floats(low, high)


@given(st.fixed_dictionaries({}, optional={name: any_value(f) for name, f in FIELDS.items()}))
def test_every_valid_config_comes_back_from_json_unchanged(values):
    config = TokenCakeConfig.from_dict(values)
    assert TokenCakeConfig.from_json(config.to_json()) == config
