"""The small files of a test checkpoint: tokenizer of 512 tokens, E2B's chat template, sampling, processor settings.

`checkpoints.make_checkpoint` writes them beside the weights; all names here can be imported from `checkpoints` too.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

DATA = Path(__file__).parent / "data"
VOCAB_SIZE = 512

MEDIA_TOKENS = {
    "boi_token_id": 494,
    "boa_token_id": 495,
    "image_token_id": 496,
    "audio_token_id": 497,
    "eoi_token_id": 498,
    "eoa_token_index": 499,
    "video_token_id": 500,
}

ASSET_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "generation_config.json",
    "processor_config.json",
)

SPECIAL_TOKENS = {
    0: "<pad>",
    1: "<eos>",
    2: "<bos>",
    3: "<unk>",
    4: "<mask>",
    46: "<|tool>",
    47: "<tool|>",
    48: "<|tool_call>",
    49: "<tool_call|>",
    50: "<|tool_response>",
    51: "<tool_response|>",
    52: '<|"|>',
    98: "<|think|>",
    100: "<|channel>",
    101: "<channel|>",
    105: "<|turn>",
    106: "<turn|>",
    MEDIA_TOKENS["boi_token_id"]: "<|image>",
    MEDIA_TOKENS["boa_token_id"]: "<|audio>",
    MEDIA_TOKENS["image_token_id"]: "<|image|>",
    MEDIA_TOKENS["audio_token_id"]: "<|audio|>",
    MEDIA_TOKENS["eoi_token_id"]: "<image|>",
    MEDIA_TOKENS["eoa_token_index"]: "<audio|>",
    MEDIA_TOKENS["video_token_id"]: "<|video|>",
}
FIRST_BYTE_TOKEN = 238
WORDS = (
    "the and you that model user what is this sound picture describe transcribe say hello world system seven one two"
)


def small_tokenizer() -> dict[str, Any]:
    """The content of a tokenizer.json of 512 tokens with the published pipeline: spaces become U+2581, then BPE with
    byte fallback. Text specials and byte tokens have their published ids, media tokens those of MEDIA_TOKENS."""
    tokens: dict[int, str] = dict(SPECIAL_TOKENS)
    tokens.update({FIRST_BYTE_TOKEN + byte: f"<0x{byte:02X}>" for byte in range(256)})
    alphabet = ["\n", "▁", *(chr(code) for code in range(33, 127))]
    pieces, merges = list(alphabet), []
    free = [i for i in range(VOCAB_SIZE) if i not in tokens]
    for word in WORDS.split():
        piece = "▁"
        for letter in word:
            merges.append([piece, letter])
            piece += letter
            if piece not in pieces:
                pieces.append(piece)
    unique_merges = [list(pair) for pair in dict.fromkeys(map(tuple, merges))]
    tokens.update(zip(free, pieces, strict=False))
    tokens.update({i: f"<unused{i}>" for i in range(VOCAB_SIZE) if i not in tokens})
    known = set(tokens.values())
    added = [
        {"id": i, "content": text, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
        | {"special": True}
        for i, text in sorted(SPECIAL_TOKENS.items())
    ]
    bos = {"SpecialToken": {"id": "<bos>", "type_id": 0}}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"String": " "},
            "behavior": "MergedWithPrevious",
            "invert": False,
        },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [bos, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [
                bos,
                {"Sequence": {"id": "A", "type_id": 0}},
                {"SpecialToken": {"id": "<bos>", "type_id": 1}},
                {"Sequence": {"id": "B", "type_id": 1}},
            ],
            "special_tokens": {"<bos>": {"id": "<bos>", "ids": [2], "tokens": ["<bos>"]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": {text: i for i, text in sorted(tokens.items())},
            "merges": [pair for pair in unique_merges if pair[0] in known and "".join(pair) in known],
        },
    }


def write_assets(folder: Path, config: Mapping[str, Any]) -> None:
    """The small tokenizer, E2B's chat template, its sampling defaults, and processors that fit the config's vision."""
    write_json(folder / "tokenizer.json", small_tokenizer())
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "GemmaTokenizer",
            "bos_token": "<bos>",
            "eos_token": "<eos>",
            "unk_token": "<unk>",
            "pad_token": "<pad>",
            "mask_token": "<mask>",
            "padding_side": "left",
            "model_max_length": 8192,
            "boi_token": "<|image>",
            "eoi_token": "<image|>",
            "image_token": "<|image|>",
            "boa_token": "<|audio>",
            "eoa_token": "<audio|>",
            "audio_token": "<|audio|>",
        },
    )
    shutil.copy(DATA / "chat_template.jinja", folder / "chat_template.jinja")
    sampling = {"do_sample": True, "temperature": 1.0, "top_k": 64, "top_p": 0.95}
    tokens = {"bos_token_id": 2, "eos_token_id": [1, 106, 50], "pad_token_id": 0}
    write_json(folder / "generation_config.json", {**tokens, **sampling})
    write_json(folder / "processor_config.json", processor_config(config.get("vision_config") or {}))


def processor_config(vision: Mapping[str, Any]) -> dict[str, Any]:
    patches = {
        "do_convert_rgb": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.0, 0.0, 0.0],
        "image_std": [1.0, 1.0, 1.0],
        "patch_size": vision.get("patch_size", 16),
        "pooling_kernel_size": vision.get("pooling_kernel_size", 3),
        "resample": 3,
        "rescale_factor": 1 / 255,
    }
    return {
        "processor_class": "Gemma4Processor",
        "audio_ms_per_token": 40,
        "audio_seq_length": 750,
        "image_seq_length": 280,
        "feature_extractor": {
            "feature_extractor_type": "Gemma4AudioFeatureExtractor",
            "feature_size": 128,
            "sampling_rate": 16_000,
            "padding_value": 0.0,
            "padding_side": "right",
            "return_attention_mask": True,
            "frame_length": 320,
            "hop_length": 160,
            "fft_length": 512,
            "min_frequency": 0.0,
            "max_frequency": 8000.0,
            "preemphasis": 0.0,
            "preemphasis_htk_flavor": True,
            "fft_overdrive": False,
            "dither": 0.0,
            "input_scale_factor": 1.0,
            "mel_floor": 0.001,
            "per_bin_mean": None,
            "per_bin_stddev": None,
        },
        "image_processor": {
            "image_processor_type": "Gemma4ImageProcessor",
            "do_normalize": False,
            "image_seq_length": 280,
            "max_soft_tokens": 280,
            **patches,
        },
        "video_processor": {
            "video_processor_type": "Gemma4VideoProcessor",
            "do_normalize": True,
            "do_sample_frames": True,
            "max_soft_tokens": 70,
            "num_frames": 32,
            "return_metadata": False,
            **patches,
        },
    }


def write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")
