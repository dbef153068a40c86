"""Prompts as sequences for the decoder, their media through the towers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from cellmd.calibration.streams import RecordingOps, Values
from cellmd.config import ModelConfig
from cellmd.models.gemma4 import Gemma4
from cellmd.processors.features import AudioFeatures, ImageFeatures, Prompt
from cellmd.quant import PackedTensor
from cellmd.runtime.batch import Sequence as Running
from cellmd.runtime.batch import SoftTokens


def with_soft_tokens(
    prompts: Sequence[Prompt],
    config: ModelConfig,
    values: Values,
    tensors: Mapping[str, PackedTensor],
    seen: Callable[[str, np.ndarray], None] | None = None,
) -> list[Running]:
    """Each prompt as a sequence of its own; `seen` is called with the name of each of the towers' matrices and what it
    was multiplied with (N, K)."""
    sequences = [Running(0, list(prompt.token_ids)) for prompt in prompts]
    if any(prompt.media for prompt in prompts):
        ops = RecordingOps(values)
        ops.seen = seen
        model = Gemma4(ops, config, tensors)
        for prompt, sequence in zip(prompts, sequences, strict=True):
            sequence.soft = [
                SoftTokens(span.start, span.features.n_soft_tokens, _encode(model, span.features))
                for span in prompt.media
            ]
    return sequences


def modality(prompt: Prompt) -> str:
    """ "audio" or "vision" for a prompt with media (of one kind), "text" for others."""
    if not prompt.media:
        return "text"
    return "audio" if isinstance(prompt.media[0].features, AudioFeatures) else "vision"


def placeholders_of(config: ModelConfig) -> set[int]:
    """Ids of tokens whose rows are soft tokens."""
    special = config.special
    return {token for token in (special.image, special.audio, special.video) if token is not None}


def _encode(model: Gemma4, features: AudioFeatures | ImageFeatures) -> np.ndarray:
    soft_tokens: np.ndarray = (
        model.encode_audio(features) if isinstance(features, AudioFeatures) else model.encode_image(features)
    )
    return soft_tokens
