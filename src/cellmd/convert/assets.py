"""The files beside the weights: tokenizer, chat template, sampling defaults, processors; under one name each.

Older and newer checkpoints keep the same things in different files. What comes out has the newer form:
`tokenizer.json`, `chat_template.jinja`, `generation_config.json`, and `processor_config.json` with the sections
`feature_extractor`, `image_processor` and `video_processor`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cellmd.errors import CheckpointError, UnsupportedModelError
from cellmd.vocabulary import VOCABULARY_ASSET, compile_vocabulary

MAX_FILE_BYTES = 256 * 2**20

_AUDIO_KEYS = frozenset(
    {
        "feature_extractor_type",
        "feature_size",
        "sampling_rate",
        "padding_value",
        "padding_side",
        "return_attention_mask",
        "frame_length",
        "hop_length",
        "fft_length",
        "min_frequency",
        "max_frequency",
        "preemphasis",
        "preemphasis_htk_flavor",
        "fft_overdrive",
        "dither",
        "input_scale_factor",
        "mel_floor",
        "per_bin_mean",
        "per_bin_stddev",
    }
)


def find_assets(folder: Path) -> dict[str, bytes]:
    """Contents by name, JSON in a normal form, the tokenizer as it is. Raises CheckpointError."""
    if not (folder / "tokenizer.json").exists():
        raise CheckpointError(f"{folder}: tokenizer.json is missing; cellmd reads no other form of tokenizer")
    read_json(folder / "tokenizer.json")  # it must at least be JSON
    assets = {"tokenizer.json": _read(folder / "tokenizer.json")}
    template = _chat_template(folder)
    if template is not None:
        assets["chat_template.jinja"] = template.encode()
    if (folder / "generation_config.json").exists():
        assets["generation_config.json"] = _json_bytes(read_json(folder / "generation_config.json"))
    processors = _processors(folder)
    if processors:
        assets["processor_config.json"] = _json_bytes(processors)
    return assets


def stored_assets(assets: Mapping[str, bytes]) -> dict[str, bytes]:
    """What a file holds of a checkpoint's assets: the tokenizer compiled, or as it is if it cannot be compiled.

    Raises CheckpointError if tokenizer.json is malformed.
    """
    try:
        table = compile_vocabulary(assets["tokenizer.json"])
    except UnsupportedModelError:  # the file then runs through the library
        return dict(assets)
    return {VOCABULARY_ASSET: table, **{name: assets[name] for name in assets if name != "tokenizer.json"}}


def read_json(path: Path) -> dict[str, Any]:
    """A file that holds one JSON object. Raises CheckpointError saying what is wrong with it."""
    try:
        content = json.loads(_read(path).decode("utf-8"), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: a JSON object was expected, found {type(content).__name__}")
    return content


def _read(path: Path) -> bytes:
    try:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise CheckpointError(f"{path}: {size} bytes, more than the {MAX_FILE_BYTES} that such a file may have")
        return path.read_bytes()
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: missing; is this the folder of a checkpoint?") from error
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error


def _no_constant(text: str) -> None:
    raise ValueError(f"{text} is no JSON")


def _json_bytes(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False).encode()


def _chat_template(folder: Path) -> str | None:
    """chat_template.jinja, else what chat_template.json or tokenizer_config.json say; None for a base model."""
    if (folder / "chat_template.jinja").exists():
        try:
            return _read(folder / "chat_template.jinja").decode("utf-8")
        except UnicodeDecodeError as error:
            raise CheckpointError(f"{folder / 'chat_template.jinja'}: not UTF-8 text") from error
    for name in ("chat_template.json", "tokenizer_config.json"):
        path = folder / name
        template = read_json(path).get("chat_template") if path.exists() else None
        if isinstance(template, list):  # [{"name": "default", "template": ...}, {"name": "tool_use", ...}]
            named = {each.get("name"): each.get("template") for each in template if isinstance(each, dict)}
            template = named.get("default", next(iter(named.values()), None))
        if template is not None:
            if not isinstance(template, str):
                raise CheckpointError(f"{path}: chat_template is neither text nor a list of named texts")
            return template
    return None


def _processors(folder: Path) -> dict[str, Any]:
    """processor_config.json, with the sections it lacks taken from the separate files of older checkpoints."""
    path = folder / "processor_config.json"
    processors = read_json(path) if path.exists() else {}
    if (folder / "preprocessor_config.json").exists():
        flat = read_json(folder / "preprocessor_config.json")
        audio = {key: value for key, value in flat.items() if key in _AUDIO_KEYS}
        image = {key: value for key, value in flat.items() if key not in _AUDIO_KEYS and key != "processor_class"}
        if "feature_size" in audio:
            processors.setdefault("feature_extractor", audio)
        if "patch_size" in image or "image_processor_type" in image:
            processors.setdefault("image_processor", image)
    if (folder / "video_preprocessor_config.json").exists():
        processors.setdefault("video_processor", read_json(folder / "video_preprocessor_config.json"))
    return processors
