"""The decoder of Gemma 4.

Source of keys and defaults: transformers, `models/gemma4/configuration_gemma4.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cellmd.config.facts import LayerConfig, TextConfig
from cellmd.config.keys import MAX_LAYERS, MAX_SIZE, count, integer, listed, number, positive, refuse, section, shown
from cellmd.errors import ArgumentError

SLIDING = "sliding_attention"
FULL = "full_attention"


def text_config(config: Mapping[str, Any], *, last_layer_full: bool = True) -> TextConfig:
    refuse(config.get("enable_moe_block"), "a mixture of experts (enable_moe_block)")
    refuse(config.get("attention_k_eq_v"), "sharing one projection between keys and values (attention_k_eq_v)")
    refuse(config.get("use_bidirectional_attention"), "bidirectional attention in the decoder")
    refuse(config.get("attention_bias"), "attention with biases (attention_bias)")
    refuse(config.get("tie_word_embeddings") is False, "an output head of its own (tie_word_embeddings false)")
    activation = config.get("hidden_activation", "gelu_pytorch_tanh")
    refuse(activation != "gelu_pytorch_tanh", f"hidden_activation {shown(activation)}")
    eos = config.get("eos_token_id", 1)
    vocab_size = positive(config, "vocab_size", 262_144)
    return TextConfig(
        vocab_size=vocab_size,
        d_model=positive(config, "hidden_size"),
        n_heads=positive(config, "num_attention_heads"),
        layers=_layers(config, last_layer_full),
        ple_dim=count(config, "hidden_size_per_layer_input") if "hidden_size_per_layer_input" in config else 256,
        ple_vocab_size=integer(config, "vocab_size_per_layer_input", vocab_size, 0, MAX_SIZE),
        norm_eps=number(config, "rms_norm_eps", 1e-6),
        softcap=number(config, "final_logit_softcapping", 0.0),
        context_length=positive(config, "max_position_embeddings", 131_072),
        pad_token_id=count(config, "pad_token_id"),
        bos_token_id=integer(config, "bos_token_id", 2, 0, MAX_SIZE),
        eos_token_ids=tuple(
            integer({"eos_token_id": each}, "eos_token_id", None, 0, MAX_SIZE)
            for each in (eos if isinstance(eos, list | tuple) else [eos])
        ),
    )


def _layers(config: Mapping[str, Any], last_layer_full: bool) -> tuple[LayerConfig, ...]:
    n_layers = positive(config, "num_hidden_layers", most=MAX_LAYERS)
    types = _layer_types(config, n_layers, last_layer_full)
    n_shared = count(config, "num_kv_shared_layers", most=n_layers - 1)
    first_shared = n_layers - n_shared
    writers = {kind: i for i, kind in enumerate(types[:first_shared])}  # the last writer of each kind
    missing = set(types) - writers.keys()
    if missing:
        raise ArgumentError(f"no layer of kind {min(missing)!r} writes the keys that the shared layers read")
    ropes = {kind: _rope(config, kind) for kind in set(types)}
    sizes = _layer_sizes(config, types)
    ffn_dim = positive(config, "intermediate_size")
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
                window=positive(config, "sliding_window", 512) if kind == SLIDING else 0,
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
    types = listed(config, "layer_types", [SLIDING if (i + 1) % 6 else FULL for i in range(n_layers)])
    if len(types) != n_layers:
        raise ArgumentError(f"layer_types lists {len(types)} layers, num_hidden_layers says {n_layers}")
    for kind in types:
        refuse(kind not in (SLIDING, FULL), f"layer type {shown(kind)}")
    return [*types[:-1], FULL] if last_layer_full else types  # Gemma 4's reference forces the last layer


def _layer_sizes(config: Mapping[str, Any], types: Sequence[str]) -> list[tuple[int, int]]:
    """Head width and number of key heads of each layer.

    Published files say head_dim and global_head_dim (of full layers). Files saved by recent transformers instead carry
    `per_layer_config`, {layer index: {key: value}}, for the layers that differ; its keys may be padded with zeros.
    """
    overrides: dict[int, Mapping[str, Any]]
    if config.get("per_layer_config") is None:
        full = {"head_dim": positive(config, "global_head_dim", 512)}
        overrides = {i: full for i, kind in enumerate(types) if kind == FULL}
    else:
        by_layer = section(config, "per_layer_config")
        overrides = {int(key): section(by_layer, key) for key in by_layer if str(key).isdecimal()}
        if len(overrides) != len(by_layer):
            raise ArgumentError("config key 'per_layer_config' must have the indices of layers as its keys")
    sizes = []
    for i in range(len(types)):
        override = overrides.get(i, {})
        unknown = sorted(set(override) - {"head_dim", "num_key_value_heads"})
        refuse(unknown, f"a value of its own for {unknown[:1]} in layer {i} (per_layer_config)")
        layer = {**config, **override}
        head_dim, n_kv_heads = positive(layer, "head_dim", 256), positive(layer, "num_key_value_heads")
        n_heads = positive(config, "num_attention_heads")
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
    rope = section(section(config, "rope_parameters") or default, kind)
    rope_type = rope.get("rope_type")
    refuse(rope_type not in ("default", "linear", "proportional"), f"rope_type {shown(rope_type)} of {kind} layers")
    base, partial = number(rope, "rope_theta", 10_000.0), number(rope, "partial_rotary_factor", 1.0)
    stretch = number(rope, "factor", 1.0) if rope_type == "linear" else 1.0
    if base <= 0 or not 0 < partial <= 1 or stretch <= 0:
        raise ArgumentError(
            f"rope_parameters of {kind} layers: rope_theta {base}, partial_rotary_factor {partial}, factor {stretch}"
        )
    return base, partial, stretch
