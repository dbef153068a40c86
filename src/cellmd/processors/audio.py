"""Sound to log-mel frames.

    frame t covers samples t * hop - frame_length / 2 .. t * hop + frame_length / 2 (zeros before the sound's start)
    log_mel[t] = log(|rfft(frame * hann)| @ mel_filters + floor)

The filters are triangles between points evenly spaced on the HTK mel scale, m = 2595 log10(1 + f / 700). A frame is
valid if every sample up to one past its end is sound, and only valid frames are returned. Source of the rule:
transformers, `models/gemma4/feature_extraction_gemma4.py`.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from cellmd.errors import MediaDecodeError, MediaLimitError
from cellmd.processors.config import AudioFrontEnd
from cellmd.processors.features import AudioFeatures

if TYPE_CHECKING:
    from numpy.typing import NDArray


def audio_features(waveform: NDArray[np.float32], config: AudioFrontEnd, name: str = "<array>") -> AudioFeatures:
    """Log-mel frames of one piece of sound.

    waveform: float32 (n,), mono at config.sample_rate_hz. Raises MediaLimitError above config.max_seconds (split first:
    `split_audio`) and MediaDecodeError below one frame; both call the sound by `name`.
    """
    seconds = len(waveform) / config.sample_rate_hz
    if len(waveform) > config.max_samples:
        raise MediaLimitError(
            f"{name}: {seconds:.2f} s of sound; the audio tower takes {config.max_seconds:g} s at once, "
            "so split it with cellmd.processors.audio.split_audio"
        )
    if len(waveform) < config.min_samples:
        raise MediaDecodeError(
            f"{name}: {len(waveform)} samples ({seconds:.4f} s) of sound are too short to hear; "
            f"at least {config.min_samples} are needed"
        )
    log_mel = _log_mel(waveform, config)
    n_soft_tokens = (len(log_mel) + 3) // 4  # two convolutions of stride 2, each rounding up
    return AudioFeatures(log_mel=log_mel, n_soft_tokens=n_soft_tokens, duration_s=seconds)


def split_audio(waveform: NDArray[np.float32], config: AudioFrontEnd) -> list[NDArray[np.float32]]:
    """A sound of any length as pieces of at most config.max_seconds, in order.

    What is left over at the end and too short for one frame (a hundredth of a second) is dropped.
    """
    starts = range(0, max(len(waveform), 1), config.max_samples)
    pieces = [waveform[start : start + config.max_samples] for start in starts]
    if len(pieces) > 1 and len(pieces[-1]) < config.min_samples:
        del pieces[-1]
    return pieces


def _log_mel(waveform: NDArray[np.float32], config: AudioFrontEnd) -> NDArray[np.float32]:
    """(n_frames, n_mels). Single precision up to the magnitudes, double from the filters on, as in the reference."""
    padded = np.concatenate([np.zeros(config.frame_length // 2, np.float32), waveform])
    windows = np.lib.stride_tricks.sliding_window_view(padded, config.frame_length + 1)[:: config.hop_length]
    frames = windows[:, :-1] * _hann(config.frame_length)
    magnitudes = np.abs(np.fft.rfft(frames, n=config.fft_length, axis=-1))
    mel = magnitudes @ _mel_filters(config) + config.mel_floor
    return np.log(mel).astype(np.float32)


@lru_cache(maxsize=4)
def _hann(length: int) -> NDArray[np.float32]:
    """The periodic Hann window."""
    turns = np.arange(length, dtype=np.float64) / length
    return (0.5 - 0.5 * np.cos(2.0 * np.pi * turns)).astype(np.float32)


@lru_cache(maxsize=4)
def _mel_filters(config: AudioFrontEnd) -> NDArray[np.float64]:
    """(fft_length / 2 + 1, n_mels): filter j rises from corner j to 1 at corner j + 1 and falls to corner j + 2."""
    mel_low, mel_high = (2595.0 * np.log10(1.0 + hz / 700.0) for hz in (config.min_hz, config.max_hz))
    corners = 700.0 * (10.0 ** (np.linspace(mel_low, mel_high, config.n_mels + 2) / 2595.0) - 1.0)
    bins = np.linspace(0.0, config.sample_rate_hz // 2, config.fft_length // 2 + 1)[:, None]
    widths = np.diff(corners)
    rising = (bins - corners[:-2]) / widths[:-1]
    falling = (corners[2:] - bins) / widths[1:]
    return np.maximum(0.0, np.minimum(rising, falling))
