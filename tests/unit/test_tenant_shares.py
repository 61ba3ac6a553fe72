"""Shares of tenants: what is read, and what is refused with a sentence."""

from __future__ import annotations

import json

import pytest

from tokencake_sglang.core.config import TokenCakeConfig
from tokencake_sglang.core.errors import ConfigError
from tokencake_sglang.core.tenant_shares import Share, parse_shares, share_of
from tokencake_sglang.server.options import build_parser, config_from, config_from_flags, split


def test_a_share_is_a_floor_and_a_ceiling():
    found = parse_shares("acme=0.2:0.6, beta=0.1:1,")
    assert found == {"acme": Share(0.2, 0.6), "beta": Share(0.1, 1.0)}
    assert share_of(found, "acme").ceiling == 0.6 and share_of(found, "who") == Share(0.0, 1.0)
    assert share_of(parse_shares("*=0:0.5"), "who").ceiling == 0.5


def test_a_name_may_hold_what_separates_numbers():
    assert parse_shares("a=b:c=0.1:0.2") == {"a=b:c": Share(0.1, 0.2)}


@pytest.mark.parametrize(("text", "told"), [
    ("acme", "the part 'acme'"), ("acme=0.5", "name=floor:ceiling"), ("acme=a:1", "shares from 0 to 1"),
    ("acme=0.5:0.4", "at most its ceiling"), ("acme=0:0", "ceiling above 0"), ("acme=-1:1", "from 0 to 1"),
    ("acme=0:nan", "from 0 to 1"), ("acme=0:1,acme=0:1", "two shares"), ("*=0.1:1", "floor of 0"),
    ("a=0.6:1,b=0.5:1", "add up to 1.1")])
def test_a_wrong_share_is_refused_with_what_is_allowed(text, told):
    with pytest.raises(ConfigError, match=told) as caught:
        parse_shares(text)
    assert "allowed: " in str(caught.value) and "tenant_shares" in str(caught.value)


def test_floors_may_add_up_to_the_whole_device():
    assert len(parse_shares(",".join(f"t{n}=0.1:1" for n in range(10)))) == 10


def test_shares_need_a_header_that_tells_tenants_apart():
    with pytest.raises(ConfigError, match="tenant_header"):
        TokenCakeConfig(tenant_shares="acme=0.1:1")
    assert TokenCakeConfig(tenant_shares="acme=0.1:1", tenant_header="x-tenant").tenant_shares == "acme=0.1:1"


def test_a_file_gives_the_same_as_the_text(tmp_path):
    (tmp_path / "shares.json").write_text(json.dumps({"acme": [0.2, 0.6], "beta": [0, 1]}))
    config = config_from({"tenant_header": "x", "tenant_shares": str(tmp_path / "shares.json")})
    assert parse_shares(config.tenant_shares) == parse_shares("acme=0.2:0.6,beta=0:1")
    assert TokenCakeConfig.from_json(config.to_json()) == config


@pytest.mark.parametrize("content", ['{"acme": 0.2}', '{"acme": [1]}', '{"a,b": [0, 1]}', '{"acme": ["0", true]}'])
def test_a_file_that_holds_no_pairs_is_refused(tmp_path, content):
    (tmp_path / "shares.json").write_text(content)
    with pytest.raises(ConfigError, match="list of floor and ceiling"):
        config_from({"tenant_header": "x", "tenant_shares": str(tmp_path / "shares.json")})


def test_a_file_that_is_not_there_is_refused():
    with pytest.raises(ConfigError, match="cannot be read"):
        config_from({"tenant_header": "x", "tenant_shares": "/nowhere/shares.yaml"})


def test_the_flag_takes_shares():
    ours, rest = split(["--enable-tokencake", "--tokencake-tenant-header", "x-tenant",
                        "--tokencake-tenant-shares", "acme=0.2:0.6", "--model-path", "m"])
    assert config_from_flags(ours).tenant_shares == "acme=0.2:0.6" and rest == ["--model-path", "m"]
    assert "--tokencake-pools" in build_parser().format_help()
