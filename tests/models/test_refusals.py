"""What a model says when it is given what it cannot use."""

from __future__ import annotations

from pathlib import Path

import pytest

import model_cases
from cellmd.backends import create
from cellmd.config import ModelConfig
from cellmd.container import Container
from cellmd.errors import LayoutError, PromptError
from cellmd.models.gemma4 import Gemma4


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    with Container.open(model_cases.build(tmp_path, "text_only")) as container:
        tensors = dict(container.tensors)
        config = ModelConfig.from_dict(container.config)
    del tensors["model.language_model.layers.3.mlp.down_proj.weight"]
    with pytest.raises(LayoutError, match=r"'model\.language_model\.layers\.3\.mlp\.down_proj\.weight' is missing"):
        Gemma4(create("reference"), config, tensors)


def test_media_without_a_tower(tmp_path: Path) -> None:
    with Container.open(model_cases.build(tmp_path, "text_only")) as container:
        model = Gemma4(create("reference"), ModelConfig.from_dict(container.config), container.tensors)
        with pytest.raises(PromptError, match="no audio tower"):
            model.encode_audio(model_cases.sound(8))
        with pytest.raises(PromptError, match="no vision tower"):
            model.encode_image(model_cases.picture_of(patch_size=4, rows=2, columns=2, pooled=4))
