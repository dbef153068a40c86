"""The media front ends' settings, read from a checkpoint's processor_config.json or preprocessor_config.json.

Defaults are Gemma 4's. Keys that this release cannot honour (another resampling filter, normalised pixels,
pre-emphasised sound) are refused by name instead of being ignored: to the model, other features are noise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cellmd.errors import UnsupportedModelError

SOFT_TOKEN_BUDGETS = (70, 140, 280, 560, 1120)
_BICUBIC = 3


@dataclass(frozen=True)
class ImageFrontEnd:
    """Pictures: resized to at most max_soft_tokens * pooling^2 patches of patch_size x patch_size pixels."""

    patch_size: int = 16
    pooling: int = 3
    max_soft_tokens: int = 280
    rescale_factor: float = 1 / 255

    @property
    def side_multiple(self) -> int:
        """Pixels of which both sides of a resized picture are multiples."""
        return self.patch_size * self.pooling


@dataclass(frozen=True)
class VideoFrontEnd:
    """Films: n_frames frames, each a picture of its own (smaller) budget."""

    frame: ImageFrontEnd = field(default_factory=lambda: ImageFrontEnd(max_soft_tokens=70))
    n_frames: int = 32


@dataclass(frozen=True)
class AudioFrontEnd:
    """Sound: log-mel frames of frame_length samples every hop_length samples. Frequencies in hertz."""

    sample_rate_hz: int = 16_000
    n_mels: int = 128
    frame_length: int = 320
    hop_length: int = 160
    fft_length: int = 512
    min_hz: float = 0.0
    max_hz: float = 8_000.0
    mel_floor: float = 1e-3
    max_seconds: float = 30.0

    @property
    def max_samples(self) -> int:
        """Samples of the longest piece of sound that the audio tower takes at once."""
        return int(self.max_seconds * self.sample_rate_hz)

    @property
    def min_samples(self) -> int:
        """Samples of the shortest sound that fills one frame."""
        return self.frame_length // 2 + 1


@dataclass(frozen=True)
class ProcessorConfig:
    image: ImageFrontEnd = field(default_factory=ImageFrontEnd)
    video: VideoFrontEnd = field(default_factory=VideoFrontEnd)
    audio: AudioFrontEnd = field(default_factory=AudioFrontEnd)

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> ProcessorConfig:
        """Read processor_config.json (a section for each front end) or preprocessor_config.json (one flat object).

        Missing keys take Gemma 4's values. Raises UnsupportedModelError naming a setting that is not supported.
        """
        image = _section(config, "image_processor", config)
        audio = _section(config, "feature_extractor", config)
        video = _section(config, "video_processor", {})
        max_seconds = _number(config, "audio_seq_length", 750) * _number(config, "audio_ms_per_token", 40) / 1000
        return cls(image=_image(image, 280), video=_video(video), audio=_audio(audio, max_seconds))


def _section(config: Mapping[str, Any], key: str, otherwise: Mapping[str, Any]) -> Mapping[str, Any]:
    section = config.get(key)
    return section if isinstance(section, Mapping) else otherwise


def _image(section: Mapping[str, Any], budget: int) -> ImageFrontEnd:
    for key in ("do_resize", "do_rescale", "do_convert_rgb"):
        _refuse(section.get(key, True) is not True, key, section.get(key))
    _refuse(section.get("resample", _BICUBIC) != _BICUBIC, "resample", section.get("resample"))
    if section.get("do_normalize"):
        mean, deviation = section.get("image_mean") or [0.0], section.get("image_std") or [1.0]
        _refuse(any(value != 0.0 for value in mean), "image_mean", mean)
        _refuse(any(value != 1.0 for value in deviation), "image_std", deviation)
    max_soft_tokens = _positive(section, "max_soft_tokens", budget)
    _refuse(max_soft_tokens not in SOFT_TOKEN_BUDGETS, "max_soft_tokens", max_soft_tokens)
    return ImageFrontEnd(
        patch_size=_positive(section, "patch_size", 16),
        pooling=_positive(section, "pooling_kernel_size", 3),
        max_soft_tokens=max_soft_tokens,
        rescale_factor=_number(section, "rescale_factor", 1 / 255),
    )


def _video(section: Mapping[str, Any]) -> VideoFrontEnd:
    return VideoFrontEnd(frame=_image(section, 70), n_frames=_positive(section, "num_frames", 32))


def _audio(section: Mapping[str, Any], max_seconds: float) -> AudioFrontEnd:
    for key, neutral in (("preemphasis", 0.0), ("dither", 0.0), ("input_scale_factor", 1.0), ("fft_overdrive", False)):
        _refuse(section.get(key, neutral) not in (neutral, None), key, section.get(key))
    for key in ("per_bin_mean", "per_bin_stddev"):
        _refuse(section.get(key) is not None, key, section.get(key))
    rate = _positive(section, "sampling_rate", 16_000)
    frame_length = _positive(section, "frame_length", round(rate * _number(section, "frame_length_ms", 20.0) / 1000))
    return AudioFrontEnd(
        sample_rate_hz=rate,
        n_mels=_positive(section, "feature_size", 128),
        frame_length=frame_length,
        hop_length=_positive(section, "hop_length", round(rate * _number(section, "hop_length_ms", 10.0) / 1000)),
        fft_length=_positive(section, "fft_length", 1 << (frame_length - 1).bit_length()),
        min_hz=_number(section, "min_frequency", 0.0),
        max_hz=_number(section, "max_frequency", 8_000.0),
        mel_floor=_number(section, "mel_floor", 1e-3),
        max_seconds=max_seconds,
    )


def _refuse(condition: bool, key: str, value: object) -> None:
    if condition:
        raise UnsupportedModelError(f"processor config: {key} {value!r} is not supported")


def _positive(section: Mapping[str, Any], key: str, default: int) -> int:
    value = section.get(key)
    value = default if value is None else value
    _refuse(isinstance(value, bool) or not isinstance(value, int) or value <= 0, key, value)
    return int(value)


def _number(section: Mapping[str, Any], key: str, default: float) -> float:
    value = section.get(key)
    value = default if value is None else value
    _refuse(isinstance(value, bool) or not isinstance(value, int | float), key, value)
    return float(value)
