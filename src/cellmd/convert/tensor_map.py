"""Which tensors a checkpoint must hold: name, shape and role of each, derived from the configuration alone.

Names are the published checkpoint's own (`model.language_model.layers.0.mlp.up_proj.weight`). The conversion checks a
checkpoint against this table before it writes a byte; recipes choose by role and name; the loader of `models/` binds by
the same names.

Source of the names: transformers, `models/gemma4/modeling_gemma4.py`; the table gives all 2,011 of Gemma 4 E2B.
Gemma 3's text models use the same names for a part of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from cellmd.config import AudioConfig, LayerConfig, ModelConfig, TextConfig, VisionConfig
from cellmd.errors import CheckpointError

Role = Literal[
    "embedding",  # (V, D): looked up by token, and multiplied as the tied output head
    "per_layer_table",  # (V, n_layers * ple_dim): looked up by token only
    "matrix",  # (outputs, inputs)
    "norm",  # (D,) weights of a normalisation
    "vector",  # (D,) other factors and offsets
    "bias",  # (outputs,)
    "position_table",  # (2, positions, D)
    "conv",  # (C_out, C_in, ...) kernels
    "scalar",  # (1,) factor of a decoder layer
    "clip",  # () bound of a clipped linear layer
]
Component = Literal["text", "per_layer", "vision", "audio"]

CLIP_BOUNDS = ("input_min", "input_max", "output_min", "output_max")
OUTPUT_HEAD = "lm_head.weight"
"""Some files carry the output head beside the embedding it is tied to; it is dropped."""
MEL_CHANNELS = 128
"""Height of a log-mel frame; the convolutions' output, and so `input_proj_linear`, is as wide as it implies."""


@dataclass(frozen=True)
class TensorSpec:
    """One expected tensor. `unused`: published files may carry it, no computation reads it, conversion drops it.

    A file stores (source + offset) * factor, which is what the model computes with.
    """

    name: str
    shape: tuple[int, ...]
    role: Role
    component: Component
    unused: bool = False
    offset: float = 0.0
    factor: float = 1.0

    @property
    def transformed(self) -> bool:
        return (self.offset, self.factor) != (0.0, 1.0)


def expected_tensors(config: ModelConfig) -> dict[str, TensorSpec]:
    """Every tensor of a checkpoint with this configuration by name, in the order in which a file stores them.

    The table of per-layer embeddings comes last: it is half of the file and read a row at a time, so what is read as a
    whole stays together.
    """
    text = list(_text(config.text))
    tensors = [spec for spec in text if spec.component == "text"]
    if config.vision is not None:
        tensors += _vision(config.vision, config.text.d_model)
    if config.audio is not None:
        tensors += _audio(config.audio, config.text.d_model)
    tensors += [spec for spec in text if spec.component == "per_layer"]
    return {spec.name: spec for spec in tensors}


def check_tensors(config: ModelConfig, shapes: Mapping[str, tuple[int, ...]]) -> list[TensorSpec]:
    """The tensors to store, in order, after comparing what a checkpoint holds with what its configuration implies.

    shapes: of every tensor of the checkpoint, by canonical name. Unused tensors may be there or not. Raises
    CheckpointError naming the first few tensors that are missing, misshapen or unknown.
    """
    _check_audio_alignment(config, shapes)
    expected = expected_tensors(config)
    embedding = next(spec for spec in expected.values() if spec.role == "embedding")
    known = expected | {OUTPUT_HEAD: replace(embedding, name=OUTPUT_HEAD, unused=True)}
    problems = {
        "are missing": [name for name, spec in expected.items() if name not in shapes and not spec.unused],
        "have another shape than config.json implies": [
            f"{name} {list(shapes[name])} instead of {list(spec.shape)}"
            for name, spec in known.items()
            if shapes.get(name, spec.shape) != spec.shape
        ],
        "belong to no part of the model": sorted(set(shapes) - set(known)),
    }
    found = [f"{len(names)} tensors {what}: {_first_few(names)}" for what, names in problems.items() if names]
    if found:
        raise CheckpointError("; ".join(found) + "; config.json and weights are not of one checkpoint")
    return [spec for spec in expected.values() if not spec.unused]


def _check_audio_alignment(config: ModelConfig, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """The seam between audio tower and decoder has messages of its own: it is where checkpoints get mixed up."""
    tower = shapes.get("model.audio_tower.output_proj.weight", ())
    embedder = shapes.get("model.embed_audio.embedding_projection.weight", ())
    if config.audio is None or len(tower) != 2 or len(embedder) != 2:
        return  # the table of shapes says more about these
    if tower[0] != embedder[1]:
        raise CheckpointError(
            f"audio-to-text alignment: audio_tower.output_proj gives {tower[0]} channels, "
            f"embed_audio.embedding_projection takes {embedder[1]}; tower and embedder are not of one checkpoint"
        )
    if embedder[0] != config.text.d_model:
        raise CheckpointError(
            f"audio-to-text alignment: embed_audio.embedding_projection gives {embedder[0]} channels, the decoder's "
            f"hidden_size is {config.text.d_model}; the audio parts belong to another model"
        )


def _first_few(names: list[str], n: int = 3) -> str:
    return ", ".join(names[:n]) + (", ..." if len(names) > n else "")


def _text(text: TextConfig) -> Iterator[TensorSpec]:
    d_model, prefix = text.d_model, "model.language_model."
    yield TensorSpec(f"{prefix}embed_tokens.weight", (text.vocab_size, d_model), "embedding", "text")
    for layer in text.layers:
        yield from _decoder_layer(layer, text, f"{prefix}layers.{layer.index}.")
    yield TensorSpec(f"{prefix}norm.weight", (d_model,), "norm", "text", offset=text.norm_offset)
    if text.ple_dim:
        width = text.n_layers * text.ple_dim
        yield TensorSpec(f"{prefix}per_layer_model_projection.weight", (width, d_model), "matrix", "text")
        yield TensorSpec(f"{prefix}per_layer_projection_norm.weight", (text.ple_dim,), "norm", "text")
        table_shape = (text.ple_vocab_size, width)
        yield TensorSpec(f"{prefix}embed_tokens_per_layer.weight", table_shape, "per_layer_table", "per_layer")


def _decoder_layer(layer: LayerConfig, text: TextConfig, prefix: str) -> Iterator[TensorSpec]:
    d_model, unused = text.d_model, not layer.owns_kv
    q_width, kv_width = text.n_heads * layer.head_dim, layer.n_kv_heads * layer.head_dim
    attention = f"{prefix}self_attn."

    def norm(name: str, width: int = d_model, *, unused: bool = False, factor: float = 1.0) -> TensorSpec:
        return TensorSpec(f"{name}.weight", (width,), "norm", "text", unused, text.norm_offset, factor)

    def matrix(name: str, outputs: int, inputs: int, *, unused: bool = False) -> TensorSpec:
        return TensorSpec(f"{name}.weight", (outputs, inputs), "matrix", "text", unused)

    yield norm(f"{prefix}input_layernorm")
    yield matrix(f"{attention}q_proj", q_width, d_model)
    yield matrix(f"{attention}k_proj", kv_width, d_model, unused=unused)
    yield matrix(f"{attention}v_proj", kv_width, d_model, unused=unused)
    yield norm(f"{attention}q_norm", layer.head_dim, factor=text.query_scale)
    yield norm(f"{attention}k_norm", layer.head_dim, unused=unused)
    yield matrix(f"{attention}o_proj", d_model, q_width)
    yield norm(f"{prefix}post_attention_layernorm")
    yield norm(f"{prefix}pre_feedforward_layernorm")
    yield matrix(f"{prefix}mlp.gate_proj", layer.ffn_dim, d_model)
    yield matrix(f"{prefix}mlp.up_proj", layer.ffn_dim, d_model)
    yield matrix(f"{prefix}mlp.down_proj", d_model, layer.ffn_dim)
    yield norm(f"{prefix}post_feedforward_layernorm")
    if text.ple_dim:
        yield matrix(f"{prefix}per_layer_input_gate", text.ple_dim, d_model)
        yield matrix(f"{prefix}per_layer_projection", d_model, text.ple_dim)
        yield norm(f"{prefix}post_per_layer_input_norm")
    if text.layer_scalars:
        yield TensorSpec(f"{prefix}layer_scalar", (1,), "scalar", "text")


def _clippable(name: str, outputs: int, inputs: int, clipped: bool, component: Component) -> Iterator[TensorSpec]:
    yield TensorSpec(f"{name}.linear.weight", (outputs, inputs), "matrix", component)
    if clipped:
        for bound in CLIP_BOUNDS:
            yield TensorSpec(f"{name}.{bound}", (), "clip", component)


def _vision(vision: VisionConfig, text_width: int) -> Iterator[TensorSpec]:
    d_model, tower = vision.d_model, "model.vision_tower."
    attention_width = vision.n_heads * vision.head_dim
    patch_width = 3 * vision.patch_size**2
    positions = (2, vision.position_table_size, d_model)

    def norm(name: str, width: int = d_model) -> TensorSpec:
        return TensorSpec(f"{name}.weight", (width,), "norm", "vision")

    def linear(name: str, outputs: int, inputs: int) -> Iterator[TensorSpec]:
        return _clippable(name, outputs, inputs, vision.clipped, "vision")

    yield TensorSpec(f"{tower}patch_embedder.input_proj.weight", (d_model, patch_width), "matrix", "vision")
    yield TensorSpec(f"{tower}patch_embedder.position_embedding_table", positions, "position_table", "vision")
    for i in range(vision.n_layers):
        prefix = f"{tower}encoder.layers.{i}."
        yield norm(f"{prefix}input_layernorm")
        for which in ("q_proj", "k_proj", "v_proj"):
            yield from linear(f"{prefix}self_attn.{which}", attention_width, d_model)
        yield norm(f"{prefix}self_attn.q_norm", vision.head_dim)
        yield norm(f"{prefix}self_attn.k_norm", vision.head_dim)
        yield from linear(f"{prefix}self_attn.o_proj", d_model, attention_width)
        yield norm(f"{prefix}post_attention_layernorm")
        yield norm(f"{prefix}pre_feedforward_layernorm")
        yield from linear(f"{prefix}mlp.gate_proj", vision.ffn_dim, d_model)
        yield from linear(f"{prefix}mlp.up_proj", vision.ffn_dim, d_model)
        yield from linear(f"{prefix}mlp.down_proj", d_model, vision.ffn_dim)
        yield norm(f"{prefix}post_feedforward_layernorm")
    if vision.standardize:
        yield TensorSpec(f"{tower}std_bias", (d_model,), "vector", "vision")
        yield TensorSpec(f"{tower}std_scale", (d_model,), "vector", "vision")
    yield TensorSpec("model.embed_vision.embedding_projection.weight", (text_width, d_model), "matrix", "vision")


def _audio(audio: AudioConfig, text_width: int) -> Iterator[TensorSpec]:
    tower, (channels, out_channels) = "model.audio_tower.", audio.conv_channels
    subsampling = f"{tower}subsample_conv_projection."
    yield TensorSpec(f"{subsampling}layer0.conv.weight", (channels, 1, 3, 3), "conv", "audio")
    yield TensorSpec(f"{subsampling}layer0.norm.weight", (channels,), "norm", "audio")
    yield TensorSpec(f"{subsampling}layer1.conv.weight", (out_channels, channels, 3, 3), "conv", "audio")
    yield TensorSpec(f"{subsampling}layer1.norm.weight", (out_channels,), "norm", "audio")
    flattened = MEL_CHANNELS // 4 * out_channels  # two convolutions of stride 2 leave a quarter of the mel channels
    yield TensorSpec(f"{subsampling}input_proj_linear.weight", (audio.d_model, flattened), "matrix", "audio")
    for i in range(audio.n_layers):
        yield from _conformer_layer(audio, f"{tower}layers.{i}.")
    yield TensorSpec(f"{tower}output_proj.weight", (audio.out_dim, audio.d_model), "matrix", "audio")
    yield TensorSpec(f"{tower}output_proj.bias", (audio.out_dim,), "bias", "audio")
    yield TensorSpec("model.embed_audio.embedding_projection.weight", (text_width, audio.out_dim), "matrix", "audio")


def _conformer_layer(audio: AudioConfig, prefix: str) -> Iterator[TensorSpec]:
    d_model, attention = audio.d_model, f"{prefix}self_attn."
    attention_width = d_model // audio.n_heads * audio.n_heads

    def norm(name: str) -> TensorSpec:
        return TensorSpec(f"{prefix}{name}.weight", (d_model,), "norm", "audio")

    def linear(name: str, outputs: int, inputs: int) -> Iterator[TensorSpec]:
        return _clippable(f"{prefix}{name}", outputs, inputs, audio.clipped, "audio")

    def feed_forward(name: str) -> Iterator[TensorSpec]:
        yield norm(f"{name}.pre_layer_norm")
        yield from linear(f"{name}.ffw_layer_1", 4 * d_model, d_model)
        yield from linear(f"{name}.ffw_layer_2", d_model, 4 * d_model)
        yield norm(f"{name}.post_layer_norm")

    yield from feed_forward("feed_forward1")
    yield norm("norm_pre_attn")
    for which in ("q_proj", "k_proj", "v_proj"):
        yield from linear(f"self_attn.{which}", attention_width, d_model)
    yield from linear("self_attn.post", d_model, d_model)
    yield TensorSpec(f"{attention}relative_k_proj.weight", (attention_width, d_model), "matrix", "audio")
    yield TensorSpec(f"{attention}per_dim_scale", (d_model // audio.n_heads,), "vector", "audio")
    yield norm("norm_post_attn")
    yield norm("lconv1d.pre_layer_norm")
    yield from linear("lconv1d.linear_start", 2 * d_model, d_model)
    yield TensorSpec(f"{prefix}lconv1d.depthwise_conv1d.weight", (d_model, 1, audio.conv_kernel), "conv", "audio")
    yield norm("lconv1d.conv_norm")
    yield from linear("lconv1d.linear_end", d_model, d_model)
    yield from feed_forward("feed_forward2")
    yield norm("norm_out")
