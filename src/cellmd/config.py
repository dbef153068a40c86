"""The published config keys in, frozen facts out.

`ModelConfig.from_dict` takes the content of a checkpoint's config.json (Gemma4ForConditionalGeneration or the
text-only Gemma4ForCausalLM and Gemma3ForCausalLM) and gives immutable dataclasses in cellmd's own names. Whatever
differs from layer to layer is a field of `LayerConfig`, so that no later code asks which kind of layer it is in; what
differs between the families is a field of `TextConfig`.

Source of keys and defaults: transformers, `models/gemma4/configuration_gemma4.py` and `models/gemma3/...`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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
    rope_stretch: what all turning frequencies are divided by.
    """

    index: int
    window: int
    head_dim: int
    n_kv_heads: int
    kv_source: int
    rope_base: float
    rotary_dim: int
    ffn_dim: int
    rope_stretch: float = 1.0

    @property
    def owns_kv(self) -> bool:
        return self.kv_source == self.index


@dataclass(frozen=True)
class TextConfig:
    """The decoder. `ple_dim` is 0 for a model without per-layer embeddings; `softcap` is 0.0 for none.

    values_normed: attention values pass an RMS norm without weights. layer_scalars: each layer ends in a stored factor.
    norm_offset, query_scale: what a checkpoint's norm weights lack, and what its query norms must still be multiplied
    by so that scores need no scale. Conversion works both into the weights; a .cellmd file needs neither.
    """

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
    values_normed: bool = True
    layer_scalars: bool = True
    norm_offset: float = 0.0
    query_scale: float = 1.0

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
        """Read a checkpoint's config.json: any JSON object, also a hostile one.

        Raises UnsupportedModelError naming what is not supported, ArgumentError naming the key that is missing or
        impossible.
        """
        architectures = config.get("architectures") or [None]
        architecture = architectures[0] if isinstance(architectures, list | tuple) else architectures
        model_type = config.get("model_type")
        if architecture == "Gemma4ForConditionalGeneration" or (architecture is None and model_type == "gemma4"):
            _refuse(config.get("tie_word_embeddings") is False, "an output head of its own (tie_word_embeddings false)")
            vision, audio = _section(config, "vision_config"), _section(config, "audio_config")
            text = _section(config, "text_config")
            if not text:
                raise ArgumentError("config key 'text_config' is missing")
            return cls(
                text=_text(text),
                vision=_vision(vision) if vision else None,
                audio=_audio(audio) if audio else None,
                special=_special(config, bool(vision), bool(audio)),
            )
        if architecture == "Gemma4ForCausalLM" or (architecture is None and model_type == "gemma4_text"):
            return cls(text=_text(config), vision=None, audio=None, special=_special({}, False, False))
        if architecture == "Gemma3ForCausalLM" or (architecture is None and model_type == "gemma3_text"):
            return cls(text=_gemma3_text(config), vision=None, audio=None, special=_special({}, False, False))
        raise UnsupportedModelError(
            f"architecture {architecture or model_type!r} is not supported; cellmd runs "
            "Gemma4ForConditionalGeneration, Gemma4ForCausalLM and Gemma3ForCausalLM"
        )


# ---- reading keys: every value is checked, for a configuration may come out of a stranger's file --------------------

_MAX_LAYERS = 1024
_MAX_SIZE = 2**31 - 1


def _section(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = config.get(key)
    if value is not None and not isinstance(value, Mapping):
        raise ArgumentError(f"config key {key!r} must be an object, found {_shown(value)}")
    return value or {}


def _positive(config: Mapping[str, Any], key: str, default: int | None = None, most: int = _MAX_SIZE) -> int:
    return _integer(config, key, default, 1, most)


def _count(config: Mapping[str, Any], key: str, most: int = _MAX_SIZE) -> int:
    return _integer(config, key, 0, 0, most)


def _integer(config: Mapping[str, Any], key: str, default: int | None, least: int, most: int) -> int:
    value = config.get(key)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise ArgumentError(f"config key {key!r} must be an integer from {least} to {most}, found {_shown(value)}")
    return value


def _number(config: Mapping[str, Any], key: str, default: float) -> float:
    value = config.get(key)
    value = default if value is None else value
    try:
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            return float(value)
    except OverflowError:  # an integer beyond any float
        pass
    raise ArgumentError(f"config key {key!r} must be a finite number, found {_shown(value)}")


def _list(config: Mapping[str, Any], key: str, default: Sequence[Any]) -> list[Any]:
    value = config.get(key)
    value = default if value is None else value
    if not isinstance(value, list | tuple):
        raise ArgumentError(f"config key {key!r} must be a list, found {_shown(value)}")
    return list(value)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _refuse(condition: object, what: str) -> None:
    if condition:
        raise UnsupportedModelError(f"{what} is not supported")


# ---- the decoder -----------------------------------------------------------------------------------------------------


def _text(config: Mapping[str, Any], *, last_layer_full: bool = True) -> TextConfig:
    _refuse(config.get("enable_moe_block"), "a mixture of experts (enable_moe_block)")
    _refuse(config.get("attention_k_eq_v"), "sharing one projection between keys and values (attention_k_eq_v)")
    _refuse(config.get("use_bidirectional_attention"), "bidirectional attention in the decoder")
    _refuse(config.get("attention_bias"), "attention with biases (attention_bias)")
    _refuse(config.get("tie_word_embeddings") is False, "an output head of its own (tie_word_embeddings false)")
    activation = config.get("hidden_activation", "gelu_pytorch_tanh")
    _refuse(activation != "gelu_pytorch_tanh", f"hidden_activation {_shown(activation)}")
    eos = config.get("eos_token_id", 1)
    vocab_size = _positive(config, "vocab_size", 262_144)
    return TextConfig(
        vocab_size=vocab_size,
        d_model=_positive(config, "hidden_size"),
        n_heads=_positive(config, "num_attention_heads"),
        layers=_layers(config, last_layer_full),
        ple_dim=_count(config, "hidden_size_per_layer_input") if "hidden_size_per_layer_input" in config else 256,
        ple_vocab_size=_integer(config, "vocab_size_per_layer_input", vocab_size, 0, _MAX_SIZE),
        norm_eps=_number(config, "rms_norm_eps", 1e-6),
        softcap=_number(config, "final_logit_softcapping", 0.0),
        context_length=_positive(config, "max_position_embeddings", 131_072),
        pad_token_id=_count(config, "pad_token_id"),
        bos_token_id=_integer(config, "bos_token_id", 2, 0, _MAX_SIZE),
        eos_token_ids=tuple(
            _integer({"eos_token_id": each}, "eos_token_id", None, 0, _MAX_SIZE)
            for each in (eos if isinstance(eos, list | tuple) else [eos])
        ),
    )


def _gemma3_text(config: Mapping[str, Any]) -> TextConfig:
    """Gemma 3's decoder in Gemma 4's keys: the same, without sharing, per-layer inputs, value norms and layer scalars.

    Its norm weights are stored minus one, scores are scaled by query_pre_attn_scalar^-1/2, every channel turns, and the
    last layer is of whatever kind the pattern says.
    """
    _refuse(config.get("attn_logit_softcapping"), "capping attention scores (attn_logit_softcapping)")
    head_dim = _positive(config, "head_dim", 256)
    pattern = _positive(config, "sliding_window_pattern", _positive(config, "_sliding_window_pattern", 6))
    n_layers = _positive(config, "num_hidden_layers", most=_MAX_LAYERS)
    facts = {
        "hidden_size_per_layer_input": 0,
        "num_kv_shared_layers": 0,
        "global_head_dim": head_dim,
        "head_dim": head_dim,
        "layer_types": _list(
            config, "layer_types", [FULL if (i + 1) % pattern == 0 else SLIDING for i in range(n_layers)]
        ),
        "rope_parameters": {kind: _gemma3_rope(config, kind) for kind in (SLIDING, FULL)},
        "per_layer_config": None,
        "sliding_window": _positive(config, "sliding_window", 4096),
        "use_double_wide_mlp": False,
    }
    return replace(
        _text({**config, **facts}, last_layer_full=False),
        values_normed=False,
        layer_scalars=False,
        norm_offset=1.0,
        query_scale=_positive(config, "query_pre_attn_scalar", 256) ** -0.5,
    )


def _gemma3_rope(config: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """RoPE of a kind of layer, from the keys of published files or those that recent transformers save."""
    key, base = ("rope_local_base_freq", 10_000.0) if kind == SLIDING else ("rope_theta", 1_000_000.0)
    rope = _section(_section(config, "rope_parameters"), kind)
    scaling = _section(config, "rope_scaling") if kind == FULL else {}
    factor = _number({**rope, **scaling}, "factor", 1.0)
    rope_type = "linear" if factor != 1.0 else "default"
    for each in (rope, scaling):  # older files say "type"
        named = each.get("rope_type", each.get("type", rope_type))
        _refuse(named not in ("default", "linear"), f"rope_type {_shown(named)} of {kind} layers")
    theta = _number(rope, "rope_theta", _number(config, key, base))
    return {"rope_type": rope_type, "rope_theta": theta, "factor": factor}


def _layers(config: Mapping[str, Any], last_layer_full: bool) -> tuple[LayerConfig, ...]:
    n_layers = _positive(config, "num_hidden_layers", most=_MAX_LAYERS)
    types = _layer_types(config, n_layers, last_layer_full)
    n_shared = _count(config, "num_kv_shared_layers", most=n_layers - 1)
    first_shared = n_layers - n_shared
    writers = {kind: i for i, kind in enumerate(types[:first_shared])}  # the last writer of each kind
    missing = set(types) - writers.keys()
    if missing:
        raise ArgumentError(f"no layer of kind {min(missing)!r} writes the keys that the shared layers read")
    ropes = {kind: _rope(config, kind) for kind in set(types)}
    sizes = _layer_sizes(config, types)
    ffn_dim = _positive(config, "intermediate_size")
    layers = []
    for i, kind in enumerate(types):
        shared = i >= first_shared
        head_dim, n_kv_heads = sizes[i]
        kv_source = writers[kind] if shared else i
        if sizes[kv_source] != sizes[i]:
            raise ArgumentError(f"layer {i} reads the keys of layer {kv_source}, whose heads have another size")
        base, partial, stretch = ropes[kind]
        layers.append(
            LayerConfig(
                index=i,
                window=_positive(config, "sliding_window", 512) if kind == SLIDING else 0,
                head_dim=head_dim,
                n_kv_heads=n_kv_heads,
                kv_source=kv_source,
                rope_base=base,
                rotary_dim=2 * int(head_dim * partial // 2),
                rope_stretch=stretch,
                ffn_dim=ffn_dim * (2 if shared and config.get("use_double_wide_mlp") else 1),
            )
        )
    return tuple(layers)


def _layer_types(config: Mapping[str, Any], n_layers: int, last_layer_full: bool) -> list[str]:
    types = _list(config, "layer_types", [SLIDING if (i + 1) % 6 else FULL for i in range(n_layers)])
    if len(types) != n_layers:
        raise ArgumentError(f"layer_types lists {len(types)} layers, num_hidden_layers says {n_layers}")
    for kind in types:
        _refuse(kind not in (SLIDING, FULL), f"layer type {_shown(kind)}")
    return [*types[:-1], FULL] if last_layer_full else types  # Gemma 4's reference forces the last layer


def _layer_sizes(config: Mapping[str, Any], types: Sequence[str]) -> list[tuple[int, int]]:
    """Head width and number of key heads of each layer.

    Published files say head_dim and global_head_dim (of full layers). Files saved by recent transformers instead carry
    `per_layer_config`, {layer index: {key: value}}, for the layers that differ; its keys may be padded with zeros.
    """
    overrides: dict[int, Mapping[str, Any]]
    if config.get("per_layer_config") is None:
        full = {"head_dim": _positive(config, "global_head_dim", 512)}
        overrides = {i: full for i, kind in enumerate(types) if kind == FULL}
    else:
        by_layer = _section(config, "per_layer_config")
        overrides = {int(key): _section(by_layer, key) for key in by_layer if str(key).isdecimal()}
        if len(overrides) != len(by_layer):
            raise ArgumentError("config key 'per_layer_config' must have the indices of layers as its keys")
    sizes = []
    for i in range(len(types)):
        override = overrides.get(i, {})
        unknown = sorted(set(override) - {"head_dim", "num_key_value_heads"})
        _refuse(unknown, f"a value of its own for {unknown[:1]} in layer {i} (per_layer_config)")
        layer = {**config, **override}
        head_dim, n_kv_heads = _positive(layer, "head_dim", 256), _positive(layer, "num_key_value_heads")
        n_heads = _positive(config, "num_attention_heads")
        if head_dim % 2 or n_heads % n_kv_heads:
            raise ArgumentError(
                f"layer {i}: heads must have an even width, and the {n_heads} query heads be a multiple of the key "
                f"heads; found width {head_dim} and {n_kv_heads} key heads"
            )
        sizes.append((head_dim, n_kv_heads))
    return sizes


def _rope(config: Mapping[str, Any], kind: str) -> tuple[float, float, float]:
    """Base, share of channels that turn, and what frequencies are divided by."""
    default = {
        SLIDING: {"rope_type": "default", "rope_theta": 10_000.0},
        FULL: {"rope_type": "proportional", "rope_theta": 1_000_000.0, "partial_rotary_factor": 0.25},
    }
    rope = _section(_section(config, "rope_parameters") or default, kind)
    rope_type = rope.get("rope_type")
    _refuse(rope_type not in ("default", "linear", "proportional"), f"rope_type {_shown(rope_type)} of {kind} layers")
    base, partial = _number(rope, "rope_theta", 10_000.0), _number(rope, "partial_rotary_factor", 1.0)
    stretch = _number(rope, "factor", 1.0) if rope_type == "linear" else 1.0
    if base <= 0 or not 0 < partial <= 1 or stretch <= 0:
        raise ArgumentError(
            f"rope_parameters of {kind} layers: rope_theta {base}, partial_rotary_factor {partial}, factor {stretch}"
        )
    return base, partial, stretch


# ---- the towers ------------------------------------------------------------------------------------------------------


def _vision(config: Mapping[str, Any]) -> VisionConfig:
    activation = config.get("hidden_activation", "gelu_pytorch_tanh")
    _refuse(activation != "gelu_pytorch_tanh", f"vision hidden_activation {_shown(activation)}")
    _refuse(config.get("attention_bias"), "a vision tower with biases (attention_bias)")
    n_heads = _positive(config, "num_attention_heads")
    kv_heads = _positive(config, "num_key_value_heads", n_heads)
    _refuse(kv_heads != n_heads, f"a vision tower with {kv_heads} key heads for {n_heads} query heads")
    d_model = _positive(config, "hidden_size")
    head_dim = _positive(config, "head_dim", d_model // n_heads)
    if head_dim % 4:
        raise ArgumentError(f"vision heads must have a width that 2-D positions divide by 4, found {head_dim}")
    return VisionConfig(
        d_model=d_model,
        n_layers=_positive(config, "num_hidden_layers", most=_MAX_LAYERS),
        n_heads=n_heads,
        head_dim=head_dim,
        ffn_dim=_positive(config, "intermediate_size"),
        patch_size=_positive(config, "patch_size", 16, most=4096),
        pooling=_positive(config, "pooling_kernel_size", 3),
        position_table_size=_positive(config, "position_embedding_size", 10_240),
        rope_base=_number(_section(config, "rope_parameters"), "rope_theta", 100.0),
        norm_eps=_number(config, "rms_norm_eps", 1e-6),
        clipped=bool(config.get("use_clipped_linears", False)),
        standardize=bool(config.get("standardize", False)),
    )


def _audio(config: Mapping[str, Any]) -> AudioConfig:
    activation = config.get("hidden_act", "silu")
    _refuse(activation != "silu", f"audio hidden_act {_shown(activation)}")
    channels = _list(config, "subsampling_conv_channels", (128, 32))
    if len(channels) != 2:
        raise ArgumentError(f"subsampling_conv_channels must list 2 widths, found {_shown(channels)}")
    first, second = (_positive({"subsampling_conv_channels": n}, "subsampling_conv_channels") for n in channels)
    d_model, n_heads = _positive(config, "hidden_size", 1024), _positive(config, "num_attention_heads", 8)
    if d_model % n_heads or d_model % 2:
        raise ArgumentError(f"audio hidden_size {d_model} must be even and a multiple of its {n_heads} heads")
    return AudioConfig(
        d_model=d_model,
        n_layers=_positive(config, "num_hidden_layers", 12, most=_MAX_LAYERS),
        n_heads=n_heads,
        conv_channels=(first, second),
        conv_kernel=_positive(config, "conv_kernel_size", 5),
        residual_weight=_number(config, "residual_weight", 0.5),
        chunk_size=_positive(config, "attention_chunk_size", 12),
        left_context=_positive(config, "attention_context_left", 13),
        right_context=_count(config, "attention_context_right"),
        logit_cap=_number(config, "attention_logit_cap", 50.0),
        invalid_logit=_number(config, "attention_invalid_logits_value", -1e9),
        gradient_clipping=_number(config, "gradient_clipping", 1e10),
        norm_eps=_number(config, "rms_norm_eps", 1e-6),
        out_dim=_positive(config, "output_proj_dims", 1536),
        clipped=bool(config.get("use_clipped_linears", True)),
    )


def _special(config: Mapping[str, Any], has_vision: bool, has_audio: bool) -> SpecialTokens:
    def token(key: str, default: int, present: bool) -> int | None:
        return _integer(config, key, default, 0, _MAX_SIZE) if present else None

    return SpecialTokens(
        image=token("image_token_id", 258_880, has_vision),
        audio=token("audio_token_id", 258_881, has_audio),
        video=token("video_token_id", 258_884, has_vision),
        begin_image=token("boi_token_id", 255_999, has_vision),
        end_image=token("eoi_token_id", 258_882, has_vision),
        begin_audio=token("boa_token_id", 256_000, has_audio),
        # Published files spell this key in both ways; the reference reads eoa_token_index.
        end_audio=token("eoa_token_index", 258_883, has_audio)
        if config.get("eoa_token_index") is not None
        else token("eoa_token_id", 258_883, has_audio),
    )
