"""A small model directory for trying out a server without downloading anything: config, tokenizer, weights.

The model has the shape of Qwen2 and random weights; it says nothing sensible, but it is fast on a CPU, its output
depends on every token of its context (SGLang's own `--load-format dummy` weights are so small that attention hardly
reaches the output, so that a corrupted KV cache would go unnoticed), and constrained decoding makes it emit valid JSON
and tool calls. The tokenizer is trained on the Python installation's own texts: the same Python version, the same ids.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
from collections.abc import Iterator
from pathlib import Path

END_OF_TEXT, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPECIAL_TOKENS = (END_OF_TEXT, TURN_START, TURN_END)
TOOL_CALL_MARKERS = ("<tool_call>", "</tool_call>")
TEXT_MODULES = ("argparse", "ast", "csv", "dataclasses", "difflib", "inspect", "pydoc", "statistics", "subprocess")
TEXT_MODULES += ("tarfile", "textwrap", "typing", "unittest.mock", "urllib.request", "zipfile")
MAX_CONTEXT_TOKENS = 32768
# How Qwen2's tokenizer cuts text before merging; transformers applies it to every model of this type.
QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)

CHAT_TEMPLATE = """\
{%- if messages[0].role == 'system' -%}
    {%- set system = messages[0].content -%}
    {%- set turns = messages[1:] -%}
{%- else -%}
    {%- set system = 'You are a helpful assistant.' -%}
    {%- set turns = messages -%}
{%- endif -%}
{{- '<|im_start|>system\\n' + system -}}
{%- if tools -%}
    {{- '\\n\\nYou may call these tools, one JSON description per line:\\n<tools>\\n' -}}
    {%- for tool in tools -%}
        {{- tool | tojson + '\\n' -}}
    {%- endfor -%}
    {{- '</tools>\\nA call is one JSON object between markers:\\n' -}}
    {{- '<tool_call>\\n{"name": "the tool", "arguments": {"its": "arguments"}}\\n</tool_call>' -}}
{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- for message in turns -%}
    {%- if message.role == 'tool' -%}
        {%- if loop.first or loop.previtem.role != 'tool' -%}
            {{- '<|im_start|>user' -}}
        {%- endif -%}
        {{- '\\n<tool_response>\\n' + message.content + '\\n</tool_response>' -}}
        {%- if loop.last or loop.nextitem.role != 'tool' -%}
            {{- '<|im_end|>\\n' -}}
        {%- endif -%}
    {%- else -%}
        {{- '<|im_start|>' + message.role + '\\n' + (message.content or '') -}}
        {%- for call in message.tool_calls or [] -%}
            {%- set function = call.function or call -%}
            {%- if not loop.first or message.content -%}{{- '\\n' -}}{%- endif -%}
            {{- '<tool_call>\\n{"name": ' + function.name | tojson + ', "arguments": ' -}}
            {{- function.arguments if function.arguments is string else function.arguments | tojson -}}
            {{- '}\\n</tool_call>' -}}
        {%- endfor -%}
        {{- '<|im_end|>\\n' -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""


def write_demo_model(
    path: str | Path,
    *,
    hidden_size: int = 128,
    num_layers: int = 4,
    num_heads: int = 4,
    num_kv_heads: int = 2,
    vocab_size: int = 4096,
    seed: int = 0,
) -> Path:
    """Write a model directory that `sglang.launch_server --model-path` serves as it is, in a few seconds.

    Args:
        path: directory, created if it is missing; files of an earlier model in it are replaced.
        hidden_size: width, a multiple of ``2 * num_heads``.
        num_layers: decoder layers.
        num_heads, num_kv_heads: attention heads; the second divides the first.
        vocab_size: tokens, at least 512; a multiple of 64 suits SGLang's padding.
        seed: of the random weights.

    Returns:
        The directory.

    Raises:
        ValueError: if the sizes do not fit together.
    """
    if hidden_size % (2 * num_heads) or num_heads % num_kv_heads or vocab_size < 512:
        raise ValueError(
            f"A demo model of hidden_size {hidden_size}, {num_heads} heads, {num_kv_heads} KV heads and {vocab_size} "
            "tokens cannot be built: hidden_size must be a multiple of 2 * num_heads, num_heads of num_kv_heads, "
            "and vocab_size at least 512."
        )
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    token_ids = _write_tokenizer(path, vocab_size)
    config = {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_size": hidden_size,
        "intermediate_size": 2 * hidden_size,
        "num_hidden_layers": num_layers,
        "num_attention_heads": num_heads,
        "num_key_value_heads": num_kv_heads,
        "vocab_size": vocab_size,
        "max_position_embeddings": MAX_CONTEXT_TOKENS,
        "rope_theta": 10000.0,
        "rms_norm_eps": 1e-6,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "use_sliding_window": False,
        "torch_dtype": "float32",
        "bos_token_id": token_ids[END_OF_TEXT],
        "eos_token_id": token_ids[TURN_END],
    }
    _write_json(path / "config.json", config)
    stop = {"bos_token_id": token_ids[END_OF_TEXT], "eos_token_id": [token_ids[TURN_END], token_ids[END_OF_TEXT]]}
    _write_json(path / "generation_config.json", stop)
    _write_weights(path, config, seed)
    return path


def _write_tokenizer(path: Path, vocab_size: int) -> dict[str, int]:
    """Train byte-level BPE on `_training_texts` and save it for AutoTokenizer; returns the ids of the added tokens."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(QWEN2_SPLIT), behavior="isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, to_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(SPECIAL_TOKENS) - len(TOOL_CALL_MARKERS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_training_texts(), trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    # Ordinary tokens, so that they stay in the text from which a server parses tool calls.
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in TOOL_CALL_MARKERS])
    tokenizer.save(str(path / "tokenizer.json"))
    _write_json(
        path / "tokenizer_config.json",
        {
            "tokenizer_class": "Qwen2Tokenizer",
            "eos_token": TURN_END,
            "pad_token": END_OF_TEXT,
            "model_max_length": MAX_CONTEXT_TOKENS,
            "clean_up_tokenization_spaces": False,
            "chat_template": CHAT_TEMPLATE,
        },
    )
    return {token: tokenizer.token_to_id(token) for token in SPECIAL_TOKENS + TOOL_CALL_MARKERS}


def _training_texts() -> Iterator[str]:
    """The language reference in `pydoc_data`, a fixed list of standard modules, and some JSON, in a fixed order."""
    from pydoc_data.topics import topics

    for name in sorted(topics):
        yield topics[name]
    for name in TEXT_MODULES:
        yield Path(importlib.util.find_spec(name).origin).read_text(encoding="utf-8")
    for number, name in enumerate(sorted(topics)):
        yield json.dumps({"name": name, "arguments": {"query": name, "path": f"src/{name}.py", "limit": number}})


def _write_weights(path: Path, config: dict, seed: int) -> None:
    """Random float32 weights under Hugging Face's names, scaled so that each part of the context reaches the output.

    Projections keep the variance of what they are given; queries and keys are larger, so that attention picks out
    single tokens instead of averaging them all away.
    """
    import numpy as np
    from safetensors.numpy import save

    rng = np.random.default_rng(seed)
    hidden, inner, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    kv = hidden // config["num_attention_heads"] * config["num_key_value_heads"]

    def matrix(rows: int, columns: int, gain: float = 1.0):
        return (rng.standard_normal((rows, columns), dtype=np.float32) * gain / math.sqrt(columns)).astype(np.float32)

    ones, bias = np.ones(hidden, np.float32), lambda size: rng.standard_normal(size, dtype=np.float32) * 0.1
    tensors = {
        "model.embed_tokens.weight": rng.standard_normal((vocab, hidden), dtype=np.float32),
        "model.norm.weight": ones,
        "lm_head.weight": matrix(vocab, hidden, 4.0),
    }
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        for name, rows, columns, gain in (
            ("self_attn.q_proj", hidden, hidden, 2.0),
            ("self_attn.k_proj", kv, hidden, 2.0),
            ("self_attn.v_proj", kv, hidden, 1.0),
            ("self_attn.o_proj", hidden, hidden, 1.0),
            ("mlp.gate_proj", inner, hidden, 1.0),
            ("mlp.up_proj", inner, hidden, 1.0),
            ("mlp.down_proj", hidden, inner, 1.0),
        ):
            tensors[f"{prefix}{name}.weight"] = matrix(rows, columns, gain)
            if name[-6:] in ("q_proj", "k_proj", "v_proj"):
                tensors[f"{prefix}{name}.bias"] = bias(rows)
        tensors[prefix + "input_layernorm.weight"] = ones
        tensors[prefix + "post_attention_layernorm.weight"] = ones
    (path / "model.safetensors").write_bytes(save(tensors, metadata={"format": "pt"}))


def _write_json(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")


def main(argv: list[str] | None = None) -> int:
    """``tokencake demo-model DIR``: write the model and print how to serve it."""
    parser = argparse.ArgumentParser(
        prog="tokencake demo-model", description="Write a small random model with a tokenizer and a chat template."
    )
    parser.add_argument("directory", type=Path, metavar="DIR")
    parser.add_argument("--hidden-size", type=int, default=128)
    parser.add_argument("--num-layers", type=int, default=4)
    parser.add_argument("--vocab-size", type=int, default=4096)
    parser.add_argument("--seed", type=int, default=0, help="of the random weights")
    options = parser.parse_args(argv)
    try:
        path = write_demo_model(
            options.directory,
            hidden_size=options.hidden_size,
            num_layers=options.num_layers,
            vocab_size=options.vocab_size,
            seed=options.seed,
        )
    except ValueError as error:
        parser.error(str(error))
    print(f"Wrote a demo model to {path}. Serve it with:")
    print(f"  python -m tokencake_sglang.launch_server --model-path {path} --enable-tokencake")
    return 0
