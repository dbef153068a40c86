"""The table of expected tensors, and what a checkpoint that disagrees with it is told."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from cellmd.config import ModelConfig
from cellmd.convert.tensor_map import TensorSpec, check_tensors, expected_tensors
from cellmd.errors import CheckpointError
from checkpoints import SHAPES, checkpoint_config

DATA = Path(__file__).parents[1] / "data"
TOWER, EMBEDDER = "model.audio_tower.output_proj.weight", "model.embed_audio.embedding_projection.weight"


def e2b() -> ModelConfig:
    return ModelConfig.from_dict(json.loads((DATA / "e2b_config.json").read_text()))


def shapes_of(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    return {name: spec.shape for name, spec in expected_tensors(config).items()}


def test_every_tensor_of_e2b() -> None:
    with gzip.open(DATA / "e2b_tensors.tsv.gz", "rt") as file:
        published = {name: tuple(json.loads(shape)) for name, shape in (line.split("\t") for line in file)}
    assert len(published) == 2011
    assert shapes_of(e2b()) == published


def test_e2b_counts() -> None:
    stored = check_tensors(e2b(), shapes_of(e2b()))
    assert len(stored) == 2011 - 20 * 3
    assert Counter(spec.component for spec in stored) == {"text": 539, "vision": 659, "audio": 752, "per_layer": 1}
    assert stored[-1].role == "per_layer_table"
    assert all(len(spec.shape) == 2 for spec in stored if spec.role in ("matrix", "embedding", "per_layer_table"))
    assert all(len(spec.shape) != 2 for spec in stored if spec.role not in ("matrix", "embedding", "per_layer_table"))


@pytest.mark.parametrize("shape", sorted(SHAPES))
def test_unused_tensors_may_be_there_or_not(shape: str) -> None:
    config = ModelConfig.from_dict(checkpoint_config(shape))
    with_unused = shapes_of(config)
    without = {name: spec.shape for name, spec in expected_tensors(config).items() if not spec.unused}
    assert check_tensors(config, with_unused) == check_tensors(config, without)
    n_shared = config.text.n_layers - config.text.first_shared_layer
    assert len(with_unused) - len(without) == 3 * n_shared


def test_standardize_adds_two_vectors() -> None:
    changed = checkpoint_config("tiny", {"vision_config": {"standardize": True}})
    added = set(shapes_of(ModelConfig.from_dict(changed))) - set(shapes_of(tiny()))
    assert added == {"model.vision_tower.std_bias", "model.vision_tower.std_scale"}


def tiny(**text: Any) -> ModelConfig:
    return ModelConfig.from_dict(checkpoint_config("tiny", {"text_config": text}))


def some_required(config: ModelConfig) -> list[TensorSpec]:
    return [spec for spec in expected_tensors(config).values() if not spec.unused]


def test_missing_tensors_are_named() -> None:
    for spec in some_required(tiny()):
        shapes = shapes_of(tiny())
        del shapes[spec.name]
        with pytest.raises(CheckpointError, match=f"1 tensors are missing: {spec.name}"):
            check_tensors(tiny(), shapes)


def test_misshapen_tensors_are_named() -> None:
    for spec in expected_tensors(tiny()).values():
        if spec.name in (TOWER, EMBEDDER):
            continue  # their own message, below
        shapes = shapes_of(tiny()) | {spec.name: (*spec.shape, 1)}
        with pytest.raises(CheckpointError, match="another shape") as caught:
            check_tensors(tiny(), shapes)
        assert f"{spec.name} {[*spec.shape, 1]} instead of {list(spec.shape)}" in str(caught.value)


def test_unknown_tensors_are_named_the_first_few() -> None:
    shapes = shapes_of(tiny()) | {f"model.language_model.layers.0.experts.{i}": (1,) for i in range(5)}
    with pytest.raises(CheckpointError, match=r"5 tensors belong to no part.*experts\.2, \.\.\."):
        check_tensors(tiny(), shapes)


def test_a_tied_output_head_is_dropped_and_another_one_refused() -> None:
    shapes = shapes_of(tiny())
    head = {"lm_head.weight": shapes["model.language_model.embed_tokens.weight"]}
    assert check_tensors(tiny(), shapes | head) == check_tensors(tiny(), shapes)
    with pytest.raises(CheckpointError, match="lm_head"):
        check_tensors(tiny(), shapes | {"lm_head.weight": (7, 7)})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({TOWER: (41, 36)}, "output_proj gives 41 channels, .* takes 40"),
        ({EMBEDDER: (40, 12)}, "output_proj gives 40 channels, .* takes 12"),
        ({EMBEDDER: (44, 40)}, "gives 44 channels, the decoder's hidden_size is 40"),
    ],
)
def test_a_misaligned_audio_tower_is_told_so(changes: dict[str, tuple[int, ...]], words: str) -> None:
    with pytest.raises(CheckpointError, match=f"audio-to-text alignment: .*{words}"):
        check_tensors(tiny(), shapes_of(tiny()) | changes)


def test_aligned_parts_of_the_wrong_width_are_still_misshapen() -> None:
    with pytest.raises(CheckpointError, match="another shape"):
        check_tensors(tiny(), shapes_of(tiny()) | {TOWER: (44, 36), EMBEDDER: (40, 44)})
