"""The table of refused combinations against the real ServerArgs and environment variables of SGLang."""

from __future__ import annotations

import argparse
import dataclasses
from types import SimpleNamespace

import pytest
from sglang.srt.environ import envs
from sglang.srt.mem_cache.registry import TreeCacheBuildContext
from sglang.srt.server_args import ServerArgs

from tokencake_sglang.core.errors import ConfigError
from tokencake_sglang.server import refuse

REFUSED = {
    "pp_size": 2, "nnodes": 2, "dcp_size": 2, "attn_cp_size": 2, "tokenizer_worker_num": 2,
    "enable_dp_attention": True, "enable_pdmux": True, "sleep_on_idle": True, "speculative_algorithm": "EAGLE",
    "dllm_algorithm": "LowConfidence", "disable_radix_cache": True, "radix_cache_backend": "flexkv",
    "enable_lmcache": True, "enable_flexkv": True, "enable_hisparse": True, "enable_unified_memory": True,
    "enable_session_radix_cache": True, "enable_streaming_session": True, "hicache_write_policy": "write_back",
    "hicache_storage_backend": "file", "disaggregation_mode": "prefill", "is_embedding": True, "encoder_only": True,
    "use_ray": True, "smg_grpc_mode": True, "grpc_mode": True, "device": "npu",
}


def defaults(**changed) -> SimpleNamespace:
    """The default flags of SGLang, as its own parser gives them."""
    parser = argparse.ArgumentParser()
    ServerArgs.add_cli_args(parser)
    values = vars(parser.parse_args(["--model-path", "m"]))
    return SimpleNamespace(**{**values, **changed})


def test_the_default_flags_and_our_own_are_served():
    refuse.check(defaults(), environ={})
    refuse.check(defaults(radix_cache_backend="tokencake", enable_hierarchical_cache=True), environ={})


def test_every_attribute_of_the_table_is_a_field_and_a_flag_of_server_args():
    fields = {field.name for field in dataclasses.fields(ServerArgs)}
    parser = argparse.ArgumentParser()
    ServerArgs.add_cli_args(parser)
    flags = {word for action in parser._actions for word in action.option_strings}
    for item in refuse.REFUSALS:
        assert item.attribute in fields and item.flag in flags, item


def test_this_file_tries_every_entry_of_the_table():
    assert set(REFUSED) == {item.attribute for item in refuse.REFUSALS}


@pytest.mark.parametrize("attribute", REFUSED)
def test_each_refusal_is_one_line_with_the_flag_the_reason_and_the_remedy(attribute):
    with pytest.raises(ConfigError) as caught:
        refuse.check(defaults(**{attribute: REFUSED[attribute]}), environ={})
    message = str(caught.value)
    item = next(item for item in refuse.REFUSALS if item.attribute == attribute)
    assert item.flag in message and item.reason in message and item.remedy in message and "\n" not in message


@pytest.mark.parametrize("value", ["write_through", "write_through_selective"])
def test_both_write_through_policies_are_served(value):
    refuse.check(defaults(hicache_write_policy=value), environ={})


@pytest.mark.parametrize("name", [name for name, _ in refuse.ENVIRONMENT])
def test_each_environment_variable_exists_and_is_refused_when_true(name):
    assert hasattr(envs, name)
    refuse.check(defaults(), environ={name: "0"})
    for text in ("1", "true", "YES"):
        with pytest.raises(ConfigError, match=f"Unset {name}"):
            refuse.check(defaults(), environ={name: text})


@pytest.mark.parametrize("attribute", ["is_hybrid_swa", "is_hybrid_ssm", "is_dsa", "disable_radix_cache"])
def test_each_unsupported_kind_of_model_is_refused_when_the_cache_is_built(attribute):
    assert attribute in {field.name for field in dataclasses.fields(TreeCacheBuildContext)}
    plain = dict.fromkeys(("is_hybrid_swa", "is_hybrid_ssm", "is_dsa", "disable_radix_cache"), False)
    refuse.check_model(SimpleNamespace(**plain))
    with pytest.raises(ConfigError, match="without --enable-tokencake"):
        refuse.check_model(SimpleNamespace(**{**plain, attribute: True}))
