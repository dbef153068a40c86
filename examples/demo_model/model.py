"""The shape of the demo model and how its weights begin."""

from __future__ import annotations

import math

import torch
from torch import nn
from transformers import (
    Gemma4AudioConfig,
    Gemma4Config,
    Gemma4ForConditionalGeneration,
    Gemma4TextConfig,
    Gemma4VisionConfig,
)

from tokenizer import ID, VOCABULARY

SLIDING, FULL = "sliding_attention", "full_attention"


def config() -> Gemma4Config:
    """Every feature of the E2B in 7.9 million parameters; widths are multiples of 128 (the per-layer one is 32)."""
    text = Gemma4TextConfig(
        vocab_size=VOCABULARY,
        vocab_size_per_layer_input=VOCABULARY,
        hidden_size=256,
        hidden_size_per_layer_input=32,
        intermediate_size=256,
        use_double_wide_mlp=True,
        num_hidden_layers=6,
        num_kv_shared_layers=2,
        layer_types=[SLIDING, SLIDING, FULL, SLIDING, SLIDING, FULL],
        sliding_window=128,  # less than two frames of a film, more than one
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        global_head_dim=64,
        max_position_embeddings=8192,
        rope_parameters={
            SLIDING: {"rope_type": "default", "rope_theta": 10_000.0},
            FULL: {"rope_type": "proportional", "rope_theta": 1_000_000.0, "partial_rotary_factor": 0.25},
        },
        final_logit_softcapping=30.0,
        tie_word_embeddings=True,
        pad_token_id=ID["<pad>"],
        bos_token_id=ID["<bos>"],
        eos_token_id=ID["<eos>"],
        dtype="bfloat16",
    )
    vision = Gemma4VisionConfig(
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=32,
        global_head_dim=32,
        patch_size=16,
        pooling_kernel_size=3,
        position_embedding_size=224,
        default_output_length=70,
        use_clipped_linears=True,
        dtype="bfloat16",
    )
    audio = Gemma4AudioConfig(
        hidden_size=128,
        num_hidden_layers=5,
        num_attention_heads=4,
        subsampling_conv_channels=[128, 32],
        output_proj_dims=256,
        use_clipped_linears=True,
        dtype="bfloat16",
    )
    return Gemma4Config(
        text_config=text,
        vision_config=vision,
        audio_config=audio,
        boi_token_id=ID["<|image>"],
        eoi_token_id=ID["<image|>"],
        image_token_id=ID["<|image|>"],
        video_token_id=ID["<|video|>"],
        boa_token_id=ID["<|audio>"],
        eoa_token_id=ID["<audio|>"],
        eoa_token_index=ID["<audio|>"],
        audio_token_id=ID["<|audio|>"],
        eos_token_id=[ID["<eos>"], ID["<turn|>"]],
        vision_soft_tokens_per_image=70,
        tie_word_embeddings=True,
        dtype="bfloat16",
    )


def new_model(seed: int = 0) -> Gemma4ForConditionalGeneration:
    """Fresh float32 weights: fan-in scaled, gentle attention at first, quiet residual branches."""
    torch.manual_seed(seed)
    cfg = config()
    cfg._attn_implementation = "sdpa"
    cfg.audio_config._attn_implementation = "eager"
    model = Gemma4ForConditionalGeneration(cfg).float()
    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, nn.Linear | nn.Conv2d | nn.Conv1d) and "lm_head" not in name:
                fan_in = module.weight[0].numel()
                module.weight.normal_(0, 1 / math.sqrt(fan_in))
        text, vision = model.model.language_model, model.model.vision_tower
        text.embed_tokens.weight.normal_(0, 1 / math.sqrt(cfg.text_config.hidden_size))
        text.embed_tokens_per_layer.weight.normal_(0, 1 / math.sqrt(cfg.text_config.hidden_size_per_layer_input))
        vision.patch_embedder.position_embedding_table.normal_(0, 0.2)
        for name, weight in model.named_parameters():
            if name.endswith(("q_norm.weight", "k_norm.weight")):
                weight.fill_(weight.numel() ** -0.25 * 1.2)
            elif "post_" in name and name.endswith("norm.weight") and "audio" not in name:
                weight.fill_(0.4)
    return model


def parameters(model: nn.Module) -> int:
    """The tied output head counted once."""
    return sum(p.numel() for p in {id(p): p for p in model.parameters()}.values())
