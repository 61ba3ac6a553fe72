"""The stand-in model of the emulated server: as small as SGLang can load, because it never computes."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

from tokencake_sglang.emulator.tokens import EOS, VOCABULARY


def write_model(directory: Path, layers: int, context_length: int) -> None:
    """Write the configuration of a Qwen2-shaped model of `layers` layers; its weights are SGLang's dummy ones."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps({
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "torch_dtype": "float32",
        "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": layers, "num_attention_heads": 1,
        "num_key_value_heads": 1, "head_dim": 16, "vocab_size": VOCABULARY, "max_position_embeddings": context_length,
        "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "hidden_act": "silu", "tie_word_embeddings": True,
        "bos_token_id": 1, "eos_token_id": EOS,
    }))


def unused_architectures() -> list[str]:
    """SGLang's model modules that the stand-in model does not need. Importing them all takes most of a start."""
    [folder] = importlib.util.find_spec("sglang.srt.models").submodule_search_locations
    return sorted(path.stem for path in Path(folder).glob("*.py") if path.stem not in ("qwen2", "registry", "__init__"))
