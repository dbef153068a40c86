"""Recipes: which tensor is coded how, as data. The first rule that matches a tensor's role and name gives its coding.

To add a recipe: a row in `RECIPES`. To treat some tensors apart in one: a rule with a pattern, before the general one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from cellmd.convert.safetensors import SourceDtype
from cellmd.convert.tensor_map import Role, TensorSpec
from cellmd.errors import ArgumentError
from cellmd.quant.schemes import GROUP_SIZES
from cellmd.quant.tensor import Coding

AS_SOURCE = None
"""In a rule: keep the source's own dtype, bit for bit."""


@dataclass(frozen=True)
class Rule:
    """roles: none means any. pattern: a regular expression, searched in the name. coding: AS_SOURCE keeps the bits."""

    coding: Coding | None
    roles: tuple[Role, ...] = ()
    pattern: str = ""

    def matches(self, spec: TensorSpec) -> bool:
        return (not self.roles or spec.role in self.roles) and re.search(self.pattern, spec.name) is not None


@dataclass(frozen=True)
class Recipe:
    name: str
    summary: str
    rules: tuple[Rule, ...]

    def coding(self, spec: TensorSpec, source: SourceDtype, group_size: int | None = None) -> Coding:
        """How a tensor is stored. `group_size` overrides that of every INT4 tensor.

        One scale a row (0) needs no factor to be a share of: it is a float16. Other sizes keep the recipe's scales.
        """
        coding = next(rule.coding for rule in self.rules if rule.matches(spec))
        if coding is AS_SOURCE:
            return Coding(source)
        if not coding.quantised or group_size is None:
            return coding
        return replace(coding, group_size=group_size, scale_dtype=coding.scale_dtype if group_size else "f16")


# Decoder matrices that 8 bits pay for first, by what they are measured to cost (docs/quantisation.md): keys and values,
# which every later token reads, and the small matrices of the per-layer inputs.
_SMALL_AND_COSTLY = r"self_attn\.[kv]_proj\.|per_layer_(input_gate|projection|model_projection)\."
_COSTLY = rf"self_attn\.o_proj\.|mlp\.down_proj\.|{_SMALL_AND_COSTLY}"
_AUDIO = r"\.(audio_tower|embed_audio)\."
_TOWERS = r"\.(audio_tower|embed_audio|vision_tower|embed_vision)\."

_INT8 = Coding("i8", "tile16", 64, "i8")


def _mixed(name: str, summary: str, table_group: int, *int8_patterns: str) -> Recipe:
    """INT4 in groups of 32, the matrices of the patterns at INT8, the per-layer table in its own groups."""
    return Recipe(
        name,
        summary,
        (
            Rule(Coding("i4", "row", table_group, "i8"), ("per_layer_table",)),
            *(Rule(_INT8, ("matrix",), pattern) for pattern in int8_patterns),
            Rule(Coding("i4", "tile16", 32, "i8"), ("embedding", "matrix")),
            Rule(Coding("f16")),
        ),
    )


RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe("float", "nothing quantised, the source's own bits: the yardstick", (Rule(AS_SOURCE),)),
        Recipe(
            "aggressive",
            "every 2-D weight INT4, one 8-bit scale for 128 columns (per-layer embeddings: 256), the rest F16",
            (
                # Looked up by row only. Half of the file, so its groups are the longest.
                Rule(Coding("i4", "row", 256, "i8"), ("per_layer_table",)),
                # The embedding is also the output head: laid out for multiplication.
                Rule(Coding("i4", "tile16", 128, "i8"), ("embedding", "matrix")),
                Rule(Coding("f16")),
            ),
        ),
        Recipe(
            "qat",
            "every 2-D weight INT4 in groups of 32 with F16 scales: the grid of quantisation-aware checkpoints",
            (
                Rule(Coding("i4", "row", 32, "f16"), ("per_layer_table",)),
                Rule(Coding("i4", "tile16", 32, "f16"), ("embedding", "matrix")),
                Rule(Coding("f16")),
            ),
        ),
        _mixed(
            "balanced",
            "groups of 32; INT8 for keys, values, per-layer gates and projections, and the audio tower",
            64,
            r"language_model\..*(" + _SMALL_AND_COSTLY + ")",
            _AUDIO,
        ),
        _mixed(
            "quality",
            "as balanced, with INT8 for attention outputs, MLP outputs and the vision tower too",
            32,
            r"language_model\..*(" + _COSTLY + ")",
            _TOWERS,
        ),
    )
}


def find_recipe(name: str) -> Recipe:
    """Raises ArgumentError listing the names there are."""
    if name not in RECIPES:
        raise ArgumentError(f"no recipe {name!r}; there are: {', '.join(RECIPES)}")
    return RECIPES[name]


def check_group_size(group_size: int | None) -> int | None:
    """Raises ArgumentError for anything that is not a group size or None."""
    if group_size is not None and group_size not in GROUP_SIZES:
        raise ArgumentError(f"group size {group_size!r}: must be one of {', '.join(map(str, GROUP_SIZES))} (0: a row)")
    return group_size
