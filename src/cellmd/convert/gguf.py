"""Gemma 3 text models out of GGUF files, in the form of a published checkpoint: names, configuration, float weights.

GGUF files mostly hold weights that are quantised already; they are read through the `gguf` package, which dequantises
them, so a conversion starts from what such a file says and not from the model it was made of. That is of use for
measuring and where no other source is at hand.

Differences from the published form: other names; norm weights with the one added that published files leave out (taken
off again here); configuration as key-value pairs. The tokenizer is taken from a tokenizer.json beside the file.

Source of names and keys: the package's own tables (`gguf.constants`, architecture GEMMA3).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from cellmd.convert.safetensors import StoredTensor
from cellmd.errors import CheckpointError, UnsupportedModelError

_ARCHITECTURE = "gemma3"

_PREFIX = "model.language_model."
_NAMES = {"token_embd": f"{_PREFIX}embed_tokens", "output_norm": f"{_PREFIX}norm"}
LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "post_ffw_norm": "post_feedforward_layernorm",
}

_ROWS = 4096
"""Dequantised at once: the package makes several copies on the way."""

_LAYERS_OF_27B = 62
"""The one size whose queries are scaled by its hidden size over its heads instead of the head width."""


def published_name(name: str) -> str:
    """blk.3.attn_q.weight -> model.language_model.layers.3.self_attn.q_proj.weight; unknown names as they are."""
    part, _, kind = name.rpartition(".")
    layer = re.fullmatch(r"blk\.(\d+)\.(\w+)", part)
    if layer and layer[2] in LAYER_NAMES:
        return f"{_PREFIX}layers.{layer[1]}.{LAYER_NAMES[layer[2]]}.{kind}"
    return f"{_NAMES[part]}.{kind}" if part in _NAMES else name


class GgufFile:
    """One open file, with the interface of `SafetensorsFile`; every tensor is float32.

    config: config.json as a published checkpoint of this model would have it. Raises CheckpointError for a file that
    cannot be read or lacks a key, UnsupportedModelError for another architecture.
    """

    def __init__(self, path: Path) -> None:
        try:
            import gguf
        except ImportError as error:
            raise CheckpointError(f"{path}: reading GGUF needs the package gguf: pip install 'cellmd[gguf]'") from error
        self.path = path
        self._dequantize: Callable[..., np.ndarray] = gguf.quants.dequantize
        try:
            reader = gguf.GGUFReader(path)
            # Arrays stay behind: the tokenizer's alone are a million objects, 1 GB in memory.
            self._values = {
                key: field.contents()
                for key, field in reader.fields.items()
                if field.types[0] != gguf.GGUFValueType.ARRAY
            }
        except Exception as error:  # the package raises whatever its parsing runs into
            raise CheckpointError(f"{path}: not a readable GGUF file: {error}") from error
        architecture = self._value("general.architecture")
        if architecture != _ARCHITECTURE:
            raise UnsupportedModelError(f"{path}: GGUF of architecture {architecture!r}; cellmd reads 'gemma3' ones")
        self._stored = {tensor.name: tensor for tensor in reader.tensors}
        self.tensors = {
            name: StoredTensor("f32", tuple(int(size) for size in reversed(tensor.shape)), int(tensor.data_offset))
            for name, tensor in self._stored.items()
        }
        self.config = self._config()

    def close(self) -> None:
        """The map is given up with the last array that looks into it."""

    def read_stored(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Rows start..stop of a tensor, dequantised, as a published checkpoint has them: float32."""
        tensor, shape = self._stored[name], self.tensors[name].shape
        stop = shape[0] if stop is None else stop
        values = np.empty((stop - start, *shape[1:]), np.float32)
        for first in range(start, stop, _ROWS):
            part = values[first - start : first - start + _ROWS]
            try:
                part[...] = self._dequantize(tensor.data[first : first + len(part)], tensor.tensor_type)
            except (NotImplementedError, ValueError) as error:  # the first: a type that the package cannot read
                raise CheckpointError(f"{self.path}: tensor {name!r} cannot be dequantised: {error}") from error
        if "norm" in name:
            values -= np.float32(1)
        return values

    def _value(self, key: str, default: Any = None) -> Any:
        value = self._values.get(key, default)
        if value is None:
            raise CheckpointError(f"{self.path}: key {key!r} is missing; is this the whole file?")
        return value

    def _config(self) -> dict[str, Any]:
        def fact(key: str, default: Any = None) -> Any:
            return self._value(f"{_ARCHITECTURE}.{key}", default)

        n_layers, d_model, n_heads = fact("block_count"), fact("embedding_length"), fact("attention.head_count")
        head_dim = fact("attention.key_length")
        if "token_embd.weight" not in self.tensors:
            raise CheckpointError(f"{self.path}: tensor 'token_embd.weight' is missing; is this the whole file?")
        return {
            "architectures": ["Gemma3ForCausalLM"],
            "model_type": "gemma3_text",
            "vocab_size": self.tensors["token_embd.weight"].shape[0],
            "hidden_size": d_model,
            "num_hidden_layers": n_layers,
            "num_attention_heads": n_heads,
            "num_key_value_heads": fact("attention.head_count_kv"),
            "head_dim": head_dim,
            "intermediate_size": fact("feed_forward_length"),
            "max_position_embeddings": fact("context_length"),
            "rms_norm_eps": fact("attention.layer_norm_rms_epsilon"),
            "sliding_window": fact("attention.sliding_window"),
            "rope_theta": fact("rope.freq_base"),
            "rope_local_base_freq": fact("rope.freq_base_swa", 10_000.0),
            "rope_scaling": {"factor": fact("rope.scaling.factor", 1.0)},
            "query_pre_attn_scalar": d_model // n_heads if n_layers == _LAYERS_OF_27B else head_dim,
            "hidden_activation": "gelu_pytorch_tanh",
            "pad_token_id": self._value("tokenizer.ggml.padding_token_id", 0),
            "bos_token_id": self._value("tokenizer.ggml.bos_token_id", 2),
            "eos_token_id": self._value("tokenizer.ggml.eos_token_id", 1),
        }
