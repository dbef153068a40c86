"""Small random Gemma 3 checkpoints: as published, and as a GGUF file of the same weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from cellmd.config import ModelConfig
from cellmd.convert.gguf import LAYER_NAMES, published_name
from cellmd.convert.tensor_map import expected_tensors
from checkpoints import random_tensor, write_assets, write_json, write_weights

CONFIG: dict[str, Any] = {
    "architectures": ["Gemma3ForCausalLM"],
    "model_type": "gemma3_text",
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 24,
    "query_pre_attn_scalar": 40,
    "sliding_window": 7,
    "sliding_window_pattern": 3,
    "max_position_embeddings": 1024,
    "hidden_activation": "gelu_pytorch_tanh",
    "rms_norm_eps": 1e-6,
    "rope_theta": 1_000_000.0,
    "rope_local_base_freq": 10_000.0,
    "rope_scaling": None,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "pad_token_id": 0,
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "tie_word_embeddings": True,
}


def random_weights(config: dict[str, Any], seed: int = 0) -> dict[str, np.ndarray]:
    """By published names, as published: norm weights minus one."""
    rng = np.random.default_rng(seed)
    weights = {}
    for spec in expected_tensors(ModelConfig.from_dict(config)).values():
        values = random_tensor(spec, rng)
        weights[spec.name] = values - np.float32(1) if spec.role == "norm" else values
    return weights


def make_gemma3(folder: Path, config: dict[str, Any] | None = None, dtype: str = "float32") -> Path:
    folder.mkdir(parents=True)
    config = {**CONFIG, **(config or {}), "dtype": dtype}
    weights = {name.replace(".language_model.", "."): values for name, values in random_weights(config).items()}
    write_json(folder / "config.json", config)
    write_weights(folder, weights, dtype)
    write_assets(folder, config)
    return folder


def make_gguf(path: Path) -> Path:
    """The same model (queries scaled by the head width, as GGUF implies) in float32, tokenizer.json beside it."""
    import gguf

    config = {**CONFIG, "query_pre_attn_scalar": CONFIG["head_dim"], "sliding_window_pattern": 6}
    writer = gguf.GGUFWriter(path, "gemma3")
    for key, value in (
        ("block_count", config["num_hidden_layers"]),
        ("embedding_length", config["hidden_size"]),
        ("feed_forward_length", config["intermediate_size"]),
        ("context_length", config["max_position_embeddings"]),
        ("attention.head_count", config["num_attention_heads"]),
        ("attention.head_count_kv", config["num_key_value_heads"]),
        ("attention.key_length", config["head_dim"]),
        ("attention.sliding_window", config["sliding_window"]),
    ):
        writer.add_uint32(f"gemma3.{key}", value)
    writer.add_float32("gemma3.attention.layer_norm_rms_epsilon", config["rms_norm_eps"])
    writer.add_float32("gemma3.rope.freq_base", config["rope_theta"])
    weights = random_weights(config)
    layer_parts = tuple(LAYER_NAMES)
    names = ["token_embd.weight", "output_norm.weight"]
    names += [f"blk.{i}.{part}.weight" for i in range(config["num_hidden_layers"]) for part in layer_parts]
    for name in names:
        values = weights[published_name(name)]
        writer.add_tensor(name, values + np.float32(1) if "norm" in name else values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    write_assets(path.parent, config)
    return path
