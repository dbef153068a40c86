"""What a model says when it is given what it cannot use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import model_cases
from cellmd.backends import create
from cellmd.config import ModelConfig
from cellmd.container import Container
from cellmd.errors import LayoutError, PromptError, UnsupportedModelError
from cellmd.models.gemma4 import Gemma4
from checkpoints import checkpoint_config


@pytest.mark.parametrize("audio", [{"attention_context_left": 1}, {"attention_invalid_logits_value": -150.0}])
def test_audio_attention_that_sees_masked_frames(tmp_path: Path, audio: dict[str, Any]) -> None:
    """The reference would let masked frames, or none at all, into the softmax: another computation."""
    config = ModelConfig.from_dict(checkpoint_config("sound_only", {"audio_config": audio}))
    with (
        Container.open(model_cases.build(tmp_path, "sound_only")) as container,
        pytest.raises(UnsupportedModelError, match=f"{next(iter(audio))} "),
    ):
        Gemma4(create("reference"), config, container.tensors)


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
