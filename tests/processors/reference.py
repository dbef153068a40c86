"""transformers' Gemma 4 processor as the tests need it: token ids of a conversation with its media.

Its film processor needs torchvision, of which a prompt takes two things alone: which frames are sampled, and how many
soft tokens each gives. Both rules lie in modules that do without it, and are called here in its stead.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from processors.conversations import Case


class _Films:
    """The part of Gemma4VideoProcessor that prompts depend on."""

    max_soft_tokens = 70

    def __call__(self, videos: list[Any], video_metadata: list[Any], **_: Any) -> dict[str, Any]:
        from transformers.models.gemma4.processing_gemma4 import get_aspect_ratio_preserving_size
        from transformers.video_utils import default_sample_indices_fn

        counts = []
        for frames, metadata in zip(videos, video_metadata, strict=True):
            metadata.frames_indices = default_sample_indices_fn(metadata, num_frames=32)
            height, width = get_aspect_ratio_preserving_size(frames.shape[1], frames.shape[2], 16, 70 * 9, 3)
            counts.append(height * width // 48**2)
        return {"num_soft_tokens_per_video": counts, "video_metadata": video_metadata}


def load_processor(folder: Path, template: str) -> Any:
    """Gemma4Processor with the tokenizer of a folder (tokenizer.json, tokenizer_config.json) and a chat template."""
    from transformers import AutoTokenizer, Gemma4Processor
    from transformers.models.gemma4.feature_extraction_gemma4 import Gemma4AudioFeatureExtractor
    from transformers.models.gemma4.image_processing_pil_gemma4 import Gemma4ImageProcessorPil

    class Reference(Gemma4Processor):
        def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> None:
            """`_Films` is no Gemma4VideoProcessor, which cannot be imported without torchvision."""

    return Reference(
        Gemma4AudioFeatureExtractor(),
        Gemma4ImageProcessorPil(),
        AutoTokenizer.from_pretrained(folder),
        _Films(),
        chat_template=template,
    )


def token_ids(processor: Any, case: Case) -> list[int]:
    """The prompt of a conversation, as `processor.apply_chat_template` and then `processor` make it."""
    from transformers.video_utils import VideoMetadata

    rendered = processor.apply_chat_template(
        copy.deepcopy(case.messages),
        tools=case.tools,
        enable_thinking=case.thinking,
        add_generation_prompt=True,
        tokenize=False,
    )
    media: dict[str, Any] = {}
    if case.of_kind("image"):
        media["images"] = [Image.fromarray(pixels) for pixels in case.of_kind("image")]
    if case.of_kind("audio"):
        media["audio"] = case.of_kind("audio")
    if case.of_kind("video"):
        media["videos"] = [frames for frames, _ in case.of_kind("video")]
        media["video_metadata"] = [
            VideoMetadata(total_num_frames=len(frames), fps=fps) for frames, fps in case.of_kind("video")
        ]
    ids = processor(text=rendered, add_special_tokens=False, **media)["input_ids"][0]
    return [int(token_id) for token_id in np.asarray(ids)]


def sanitized_ids(processor: Any, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None) -> list[int]:
    """A text-only conversation in which special tokens written by users are made ordinary text."""
    ids = processor.tokenizer.apply_chat_template(
        copy.deepcopy(messages),
        tools=tools,
        chat_template=processor.chat_template,
        add_generation_prompt=True,
        tokenize=True,
        return_dict=False,
        sanitize_control_tokens=True,
    )
    return [int(token_id) for token_id in ids]
