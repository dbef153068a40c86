"""Recipes: which tensor gets which coding, what `--group-size` changes, and that E2B fits its budget."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from cellmd.config import ModelConfig
from cellmd.convert.recipe import RECIPES, check_group_size, find_recipe
from cellmd.convert.tensor_map import TensorSpec, expected_tensors
from cellmd.errors import ArgumentError
from cellmd.quant import Coding, coding_problem, sizes
from checkpoints import SHAPES, checkpoint_config

E2B = Path(__file__).parents[1] / "data" / "e2b_config.json"
BUDGETS_GIB = {"aggressive": 2.45, "balanced": 2.75, "quality": 3.3}


def stored(config: ModelConfig) -> list[TensorSpec]:
    return [spec for spec in expected_tensors(config).values() if not spec.unused]


def total(recipe: str, group_size: int | None = None) -> int:
    specs = stored(ModelConfig.from_dict(json.loads(E2B.read_text())))
    return sum(sizes(spec.shape, find_recipe(recipe).coding(spec, "bf16", group_size)).total for spec in specs)


@pytest.mark.parametrize("recipe", BUDGETS_GIB)
def test_e2b_fits_its_budget_with_room_for_tokenizer_and_header(recipe: str) -> None:
    """The tokenizer takes 5 MB deflated and 8 MB compiled, names, sizes and checksums of 1,951 tensors about 2 MB."""
    assert total(recipe) + 15_000_000 < BUDGETS_GIB[recipe] * 2**30


def test_each_recipe_is_larger_than_the_one_before() -> None:
    in_order = [total(recipe) for recipe in (*BUDGETS_GIB, "float")]
    assert in_order == sorted(in_order)


def test_one_scale_a_row_is_the_smallest_and_smaller_groups_are_larger() -> None:
    by_group = [total("aggressive", group) for group in (0, 256, 128, 64, 32)]
    assert by_group == sorted(by_group)
    assert by_group[0] < total("aggressive") < by_group[2]


def test_float_keeps_every_byte() -> None:
    specs = stored(ModelConfig.from_dict(json.loads(E2B.read_text())))
    assert total("float") == 2 * sum(math.prod(spec.shape) for spec in specs)


@pytest.mark.parametrize("shape", sorted(SHAPES))
@pytest.mark.parametrize("recipe", sorted(RECIPES))
@pytest.mark.parametrize("group_size", [None, 0, 32, 64, 128, 256])
def test_every_tensor_has_a_coding_that_fits_it(recipe: str, shape: str, group_size: int | None) -> None:
    for spec in stored(ModelConfig.from_dict(checkpoint_config(shape))):
        assert coding_problem(spec.shape, find_recipe(recipe).coding(spec, "bf16", group_size)) is None


def test_aggressive_quantises_what_has_two_dimensions_and_nothing_else() -> None:
    for spec in stored(ModelConfig.from_dict(json.loads(E2B.read_text()))):
        coding = find_recipe("aggressive").coding(spec, "bf16")
        assert coding.dtype == ("i4" if len(spec.shape) == 2 else "f16")
        assert coding.layout == ("tile16" if spec.role in ("matrix", "embedding") else "row")


def test_group_size_overrides_every_quantised_tensor() -> None:
    specs = {spec.role: spec for spec in stored(ModelConfig.from_dict(checkpoint_config("tiny")))}
    aggressive = find_recipe("aggressive")
    assert aggressive.coding(specs["per_layer_table"], "bf16") == Coding("i4", "row", 256, "i8")
    assert aggressive.coding(specs["per_layer_table"], "bf16", 64) == Coding("i4", "row", 64, "i8")
    assert aggressive.coding(specs["matrix"], "bf16", 0) == Coding("i4", "tile16", 0, "f16")
    assert aggressive.coding(specs["norm"], "bf16", 64) == Coding("f16")
    assert find_recipe("float").coding(specs["matrix"], "f32", 64) == Coding("f32")


def test_mixed_recipes_spend_eight_bits_where_they_say() -> None:
    layer = "model.language_model.layers.3."
    eight = {
        "balanced": ["self_attn.k_proj", "self_attn.v_proj", "per_layer_input_gate", "per_layer_projection"],
        "quality": [
            "self_attn.k_proj",
            "self_attn.v_proj",
            "self_attn.o_proj",
            "mlp.down_proj",
            "per_layer_projection",
        ],
    }
    specs = {spec.name: spec for spec in stored(ModelConfig.from_dict(json.loads(E2B.read_text())))}
    for recipe, parts in eight.items():
        chosen = {name: find_recipe(recipe).coding(spec, "bf16").dtype for name, spec in specs.items()}
        assert all(chosen[f"{layer}{part}.weight"] == "i8" for part in parts)
        assert all(chosen[f"{layer}{part}.weight"] == "i4" for part in ("self_attn.q_proj", "mlp.up_proj"))
        assert chosen["model.language_model.embed_tokens.weight"] == "i4"
        assert chosen["model.language_model.embed_tokens_per_layer.weight"] == "i4"
        assert chosen["model.audio_tower.output_proj.weight"] == "i8"
        vision = chosen["model.vision_tower.encoder.layers.0.mlp.down_proj.linear.weight"]
        assert vision == ("i8" if recipe == "quality" else "i4")


def test_wrong_names_and_sizes_are_refused_with_the_right_ones() -> None:
    with pytest.raises(ArgumentError, match="no recipe 'best'; there are: float, aggressive"):
        find_recipe("best")
    for wrong in (1, 16, 512, -1):
        with pytest.raises(ArgumentError, match="must be one of 0, 32, 64, 128, 256"):
            check_group_size(wrong)
