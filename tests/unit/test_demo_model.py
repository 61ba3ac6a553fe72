"""The demo model directory: reproducible, loadable, and with a template that SGLang's tool parser understands."""

from __future__ import annotations

import json

import pytest

from tokencake_sglang import cli
from tokencake_sglang.demo_model import write_demo_model

TOOLS = [{"type": "function", "function": {"name": "search", "parameters": {"type": "object"}}}]
CALL = {"type": "function", "function": {"name": "search", "arguments": {"query": "tides"}}}


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return write_demo_model(tmp_path_factory.mktemp("demo-model"))


@pytest.fixture(scope="module")
def tokenizer(directory):
    transformers = pytest.importorskip("transformers")
    return transformers.AutoTokenizer.from_pretrained(directory)


def test_writing_twice_gives_the_same_bytes(directory, tmp_path):
    write_demo_model(tmp_path)
    names = sorted(path.name for path in directory.iterdir())
    assert names == sorted(path.name for path in tmp_path.iterdir())
    assert [name for name in names if (directory / name).read_bytes() != (tmp_path / name).read_bytes()] == []


def test_another_seed_changes_the_weights_and_nothing_else(directory, tmp_path):
    write_demo_model(tmp_path, seed=1)
    changed = [p.name for p in tmp_path.iterdir() if p.read_bytes() != (directory / p.name).read_bytes()]
    assert changed == ["model.safetensors"]


@pytest.mark.parametrize("text", ["def f(x):\n\treturn {'a': 1}\n", "naïve Zoë ☃ 12345", " two  spaces ", ""])
def test_text_survives_encoding_and_decoding(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_english_takes_about_a_third_of_its_characters_in_tokens(tokenizer):
    text = "The function returns a list of the values in the order in which they were given to it."
    assert len(tokenizer.encode(text)) < len(text) / 3


def test_token_ids_fit_the_vocabulary_of_the_config(directory, tokenizer):
    config = json.loads((directory / "config.json").read_text())
    assert len(tokenizer) == config["vocab_size"]
    assert max(tokenizer.get_vocab().values()) < config["vocab_size"]
    assert config["eos_token_id"] == tokenizer.convert_tokens_to_ids("<|im_end|>") == tokenizer.eos_token_id


def test_turn_markers_are_dropped_from_shown_text_and_tool_call_markers_are_kept(tokenizer):
    ids = tokenizer.encode("<tool_call>\n{}\n</tool_call><|im_end|>")
    assert tokenizer.decode(ids, skip_special_tokens=True) == "<tool_call>\n{}\n</tool_call>"
    assert len(tokenizer.encode("<|im_start|>")) == len(tokenizer.encode("</tool_call>")) == 1


def test_template_lists_the_tools_in_the_system_turn(tokenizer):
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    text = tokenizer.apply_chat_template(messages, tools=TOOLS, tokenize=False, add_generation_prompt=True)
    system, user, assistant = text.split("<|im_start|>")[1:]
    assert system.startswith("system\nBe brief.") and json.dumps(TOOLS[0]) in system
    assert user == "user\nHi<|im_end|>\n"
    assert assistant == "assistant\n"


def test_template_without_tools_says_nothing_of_them(tokenizer):
    text = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    assert "tool" not in text and text.startswith("<|im_start|>system\n")


@pytest.mark.parametrize("arguments", [{"query": "tides"}, '{"query": "tides"}'], ids=["object", "string"])
def test_template_writes_calls_as_the_parser_reads_them_and_joins_tool_answers_in_one_turn(tokenizer, arguments):
    call = {"type": "function", "function": {"name": "search", "arguments": arguments}}
    messages = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "", "tool_calls": [call, CALL]},
        {"role": "tool", "content": "high"},
        {"role": "tool", "content": "low"},
        {"role": "user", "content": "Thanks"},
    ]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    block = '<tool_call>\n{"name": "search", "arguments": {"query": "tides"}}\n</tool_call>'
    assert f"assistant\n{block}\n{block}<|im_end|>" in text
    answers = "\n<tool_response>\nhigh\n</tool_response>\n<tool_response>\nlow\n</tool_response>"
    assert f"<|im_start|>user{answers}<|im_end|>\n<|im_start|>user\nThanks" in text


@pytest.mark.parametrize("sizes", [{"hidden_size": 130}, {"num_kv_heads": 3}, {"vocab_size": 300}])
def test_sizes_that_do_not_fit_are_refused_with_the_rule(tmp_path, sizes):
    with pytest.raises(ValueError, match="must be a multiple"):
        write_demo_model(tmp_path / "model", **sizes)
    assert not (tmp_path / "model").exists()


def test_command_writes_the_model_and_says_how_to_serve_it(tmp_path, capsys):
    assert cli.main(["demo-model", str(tmp_path / "m"), "--num-layers", "1", "--vocab-size", "512"]) == 0
    assert json.loads((tmp_path / "m/config.json").read_text())["num_hidden_layers"] == 1
    assert f"--model-path {tmp_path / 'm'}" in capsys.readouterr().out


def test_command_refuses_bad_sizes_and_unknown_subcommands(tmp_path, capsys):
    for argv, said in (
        (["demo-model", str(tmp_path / "m"), "--vocab-size", "8"], "at least 512"),
        (["frobnicate"], "demo-model"),
    ):
        with pytest.raises(SystemExit) as stop:
            cli.main(argv)
        assert stop.value.code == 2
        assert said in capsys.readouterr().err
