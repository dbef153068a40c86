"""Small random Gemma 4 checkpoints in the published form, for tests: config, weights, tokenizer, template, processors.

    folder = make_checkpoint(tmp_path / "tiny")                       # every modality
    folder = make_checkpoint(tmp_path / "x", shape="deep_shared", seed=3, dtype="float32")

Only NumPy is needed; transformers loads the folders (`Gemma4ForConditionalGeneration.from_pretrained`), which is how
the reference comparisons get the same weights. Widths are chosen odd on purpose: few are multiples of 16, some not of
8. Weights are scaled so that activations stay near one; norms differ from one; clip ranges are tight enough to clip.
"""

from __future__ import annotations

import copy
import json
import shutil
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cellmd.config import ModelConfig
from cellmd.convert.tensor_map import TensorSpec, expected_tensors
from checkpoint_assets import ASSET_FILES, DATA, MEDIA_TOKENS, VOCAB_SIZE, small_tokenizer, write_assets, write_json

__all__ = [
    "ASSET_FILES",
    "BASE",
    "DATA",
    "MEDIA_TOKENS",
    "SHAPES",
    "VOCAB_SIZE",
    "checkpoint_config",
    "encode",
    "make_checkpoint",
    "random_tensor",
    "small_tokenizer",
    "to_bfloat16",
    "write_assets",
    "write_json",
    "write_safetensors",
    "write_weights",
]

S, F = "sliding_attention", "full_attention"
BASE: dict[str, Any] = {
    "architectures": ["Gemma4ForConditionalGeneration"],
    "model_type": "gemma4",
    **MEDIA_TOKENS,
    "eos_token_id": [1, 106],
    "tie_word_embeddings": True,
    "text_config": {
        "model_type": "gemma4_text",
        "vocab_size": VOCAB_SIZE,
        "vocab_size_per_layer_input": VOCAB_SIZE,
        "hidden_size": 40,
        "hidden_size_per_layer_input": 12,
        "intermediate_size": 52,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "num_kv_shared_layers": 2,
        "head_dim": 8,
        "global_head_dim": 16,
        "layer_types": [S, S, F, S, S, F],
        "sliding_window": 16,
        "use_double_wide_mlp": True,
        "max_position_embeddings": 8192,
        "hidden_activation": "gelu_pytorch_tanh",
        "rms_norm_eps": 1e-6,
        "final_logit_softcapping": 30.0,
        "pad_token_id": 0,
        "bos_token_id": 2,
        "eos_token_id": 1,
        "attention_bias": False,
        "attention_k_eq_v": False,
        "enable_moe_block": False,
        "tie_word_embeddings": True,
        "rope_parameters": {
            F: {"partial_rotary_factor": 0.25, "rope_theta": 1_000_000.0, "rope_type": "proportional"},
            S: {"rope_theta": 10_000.0, "rope_type": "default"},
        },
    },
    "vision_config": {
        "model_type": "gemma4_vision",
        "hidden_size": 24,
        "intermediate_size": 36,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "num_key_value_heads": 3,
        "head_dim": 8,
        "patch_size": 16,
        "pooling_kernel_size": 3,
        "position_embedding_size": 3600,
        "hidden_activation": "gelu_pytorch_tanh",
        "rms_norm_eps": 1e-6,
        "use_clipped_linears": True,
        "standardize": False,
        "rope_parameters": {"rope_theta": 100.0, "rope_type": "default"},
    },
    "audio_config": {
        "model_type": "gemma4_audio",
        "hidden_size": 36,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "hidden_act": "silu",
        "subsampling_conv_channels": [128, 4],
        "conv_kernel_size": 5,
        "output_proj_dims": 40,
        "attention_chunk_size": 12,
        "attention_context_left": 13,
        "attention_context_right": 0,
        "attention_logit_cap": 50.0,
        "attention_invalid_logits_value": -1e9,
        "residual_weight": 0.5,
        "gradient_clipping": 1e10,
        "rms_norm_eps": 1e-6,
        "use_clipped_linears": True,
    },
}

SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {},
    "deep_shared": {
        "text_config": {
            "num_hidden_layers": 10,
            "layer_types": [S, S, F, S, F, S, S, F, S, F],
            "num_kv_shared_layers": 6,
            "sliding_window": 5,
            "num_attention_heads": 3,
        }
    },
    "no_sharing": {
        "text_config": {"num_kv_shared_layers": 0, "use_double_wide_mlp": False, "final_logit_softcapping": None}
    },
    "wide_heads": {
        "text_config": {
            "hidden_size": 44,
            "num_key_value_heads": 2,
            "head_dim": 20,
            "global_head_dim": 36,
            "intermediate_size": 70,
            "num_kv_shared_layers": 3,
        },
        "vision_config": {"hidden_size": 50, "head_dim": 12, "num_attention_heads": 4, "num_key_value_heads": 4},
        "audio_config": {
            "hidden_size": 52,
            "num_attention_heads": 2,
            "output_proj_dims": 28,
            "conv_kernel_size": 3,
            "attention_chunk_size": 4,
            "attention_context_left": 5,
        },
    },
    # Without sharing: the reference (5.24) fails on shared layers without per-layer inputs.
    "no_ple": {"text_config": {"hidden_size_per_layer_input": 0, "num_kv_shared_layers": 0}},
    "pictures_only": {
        "audio_config": None,
        "vision_config": {"use_clipped_linears": False, "standardize": True, "patch_size": 6, "pooling_kernel_size": 2},
    },
    "sound_only": {"vision_config": None, "audio_config": {"use_clipped_linears": False}},
    "text_only": {"architectures": ["Gemma4ForCausalLM"]},
}


def checkpoint_config(shape: str = "tiny", overrides: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The config.json of a shape. `overrides` is merged into it; None removes a tower."""
    config = _merged(_merged(BASE, SHAPES[shape]), overrides or {})
    if config["architectures"] == ["Gemma4ForCausalLM"]:
        return {"architectures": ["Gemma4ForCausalLM"], **config["text_config"]}
    return config


def make_checkpoint(
    folder: Path,
    *,
    shape: str = "tiny",
    config_overrides: Mapping[str, Any] | None = None,
    seed: int = 0,
    dtype: str = "bfloat16",
    n_shards: int = 1,
    unused_kv: bool = False,
    assets_from: Path | None = None,
) -> Path:
    """Write a checkpoint folder and return it.

    config_overrides: merged into the shape's config.json (for a text-only shape too, under "text_config").
    dtype: "bfloat16", "float16" or "float32" of every stored tensor.
    unused_kv: also write the keys and values of KV-shared layers, which the published files carry.
    assets_from: a folder with a real tokenizer.json (and the files that go with it) to copy instead of the small one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = checkpoint_config(shape, config_overrides)
    config["dtype"] = dtype
    text_only = config["architectures"] == ["Gemma4ForCausalLM"]
    rng = np.random.default_rng([seed, zlib.crc32(shape.encode())])
    tensors: dict[str, np.ndarray] = {}
    for spec in expected_tensors(ModelConfig.from_dict(config)).values():
        if unused_kv or not spec.unused:
            name = spec.name.replace("model.language_model.", "model.") if text_only else spec.name
            tensors[name] = random_tensor(spec, rng)
    write_json(folder / "config.json", config)
    write_weights(folder, tensors, dtype, n_shards)
    if assets_from is None:
        write_assets(folder, config)
    else:
        for name in ASSET_FILES:
            if (assets_from / name).exists():
                shutil.copy(assets_from / name, folder / name)
    return folder


def random_tensor(spec: TensorSpec, rng: np.random.Generator) -> np.ndarray:
    """float32 values of a plausible size for the tensor's role."""
    normal = rng.standard_normal(spec.shape, dtype=np.float32)
    if spec.role in ("matrix", "conv"):
        fan_in = int(np.prod(spec.shape[1:]))
        return normal / np.float32(np.sqrt(fan_in))
    if spec.role in ("embedding", "per_layer_table"):
        return normal / np.float32(np.sqrt(spec.shape[1]))
    if spec.role == "norm" or spec.name.endswith("std_scale"):
        return rng.uniform(0.5, 1.5, spec.shape).astype(np.float32)
    if spec.role == "scalar":
        return rng.uniform(0.6, 1.1, spec.shape).astype(np.float32)
    if spec.role == "clip":
        bound = np.float32(rng.uniform(1.5, 4.0))
        return np.asarray(-bound if spec.name.endswith("_min") else bound, np.float32)
    return normal * np.float32(0.3)


# ---- weights --------------------------------------------------------------------------------------------------------


def to_bfloat16(values: np.ndarray) -> np.ndarray:
    """float32 to bfloat16 bits (uint16), nearest with ties to even; finite values only."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)).astype(np.uint16)


def encode(values: np.ndarray, dtype: str) -> tuple[str, bytes]:
    """A float32 array as (safetensors dtype, little-endian bytes)."""
    if dtype == "bfloat16":
        return "BF16", to_bfloat16(values).astype("<u2").tobytes()
    if dtype == "float16":
        return "F16", values.astype("<f2").tobytes()
    return "F32", values.astype("<f4").tobytes()


def write_safetensors(path: Path, tensors: Mapping[str, np.ndarray], dtype: str = "bfloat16") -> None:
    """One .safetensors file of float32 arrays stored as `dtype`."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    blobs, offset = [], 0
    for name, values in tensors.items():
        kind, blob = encode(values, dtype)
        header[name] = {"dtype": kind, "shape": list(values.shape), "data_offsets": [offset, offset + len(blob)]}
        blobs.append(blob)
        offset += len(blob)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(blobs))


def write_weights(folder: Path, tensors: Mapping[str, np.ndarray], dtype: str = "bfloat16", n_shards: int = 1) -> None:
    """model.safetensors, or n_shards files and their index."""
    if n_shards == 1:
        write_safetensors(folder / "model.safetensors", tensors, dtype)
        return
    names = list(tensors)
    weight_map: dict[str, str] = {}
    for i in range(n_shards):
        shard = f"model-{i + 1:05d}-of-{n_shards:05d}.safetensors"
        chosen = names[i::n_shards]
        write_safetensors(folder / shard, {name: tensors[name] for name in chosen}, dtype)
        weight_map.update(dict.fromkeys(chosen, shard))
    write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": weight_map})


def _merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = copy.deepcopy(dict(base))
    for key, value in changes.items():
        nested = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merged(merged[key], value) if nested else copy.deepcopy(value)
    return merged
