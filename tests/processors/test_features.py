"""Patches, log-mel frames and film features: bounds, shapes, recorded goldens, and the live reference."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cellmd.errors import ArgumentError, MediaDecodeError, MediaLimitError, UnsupportedModelError
from cellmd.processors.audio import audio_features, split_audio
from cellmd.processors.config import SOFT_TOKEN_BUDGETS, AudioFrontEnd, ImageFrontEnd, ProcessorConfig, VideoFrontEnd
from cellmd.processors.image import image_features, target_size, with_budget
from cellmd.processors.video import timestamp, video_features
from processors.conversations import film, picture, sound
from processors.goldens import EVERY, FOLDER, PICTURES, SOUND_LENGTHS, smooth_picture

AUDIO = AudioFrontEnd()
sides = st.integers(1, 4_000)
budgets = st.sampled_from(SOFT_TOKEN_BUDGETS)


# ---- pictures -------------------------------------------------------------------------------------------------------


@given(sides, sides, budgets)
def test_target_size_keeps_the_budget_and_the_shape(height: int, width: int, budget: int) -> None:
    config = with_budget(ImageFrontEnd(), budget)
    rows, columns = (side // config.side_multiple for side in target_size(height, width, config))
    assert (rows * config.side_multiple, columns * config.side_multiple) == target_size(height, width, config)
    assert 1 <= rows * columns <= budget
    ideal = math.sqrt(budget * height / width)
    if 1 <= ideal <= budget:  # neither side would vanish: each is its ideal rounded down
        assert rows in (math.floor(ideal), math.floor(ideal - 1e-9))


@pytest.mark.parametrize("name", PICTURES)
def test_patches_are_the_recorded_ones(name: str) -> None:
    height, width, budget = PICTURES[name]
    features = image_features(smooth_picture(height, width), with_budget(ImageFrontEnd(), budget))
    with np.load(FOLDER / "patches.npz") as goldens:
        expected = goldens[name].astype(np.float64) * (1 / 255)
    np.testing.assert_array_equal(features.patches[::EVERY], expected.astype(np.float32))
    assert features.patches.shape == (features.grid_height * features.grid_width, 768)
    assert features.n_soft_tokens * 9 == len(features.patches)


def test_layout_of_patches() -> None:
    """A picture of its target size is cut as it is: row-major patches, each (row, column, channel)."""
    pixels = picture(0, 48, 96)
    features = image_features(pixels, ImageFrontEnd(max_soft_tokens=2))
    assert (features.grid_height, features.grid_width) == (3, 6)
    patch = features.patches[6 + 2].reshape(16, 16, 3)
    np.testing.assert_array_equal(patch, (pixels[16:32, 32:48] * (1 / 255)).astype(np.float32))


@pytest.mark.parametrize("budget", [0, 71, 2_240, -70])
def test_unknown_budgets(budget: int) -> None:
    with pytest.raises(ArgumentError, match="70, 140, 280, 560, 1120"):
        with_budget(ImageFrontEnd(), budget)


@pytest.mark.reference
@settings(max_examples=40, deadline=None)
@given(st.integers(1, 700), st.integers(1, 700), budgets)
def test_patches_are_the_references(height: int, width: int, budget: int) -> None:
    from transformers.models.gemma4.image_processing_pil_gemma4 import Gemma4ImageProcessorPil

    pixels = picture(height * width, height, width)
    output = Gemma4ImageProcessorPil()(Image.fromarray(pixels), max_soft_tokens=budget)
    features = image_features(pixels, with_budget(ImageFrontEnd(), budget))
    n = len(features.patches)
    np.testing.assert_array_equal(features.patches, np.asarray(output["pixel_values"][0])[:n])
    assert features.n_soft_tokens == output["num_soft_tokens_per_image"][0]
    positions = np.asarray(output["image_position_ids"][0])
    assert (positions[n:] == -1).all()
    np.testing.assert_array_equal(positions[:n, 0], np.arange(n) % features.grid_width)
    np.testing.assert_array_equal(positions[:n, 1], np.arange(n) // features.grid_width)


# ---- sound ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", SOUND_LENGTHS)
def test_log_mel_is_the_recorded_one(n: int) -> None:
    """Single precision FFTs of 512 points: magnitudes err by about 1e-6 of the frame's largest; the floor of 1e-3 under
    the logarithm bounds what that does to weak bands."""
    features = audio_features(sound(n, n / 16_000), AUDIO)
    with np.load(FOLDER / "log_mel.npz") as goldens:
        np.testing.assert_allclose(features.log_mel, goldens[str(n)], atol=2e-4)
    assert features.log_mel.dtype == np.float32


@given(st.integers(161, 4_000))
def test_frames_and_soft_tokens_of_a_length(n: int) -> None:
    features = audio_features(np.zeros(n, np.float32), AUDIO)
    starts = [t for t in range(0, n, 160) if t + 160 < n]  # the sample after each frame's end is sound
    assert features.log_mel.shape == (len(starts), 128)
    assert features.n_soft_tokens == math.ceil(math.ceil(len(starts) / 2) / 2)
    np.testing.assert_allclose(features.log_mel, np.log(1e-3), atol=1e-6)


def test_a_frame_sees_its_own_samples_alone() -> None:
    waveform = sound(1, 0.5)
    changed = waveform.copy()
    changed[3_200:3_360] += 0.1
    differs = (audio_features(waveform, AUDIO).log_mel != audio_features(changed, AUDIO).log_mel).any(axis=1)
    assert set(np.flatnonzero(differs)) == {20, 21}  # frame t covers 160 t - 160 .. 160 t + 159


def test_thirty_seconds_and_no_more() -> None:
    longest = np.zeros(480_000, np.float32)
    assert audio_features(longest, AUDIO).n_soft_tokens == 750
    with pytest.raises(MediaLimitError, match=r"long\.wav: 30\.00 s .*split_audio"):
        audio_features(np.zeros(480_001, np.float32), AUDIO, "long.wav")
    with pytest.raises(MediaDecodeError, match=r"click\.wav: 160 samples"):
        audio_features(np.zeros(160, np.float32), AUDIO, "click.wav")


@given(st.integers(161, 2_000_000))
def test_split(n: int) -> None:
    waveform = np.broadcast_to(np.float32(0), n)
    pieces = split_audio(waveform, AUDIO)
    assert all(161 <= len(piece) <= 480_000 for piece in pieces)
    assert all(len(piece) == 480_000 for piece in pieces[:-1])
    assert 0 <= n - sum(map(len, pieces)) < 161


@pytest.mark.reference
@settings(max_examples=40, deadline=None)
@given(st.integers(161, 40_000) | st.integers(479_000, 480_000))
def test_log_mel_is_the_references(n: int) -> None:
    from transformers.models.gemma4.feature_extraction_gemma4 import Gemma4AudioFeatureExtractor

    waveform = sound(n, n / 16_000)
    output = Gemma4AudioFeatureExtractor()([waveform])
    mask = output["input_features_mask"][0]
    features = audio_features(waveform, AUDIO)
    np.testing.assert_array_equal(features.log_mel, output["input_features"][0][mask])
    for _ in range(2):  # the tower's subsampling of the mask
        mask = mask[::2]
    assert features.n_soft_tokens == mask.sum()


# ---- films ----------------------------------------------------------------------------------------------------------


def test_film_features() -> None:
    features = video_features(film(3, 40, 10.0), VideoFrontEnd(), n_frames=4)
    assert features.times_s == (0.0, 1.0, 2.0, 3.0)
    assert {frame.n_soft_tokens for frame in features.frames} == {66}
    assert len(video_features(film(3, 40, 10.0), VideoFrontEnd()).frames) == 32
    assert len(video_features(film(3, 40, 10.0), VideoFrontEnd(), fps=2.0).frames) == 8
    with pytest.raises(ArgumentError, match="exclude"):
        video_features(film(3, 40, 10.0), VideoFrontEnd(), n_frames=4, fps=2.0)
    with pytest.raises(ArgumentError, match="at least 1"):
        video_features(film(3, 40, 10.0), VideoFrontEnd(), n_frames=0)


@pytest.mark.parametrize(("seconds", "text"), [(0.0, "00:00"), (59.99, "00:59"), (60.0, "01:00"), (6_001.2, "100:01")])
def test_timestamps(seconds: float, text: str) -> None:
    assert timestamp(seconds) == text


# ---- settings -------------------------------------------------------------------------------------------------------


def test_defaults_are_gemma_4s() -> None:
    assert ProcessorConfig.from_dict({}) == ProcessorConfig()


def test_sections_and_flat_settings() -> None:
    nested = ProcessorConfig.from_dict(
        {
            "audio_seq_length": 500,
            "image_processor": {"max_soft_tokens": 560, "patch_size": 14, "pooling_kernel_size": 2},
            "video_processor": {"num_frames": 8, "do_normalize": True, "image_mean": [0.0] * 3, "image_std": [1.0] * 3},
            "feature_extractor": {"feature_size": 80, "frame_length_ms": 32.0, "mel_floor": 1e-5, "dither": 0.0},
        }
    )
    assert nested.image == ImageFrontEnd(patch_size=14, pooling=2, max_soft_tokens=560)
    assert nested.video.n_frames == 8
    assert nested.audio.n_mels == 80
    assert (nested.audio.frame_length, nested.audio.fft_length) == (512, 512)
    assert nested.audio.max_seconds == 20.0
    flat = ProcessorConfig.from_dict({"max_soft_tokens": 140, "feature_size": 64})
    assert (flat.image.max_soft_tokens, flat.video.frame.max_soft_tokens, flat.audio.n_mels) == (140, 70, 64)


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("image_processor", "resample", 2),
        ("image_processor", "do_resize", False),
        ("image_processor", "max_soft_tokens", 100),
        ("image_processor", "patch_size", "16"),
        ("image_processor", "patch_size", True),
        ("image_processor", "rescale_factor", "x"),
        ("feature_extractor", "preemphasis", 0.97),
        ("feature_extractor", "per_bin_mean", [0.0] * 128),
        ("feature_extractor", "hop_length", 0),
        ("video_processor", "num_frames", -1),
    ],
)
def test_what_is_not_supported_is_named(section: str, key: str, value: Any) -> None:
    with pytest.raises(UnsupportedModelError, match=key):
        ProcessorConfig.from_dict({section: {key: value}})
    with pytest.raises(UnsupportedModelError, match="image_std"):
        ProcessorConfig.from_dict({"image_processor": {"do_normalize": True, "image_std": [0.5] * 3}})
