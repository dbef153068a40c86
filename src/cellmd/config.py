"""The published config keys in, frozen facts out.

`ModelConfig.from_dict` takes the content of a checkpoint's config.json (Gemma4ForConditionalGeneration or the text-only
Gemma4ForCausalLM) and gives immutable dataclasses in cellmd's own names. Whatever differs from layer to layer is a field
of `LayerConfig`, so that no later code asks which kind of layer it is in.

Source of keys and defaults: transformers, `models/gemma4/configuration_gemma4.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cellmd.errors import ArgumentError, UnsupportedModelError

SLIDING = "sliding_attention"
FULL = "full_attention"


@dataclass(frozen=True)
class LayerConfig:
    """Facts of one decoder layer.

    window: number of last positions a query sees, itself included; 0 sees all.
    kv_source: index of the layer whose keys and values this one reads; its own index if it writes them.
    rotary_dim: how many of head_dim's channels turn; channel i pairs with i + head_dim // 2 for i < rotary_dim // 2.
    """

    index: int
    window: int
    head_dim: int
    n_kv_heads: int
    kv_source: int
    rope_base: float
    rotary_dim: int
    ffn_dim: int

    @property
    def owns_kv(self) -> bool:
        return self.kv_source == self.index


@dataclass(frozen=True)
class TextConfig:
    """The decoder. `ple_dim` is 0 for a model without per-layer embeddings; `softcap` is 0.0 for none."""

    vocab_size: int
    d_model: int
    n_heads: int
    layers: tuple[LayerConfig, ...]
    ple_dim: int
    ple_vocab_size: int
    norm_eps: float
    softcap: float
    context_length: int
    pad_token_id: int
    bos_token_id: int
    eos_token_ids: tuple[int, ...]

    @property
    def n_layers(self) -> int:
        return len(self.layers)

    @property
    def first_shared_layer(self) -> int:
        """Index of the first of the trailing layers that write no keys and values; n_layers if all write."""
        shared = [layer.index for layer in self.layers if not layer.owns_kv]
        return shared[0] if shared else self.n_layers


@dataclass(frozen=True)
class VisionConfig:
    d_model: int
    n_layers: int
    n_heads: int
    head_dim: int
    ffn_dim: int
    patch_size: int
    pooling: int
    position_table_size: int
    rope_base: float
    norm_eps: float
    clipped: bool
    standardize: bool


@dataclass(frozen=True)
class AudioConfig:
    """The conformer. `left_context` counts the query itself: a query sees left_context - 1 frames before it... see
    `models/audio.py`. `out_dim` is the width of `output_proj`, before the projection into the decoder."""

    d_model: int
    n_layers: int
    n_heads: int
    conv_channels: tuple[int, int]
    conv_kernel: int
    residual_weight: float
    chunk_size: int
    left_context: int
    right_context: int
    logit_cap: float
    invalid_logit: float
    gradient_clipping: float
    norm_eps: float
    out_dim: int
    clipped: bool


@dataclass(frozen=True)
class SpecialTokens:
    """Ids of the placeholder and bracket tokens of media; None where the model has no such modality."""

    image: int | None
    audio: int | None
    video: int | None
    begin_image: int | None
    end_image: int | None
    begin_audio: int | None
    end_audio: int | None


@dataclass(frozen=True)
class ModelConfig:
    text: TextConfig
    vision: VisionConfig | None
    audio: AudioConfig | None
    special: SpecialTokens

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> ModelConfig:
        """Read a checkpoint's config.json. Raises UnsupportedModelError naming what is not supported."""
        architecture = (config.get("architectures") or [None])[0]
        model_type = config.get("model_type")
        if architecture == "Gemma4ForConditionalGeneration" or (architecture is None and model_type == "gemma4"):
            vision, audio = config.get("vision_config"), config.get("audio_config")
            return cls(
                text=_text(_mapping(config, "text_config")),
                vision=_vision(vision) if vision else None,
                audio=_audio(audio) if audio else None,
                special=_special(config, bool(vision), bool(audio)),
            )
        if architecture == "Gemma4ForCausalLM" or (architecture is None and model_type == "gemma4_text"):
            return cls(text=_text(config), vision=None, audio=None, special=_special({}, False, False))
        raise UnsupportedModelError(
            f"architecture {architecture or model_type!r} is not supported; cellmd runs "
            "Gemma4ForConditionalGeneration and Gemma4ForCausalLM"
        )


def _mapping(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = config.get(key)
    if not isinstance(value, Mapping):
        raise ArgumentError(f"config key {key!r} is missing or not an object")
    return value


def _positive(config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = config.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        raise ArgumentError(f"config key {key!r} must be a positive integer, found {value!r}")
    return value


def _count(config: Mapping[str, Any], key: str) -> int:
    value = config.get(key) or 0
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ArgumentError(f"config key {key!r} must be an integer of at least 0, found {value!r}")
    return value


def _refuse(condition: object, what: str) -> None:
    if condition:
        raise UnsupportedModelError(f"{what} is not supported")


def _text(config: Mapping[str, Any]) -> TextConfig:
    _refuse(config.get("enable_moe_block"), "a mixture of experts (enable_moe_block)")
    _refuse(config.get("attention_k_eq_v"), "sharing one projection between keys and values (attention_k_eq_v)")
    _refuse(config.get("use_bidirectional_attention"), "bidirectional attention in the decoder")
    _refuse(config.get("attention_bias"), "attention with biases (attention_bias)")
    _refuse(config.get("tie_word_embeddings") is False, "an output head of its own (tie_word_embeddings false)")
    activation = config.get("hidden_activation", "gelu_pytorch_tanh")
    _refuse(activation != "gelu_pytorch_tanh", f"hidden_activation {activation!r}")
    eos = config.get("eos_token_id", 1)
    return TextConfig(
        vocab_size=_positive(config, "vocab_size"),
        d_model=_positive(config, "hidden_size"),
        n_heads=_positive(config, "num_attention_heads"),
        layers=_layers(config),
        ple_dim=_count(config, "hidden_size_per_layer_input"),
        ple_vocab_size=_count(config, "vocab_size_per_layer_input"),
        norm_eps=float(config.get("rms_norm_eps", 1e-6)),
        softcap=float(config.get("final_logit_softcapping") or 0.0),
        context_length=_positive(config, "max_position_embeddings", 131_072),
        pad_token_id=_count(config, "pad_token_id"),
        bos_token_id=config.get("bos_token_id") or 2,
        eos_token_ids=tuple(eos) if isinstance(eos, list | tuple) else (eos,),
    )


def _layers(config: Mapping[str, Any]) -> tuple[LayerConfig, ...]:
    n_layers = _positive(config, "num_hidden_layers")
    types = config.get("layer_types") or [SLIDING if (i + 1) % 6 else FULL for i in range(n_layers)]
    types = [*types[:-1], FULL]  # the reference forces the last layer to full attention
    unknown = set(types) - {SLIDING, FULL}
    _refuse(unknown, f"layer type {min(unknown, default='')!r}")
    if len(types) != n_layers:
        raise ArgumentError(f"layer_types lists {len(types)} layers, num_hidden_layers says {n_layers}")
    n_shared = _count(config, "num_kv_shared_layers")
    first_shared = n_layers - n_shared
    writers = {kind: i for i, kind in enumerate(types[:first_shared])}  # the last writer of each kind
    missing = set(types) - writers.keys()
    if missing:
        raise ArgumentError(f"no layer of kind {min(missing)!r} writes the keys that the shared layers read")
    ropes = config.get("rope_parameters") or {
        SLIDING: {"rope_type": "default", "rope_theta": 10_000.0},
        FULL: {"rope_type": "proportional", "rope_theta": 1_000_000.0, "partial_rotary_factor": 0.25},
    }
    head_dim = _positive(config, "head_dim")
    head_dims = {SLIDING: head_dim, FULL: _positive(config, "global_head_dim", 512)}
    ffn_dim = _positive(config, "intermediate_size")
    layers = []
    for i, kind in enumerate(types):
        shared = i >= first_shared
        rope = ropes[kind]
        _refuse(rope.get("rope_type") not in ("default", "proportional"), f"rope_type {rope.get('rope_type')!r}")
        layers.append(
            LayerConfig(
                index=i,
                window=_positive(config, "sliding_window") if kind == SLIDING else 0,
                head_dim=head_dims[kind],
                n_kv_heads=_positive(config, "num_key_value_heads"),
                kv_source=writers[kind] if shared else i,
                rope_base=float(rope["rope_theta"]),
                rotary_dim=2 * int(head_dims[kind] * float(rope.get("partial_rotary_factor", 1.0)) // 2),
                ffn_dim=ffn_dim * (2 if shared and config.get("use_double_wide_mlp") else 1),
            )
        )
    return tuple(layers)


def _vision(config: Mapping[str, Any]) -> VisionConfig:
    activation = config.get("hidden_activation", "gelu_pytorch_tanh")
    _refuse(activation != "gelu_pytorch_tanh", f"vision hidden_activation {activation!r}")
    n_heads = _positive(config, "num_attention_heads")
    kv_heads = config.get("num_key_value_heads", n_heads)
    _refuse(kv_heads != n_heads, f"a vision tower with {kv_heads} key heads for {n_heads} query heads")
    d_model = _positive(config, "hidden_size")
    return VisionConfig(
        d_model=d_model,
        n_layers=_positive(config, "num_hidden_layers"),
        n_heads=n_heads,
        head_dim=_positive(config, "head_dim", d_model // n_heads),
        ffn_dim=_positive(config, "intermediate_size"),
        patch_size=_positive(config, "patch_size", 16),
        pooling=_positive(config, "pooling_kernel_size", 3),
        position_table_size=_positive(config, "position_embedding_size", 10_240),
        rope_base=float((config.get("rope_parameters") or {}).get("rope_theta", 100.0)),
        norm_eps=float(config.get("rms_norm_eps", 1e-6)),
        clipped=bool(config.get("use_clipped_linears", False)),
        standardize=bool(config.get("standardize", False)),
    )


def _audio(config: Mapping[str, Any]) -> AudioConfig:
    activation = config.get("hidden_act", "silu")
    _refuse(activation != "silu", f"audio hidden_act {activation!r}")
    channels = config.get("subsampling_conv_channels", (128, 32))
    if len(channels) != 2:
        raise ArgumentError(f"subsampling_conv_channels must list 2 widths, found {channels!r}")
    return AudioConfig(
        d_model=_positive(config, "hidden_size", 1024),
        n_layers=_positive(config, "num_hidden_layers", 12),
        n_heads=_positive(config, "num_attention_heads", 8),
        conv_channels=(int(channels[0]), int(channels[1])),
        conv_kernel=_positive(config, "conv_kernel_size", 5),
        residual_weight=float(config.get("residual_weight", 0.5)),
        chunk_size=_positive(config, "attention_chunk_size", 12),
        left_context=_positive(config, "attention_context_left", 13),
        right_context=_count(config, "attention_context_right"),
        logit_cap=float(config.get("attention_logit_cap", 50.0)),
        invalid_logit=float(config.get("attention_invalid_logits_value", -1e9)),
        gradient_clipping=float(config.get("gradient_clipping", 1e10)),
        norm_eps=float(config.get("rms_norm_eps", 1e-6)),
        out_dim=_positive(config, "output_proj_dims", 1536),
        clipped=bool(config.get("use_clipped_linears", True)),
    )


def _special(config: Mapping[str, Any], has_vision: bool, has_audio: bool) -> SpecialTokens:
    def token(key: str, default: int, present: bool) -> int | None:
        return int(config.get(key) or default) if present else None

    return SpecialTokens(
        image=token("image_token_id", 258_880, has_vision),
        audio=token("audio_token_id", 258_881, has_audio),
        video=token("video_token_id", 258_884, has_vision),
        begin_image=token("boi_token_id", 255_999, has_vision),
        end_image=token("eoi_token_id", 258_882, has_vision),
        begin_audio=token("boa_token_id", 256_000, has_audio),
        end_audio=token("eoa_token_index", config.get("eoa_token_id") or 258_883, has_audio),
    )
