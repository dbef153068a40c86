"""config.py: the two ways of writing head widths, what is refused, and that no JSON object brings it down."""

from __future__ import annotations

import contextlib
import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellmd.config import ModelConfig
from cellmd.errors import ArgumentError, CellmdError, UnsupportedModelError
from checkpoints import SHAPES, checkpoint_config, make_checkpoint

E2B: dict[str, Any] = json.loads((Path(__file__).parent / "data" / "e2b_config.json").read_text())


def e2b(**text_changes: Any) -> dict[str, Any]:
    config = copy.deepcopy(E2B)
    config["text_config"].update(text_changes)
    return config


def test_e2b_facts() -> None:
    config = ModelConfig.from_dict(E2B)
    assert config.text.n_layers == 35
    assert config.text.first_shared_layer == 15
    assert [layer.index for layer in config.text.layers if layer.window == 0] == [4, 9, 14, 19, 24, 29, 34]
    assert {layer.kv_source for layer in config.text.layers[15:]} == {13, 14}
    sliding, full = config.text.layers[0], config.text.layers[4]
    assert (sliding.head_dim, sliding.rotary_dim, sliding.window) == (256, 256, 512)
    assert (full.head_dim, full.rotary_dim, full.ffn_dim) == (512, 128, 6144)
    assert config.text.layers[15].ffn_dim == 12288
    assert (config.special.image, config.special.end_audio) == (258_880, 258_883)


def test_per_layer_config_says_the_same_as_global_head_dim() -> None:
    """transformers saves head widths as overrides by layer; keys are zero-padded to equal length."""
    config = e2b()
    del config["text_config"]["global_head_dim"]
    config["text_config"]["per_layer_config"] = {f"{i:02d}": {"head_dim": 512} for i in range(4, 35, 5)}
    assert ModelConfig.from_dict(config) == ModelConfig.from_dict(E2B)


def test_an_empty_per_layer_config_means_equal_widths() -> None:
    config = ModelConfig.from_dict(e2b(per_layer_config={}))
    assert {layer.head_dim for layer in config.text.layers} == {256}


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"enable_moe_block": True}, "mixture of experts"),
        ({"attention_k_eq_v": True}, "attention_k_eq_v"),
        ({"use_bidirectional_attention": "vision"}, "bidirectional"),
        ({"attention_bias": True}, "biases"),
        ({"tie_word_embeddings": False}, "output head"),
        ({"hidden_activation": "relu"}, "'relu'"),
        ({"layer_types": ["linear_attention"] * 35}, "linear_attention"),
        ({"per_layer_config": {"4": {"intermediate_size": 3}}}, "intermediate_size"),
        ({"rope_parameters": {"full_attention": {"rope_type": "yarn"}, "sliding_attention": {}}}, "rope_type"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(changes: dict[str, Any], word: str) -> None:
    with pytest.raises(UnsupportedModelError, match=word):
        ModelConfig.from_dict(e2b(**changes))


@pytest.mark.parametrize("audio", [{"attention_context_left": 1}, {"attention_invalid_logits_value": -150.0}])
def test_audio_attention_that_sees_masked_frames(audio: dict[str, Any]) -> None:
    """The reference would let masked frames, or none at all, into the softmax: another computation."""
    with pytest.raises(UnsupportedModelError, match=f"{next(iter(audio))} "):
        ModelConfig.from_dict(checkpoint_config("sound_only", {"audio_config": audio}))


@pytest.mark.parametrize("architecture", ["Gemma3ForConditionalGeneration", "Gemma4AssistantForCausalLM", 7, None])
def test_another_architecture_is_refused(architecture: Any) -> None:
    with pytest.raises(UnsupportedModelError, match="Gemma4ForConditionalGeneration"):
        ModelConfig.from_dict({**E2B, "architectures": [architecture], "model_type": "other"})


@pytest.mark.parametrize(
    "changes",
    [
        {"num_hidden_layers": 10**9},
        {"num_hidden_layers": 34},
        {"hidden_size": 1536.0},
        {"hidden_size": True},
        {"num_key_value_heads": 3},
        {"head_dim": 255},
        {"num_kv_shared_layers": 35},
        {"num_kv_shared_layers": 33},
        {"rms_norm_eps": float("nan")},
        {"rms_norm_eps": 10**400},
        {"per_layer_config": {"x": {}}},
        {"per_layer_config": {"19": {"head_dim": 512}}},
        {"rope_parameters": []},
        {"eos_token_id": [None]},
    ],
)
def test_impossible_values_are_named(changes: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError):
        ModelConfig.from_dict(e2b(**changes))


def paths(node: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to every value of a nested object."""
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [path, *(p for key, child in children for p in paths(child, (*path, key)))]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)


@given(data=st.data(), value=JSON)
def test_no_value_anywhere_ends_in_another_kind_of_error(data: st.DataObject, value: Any) -> None:
    config = copy.deepcopy(E2B)
    *way, last = data.draw(st.sampled_from([p for p in paths(config) if p]))
    node = config
    for key in way:
        node = node[key]
    node[last] = value
    with contextlib.suppress(CellmdError):
        ModelConfig.from_dict(config)


@pytest.mark.reference
@pytest.mark.parametrize("shape", sorted(SHAPES))
def test_files_saved_by_transformers_read_the_same(shape: str, tmp_path: Path) -> None:
    from transformers import AutoConfig

    folder = make_checkpoint(tmp_path / "published", shape=shape)
    AutoConfig.from_pretrained(folder).save_pretrained(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert ModelConfig.from_dict(saved) == ModelConfig.from_dict(checkpoint_config(shape))
