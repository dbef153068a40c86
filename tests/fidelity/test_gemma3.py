"""Gemma 3 text models: the facts, what conversion works into the norms, GGUF, and the logits of the reference."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

import cellmd
from cellmd.config import ModelConfig
from cellmd.container import Container
from cellmd.convert.checkpoint import Checkpoint
from cellmd.errors import ArgumentError, CheckpointError, UnsupportedModelError
from cellmd.processors.features import Prompt
from cellmd.quant import decode
from gemma3_checkpoint import CONFIG, make_gemma3, make_gguf, random_weights

PREFIX = "model.language_model."
IDS = tuple(int(i) for i in np.random.default_rng(5).integers(3, 480, 40))


def test_the_facts_of_the_family() -> None:
    text = ModelConfig.from_dict(CONFIG).text
    assert [layer.window for layer in text.layers] == [7, 7, 0, 7]  # the last is what the pattern says, not forced
    assert [layer.rope_base for layer in text.layers] == [1e4, 1e4, 1e6, 1e4]
    assert {(layer.head_dim, layer.rotary_dim, layer.n_kv_heads) for layer in text.layers} == {(24, 24, 2)}
    assert all(layer.owns_kv for layer in text.layers)
    assert (text.ple_dim, text.values_normed, text.layer_scalars, text.norm_offset) == (0, False, False, 1.0)
    assert text.query_scale == 40**-0.5


@pytest.mark.parametrize("key", ["rope_type", "type"])
def test_global_layers_of_large_models_turn_slower(key: str) -> None:
    text = ModelConfig.from_dict({**CONFIG, "rope_scaling": {key: "linear", "factor": 8.0}}).text
    assert [layer.rope_stretch for layer in text.layers] == [1.0, 1.0, 8.0, 1.0]
    for factor in (0, -8.0):
        with pytest.raises(ArgumentError, match="factor"):
            ModelConfig.from_dict({**CONFIG, "rope_scaling": {key: "linear", "factor": factor}})


def test_keys_of_recent_transformers_mean_the_same() -> None:
    old = {key: value for key, value in CONFIG.items() if not key.startswith("rope") and "pattern" not in key}
    new = {
        **old,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
            "full_attention": {"rope_type": "default", "rope_theta": 1_000_000.0},
        },
    }
    assert ModelConfig.from_dict(new) == ModelConfig.from_dict(CONFIG)
    new["rope_parameters"]["full_attention"] |= {"rope_type": "linear", "factor": 8.0}
    scaled = {**CONFIG, "rope_scaling": {"rope_type": "linear", "factor": 8.0}}
    assert ModelConfig.from_dict(new) == ModelConfig.from_dict(scaled)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"rope_scaling": {"rope_type": "yarn", "factor": 8.0}}, "rope_type 'yarn' of full_attention layers"),
        ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
        ({"use_bidirectional_attention": True}, "bidirectional"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(change: dict[str, object], named: str) -> None:
    with pytest.raises(UnsupportedModelError, match=named):
        ModelConfig.from_dict({**CONFIG, **change})


def test_conversion_adds_the_one_and_folds_the_query_scale(tmp_path: Path) -> None:
    cellmd.convert(make_gemma3(tmp_path / "source"), tmp_path / "x.cellmd", recipe="float")
    weights = random_weights(CONFIG)
    with Container.open(tmp_path / "x.cellmd") as container:
        stored = {name: decode(packed) for name, packed in container.tensors.items()}
    one, scale = np.float32(1), np.float32(40**-0.5)
    for name, values in weights.items():
        expected = values
        if name.endswith("norm.weight"):
            expected = values + one
        if name.endswith("q_norm.weight"):
            expected = (values + one) * scale
        np.testing.assert_array_equal(stored[name], expected, err_msg=name)


def test_verify_sees_no_error_in_a_float_file(tmp_path: Path) -> None:
    from cellmd.convert.verify import compare_with_source

    source = make_gemma3(tmp_path / "source", dtype="bfloat16")
    cellmd.convert(source, tmp_path / "x.cellmd", recipe="float")
    with Container.open(tmp_path / "x.cellmd") as container, Checkpoint.open(source) as checkpoint:
        assert all(math.isinf(error.snr_db) for error in compare_with_source(container, checkpoint).values())


def test_gguf_is_the_same_model(tmp_path: Path) -> None:
    config = {"query_pre_attn_scalar": CONFIG["head_dim"], "sliding_window_pattern": 6}
    (tmp_path / "gguf").mkdir()
    sources = make_gemma3(tmp_path / "source", config), make_gguf(tmp_path / "gguf" / "x.gguf")
    logits = []
    for i, source in enumerate(sources):
        cellmd.convert(source, tmp_path / f"{i}.cellmd", recipe="float")
        with cellmd.load(tmp_path / f"{i}.cellmd", backend="reference") as model:
            logits.append(model.logits(Prompt(IDS)))
    # Taking the one off and adding it again rounds the norm weights, 53 times over.
    np.testing.assert_allclose(logits[1], logits[0], rtol=0, atol=1e-5 * np.abs(logits[0]).max())


def test_a_broken_gguf_is_named(tmp_path: Path) -> None:
    whole = make_gguf(tmp_path / "x.gguf").read_bytes()
    for content in (b"", b"GGUF", whole[: len(whole) // 2], b"not gguf at all" * 10):
        (tmp_path / "broken.gguf").write_bytes(content)
        with pytest.raises(CheckpointError, match=r"broken\.gguf"):
            Checkpoint.open(tmp_path / "broken.gguf")


@pytest.mark.reference
@pytest.mark.parametrize(
    "config",
    [
        {},
        {"head_dim": 16, "num_attention_heads": 2, "final_logit_softcapping": 9.0},
        {"rope_scaling": {"rope_type": "linear", "factor": 8.0}},
    ],
)
def test_logits_are_those_of_the_reference(tmp_path: Path, config: dict[str, object]) -> None:
    import torch
    import transformers

    from transformers_model import assert_as_good

    source = make_gemma3(tmp_path / "source", config)
    cellmd.convert(source, tmp_path / "x.cellmd", recipe="float")
    with cellmd.load(tmp_path / "x.cellmd", backend="reference") as model:
        ours = model.logits(Prompt(IDS))
    reference = {}
    for dtype in ("float32", "float64"):
        kind = transformers.Gemma3ForCausalLM
        theirs = kind.from_pretrained(source, dtype=dtype, attn_implementation="eager").eval()
        with torch.no_grad():
            reference[dtype] = theirs(input_ids=torch.tensor([IDS])).logits[0].numpy()
    assert_as_good(ours, reference["float32"], reference["float64"])
