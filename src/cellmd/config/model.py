"""A whole model, from the content of its config.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cellmd.config.decoder import text_config
from cellmd.config.facts import AudioConfig, SpecialTokens, TextConfig, VisionConfig
from cellmd.config.gemma3 import gemma3_text_config
from cellmd.config.keys import refuse, section
from cellmd.config.towers import audio_config, special_tokens, vision_config
from cellmd.errors import ArgumentError, UnsupportedModelError


@dataclass(frozen=True)
class ModelConfig:
    text: TextConfig
    vision: VisionConfig | None
    audio: AudioConfig | None
    special: SpecialTokens

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> ModelConfig:
        """Read a checkpoint's config.json: any JSON object, also a hostile one.

        Raises UnsupportedModelError naming what is not supported, ArgumentError naming the key that is missing or
        impossible.
        """
        architectures = config.get("architectures") or [None]
        architecture = architectures[0] if isinstance(architectures, list | tuple) else architectures
        model_type = config.get("model_type")
        if architecture == "Gemma4ForConditionalGeneration" or (architecture is None and model_type == "gemma4"):
            refuse(config.get("tie_word_embeddings") is False, "an output head of its own (tie_word_embeddings false)")
            vision, audio = section(config, "vision_config"), section(config, "audio_config")
            text = section(config, "text_config")
            if not text:
                raise ArgumentError("config key 'text_config' is missing")
            return cls(
                text=text_config(text),
                vision=vision_config(vision) if vision else None,
                audio=audio_config(audio) if audio else None,
                special=special_tokens(config, bool(vision), bool(audio)),
            )
        if architecture == "Gemma4ForCausalLM" or (architecture is None and model_type == "gemma4_text"):
            return cls(text=text_config(config), vision=None, audio=None, special=special_tokens({}, False, False))
        if architecture == "Gemma3ForCausalLM" or (architecture is None and model_type == "gemma3_text"):
            return cls(
                text=gemma3_text_config(config), vision=None, audio=None, special=special_tokens({}, False, False)
            )
        raise UnsupportedModelError(
            f"architecture {architecture or model_type!r} is not supported; cellmd runs "
            "Gemma4ForConditionalGeneration, Gemma4ForCausalLM and Gemma3ForCausalLM"
        )
