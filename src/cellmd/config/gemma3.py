"""The decoder of Gemma 3, in Gemma 4's keys.

Source of keys and defaults: transformers, `models/gemma3/configuration_gemma3.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from cellmd.config.decoder import FULL, SLIDING, text_config
from cellmd.config.facts import TextConfig
from cellmd.config.keys import MAX_LAYERS, listed, number, positive, refuse, section, shown


def gemma3_text_config(config: Mapping[str, Any]) -> TextConfig:
    """Gemma 3's decoder in Gemma 4's keys: the same, without sharing, per-layer inputs, value norms and layer scalars.

    Its norm weights are stored minus one, scores are scaled by query_pre_attn_scalar^-1/2, every channel turns, and the
    last layer is of whatever kind the pattern says.
    """
    refuse(config.get("attn_logit_softcapping"), "capping attention scores (attn_logit_softcapping)")
    head_dim = positive(config, "head_dim", 256)
    pattern = positive(config, "sliding_window_pattern", positive(config, "_sliding_window_pattern", 6))
    n_layers = positive(config, "num_hidden_layers", most=MAX_LAYERS)
    facts = {
        "hidden_size_per_layer_input": 0,
        "num_kv_shared_layers": 0,
        "global_head_dim": head_dim,
        "head_dim": head_dim,
        "layer_types": listed(
            config, "layer_types", [FULL if (i + 1) % pattern == 0 else SLIDING for i in range(n_layers)]
        ),
        "rope_parameters": {kind: _gemma3_rope(config, kind) for kind in (SLIDING, FULL)},
        "per_layer_config": None,
        "sliding_window": positive(config, "sliding_window", 4096),
        "use_double_wide_mlp": False,
    }
    return replace(
        text_config({**config, **facts}, last_layer_full=False),
        values_normed=False,
        layer_scalars=False,
        norm_offset=1.0,
        query_scale=positive(config, "query_pre_attn_scalar", 256) ** -0.5,
    )


def _gemma3_rope(config: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """RoPE of a kind of layer, from the keys of published files or those that recent transformers save."""
    key, base = ("rope_local_base_freq", 10_000.0) if kind == SLIDING else ("rope_theta", 1_000_000.0)
    rope = section(section(config, "rope_parameters"), kind)
    scaling = section(config, "rope_scaling") if kind == FULL else {}
    factor = number({**rope, **scaling}, "factor", 1.0)
    rope_type = "linear" if factor != 1.0 else "default"
    for each in (rope, scaling):  # older files say "type"
        named = each.get("rope_type", each.get("type", rope_type))
        refuse(named not in ("default", "linear"), f"rope_type {shown(named)} of {kind} layers")
    theta = number(rope, "rope_theta", number(config, key, base))
    return {"rope_type": rope_type, "rope_theta": theta, "factor": factor}
