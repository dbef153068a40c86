"""The vision tower, the audio tower, and the tokens that stand for media.

Source of keys and defaults: transformers, `models/gemma4/configuration_gemma4.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cellmd.config.facts import AudioConfig, SpecialTokens, VisionConfig
from cellmd.config.keys import MAX_LAYERS, MAX_SIZE, count, integer, listed, number, positive, refuse, section, shown
from cellmd.errors import ArgumentError

_FLOAT32_EXP_ZERO = 104.0
"""exp(-x) is zero in float32 from here on."""


def vision_config(config: Mapping[str, Any]) -> VisionConfig:
    activation = config.get("hidden_activation", "gelu_pytorch_tanh")
    refuse(activation != "gelu_pytorch_tanh", f"vision hidden_activation {shown(activation)}")
    refuse(config.get("attention_bias"), "a vision tower with biases (attention_bias)")
    n_heads = positive(config, "num_attention_heads")
    kv_heads = positive(config, "num_key_value_heads", n_heads)
    refuse(kv_heads != n_heads, f"a vision tower with {kv_heads} key heads for {n_heads} query heads")
    d_model = positive(config, "hidden_size")
    head_dim = positive(config, "head_dim", d_model // n_heads)
    if head_dim % 4:
        raise ArgumentError(f"vision heads must have a width that 2-D positions divide by 4, found {head_dim}")
    return VisionConfig(
        d_model=d_model,
        n_layers=positive(config, "num_hidden_layers", most=MAX_LAYERS),
        n_heads=n_heads,
        head_dim=head_dim,
        ffn_dim=positive(config, "intermediate_size"),
        patch_size=positive(config, "patch_size", 16, most=4096),
        pooling=positive(config, "pooling_kernel_size", 3),
        position_table_size=positive(config, "position_embedding_size", 10_240),
        rope_base=number(section(config, "rope_parameters"), "rope_theta", 100.0),
        norm_eps=number(config, "rms_norm_eps", 1e-6),
        clipped=bool(config.get("use_clipped_linears", False)),
        standardize=bool(config.get("standardize", False)),
    )


def audio_config(config: Mapping[str, Any]) -> AudioConfig:
    activation = config.get("hidden_act", "silu")
    refuse(activation != "silu", f"audio hidden_act {shown(activation)}")
    channels = listed(config, "subsampling_conv_channels", (128, 32))
    if len(channels) != 2:
        raise ArgumentError(f"subsampling_conv_channels must list 2 widths, found {shown(channels)}")
    first, second = (positive({"subsampling_conv_channels": n}, "subsampling_conv_channels") for n in channels)
    d_model, n_heads = positive(config, "hidden_size", 1024), positive(config, "num_attention_heads", 8)
    if d_model % n_heads or d_model % 2:
        raise ArgumentError(f"audio hidden_size {d_model} must be even and a multiple of its {n_heads} heads")
    left_context = positive(config, "attention_context_left", 13)
    refuse(
        left_context < 2,
        f"audio attention in which a frame does not see itself (attention_context_left {left_context})",
    )
    cap = number(config, "attention_logit_cap", 50.0)
    masked = number(config, "attention_invalid_logits_value", -1e9)
    refuse(
        masked > -cap - _FLOAT32_EXP_ZERO,
        f"audio attention that sees masked frames (attention_invalid_logits_value {masked})",
    )
    return AudioConfig(
        d_model=d_model,
        n_layers=positive(config, "num_hidden_layers", 12, most=MAX_LAYERS),
        n_heads=n_heads,
        conv_channels=(first, second),
        conv_kernel=positive(config, "conv_kernel_size", 5),
        residual_weight=number(config, "residual_weight", 0.5),
        chunk_size=positive(config, "attention_chunk_size", 12),
        left_context=left_context,
        right_context=count(config, "attention_context_right"),
        logit_cap=cap,
        gradient_clipping=number(config, "gradient_clipping", 1e10),
        norm_eps=number(config, "rms_norm_eps", 1e-6),
        out_dim=positive(config, "output_proj_dims", 1536),
        clipped=bool(config.get("use_clipped_linears", True)),
    )


def special_tokens(config: Mapping[str, Any], has_vision: bool, has_audio: bool) -> SpecialTokens:
    def token(key: str, default: int, present: bool) -> int | None:
        return integer(config, key, default, 0, MAX_SIZE) if present else None

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
