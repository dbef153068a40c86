"""What is no speech: music and noise."""

from __future__ import annotations

import numpy as np

import music
from cellmd.transcribe.pauses import RATE_HZ

SOUNDS = ["chords", "fast chords", "organ", "melody", "drums", "fast drums", "band", "strings"]
NOISES = ["nothing", "silence", "hum", "hiss", "noise", "deep noise", "noise in syllables", "click", "clicks", "steps"]


def heard(what: str, seconds: float = 10.0) -> np.ndarray:
    """Music and noise, loud."""
    rng = np.random.default_rng(0)
    t = np.arange(int(seconds * RATE_HZ)) / RATE_HZ
    noise = rng.standard_normal(len(t))
    if what in SOUNDS:
        return music.SOUNDS[what](seconds, rng)
    spectrum = np.fft.rfft(noise) / np.sqrt(1 + np.arange(len(t) // 2 + 1))
    beats = [np.where((t * 2) % 1 < width, 1.0, 0.0) for width in (0.01, 0.08)]
    return {
        "nothing": t[:0],
        "silence": 0 * t,
        "hum": 0.1 * (np.sin(2 * np.pi * 50 * t) + 0.5 * np.sin(2 * np.pi * 150 * t)),
        "hiss": 1e-3 * noise,
        "noise": 0.1 * noise,
        "deep noise": 8 * np.fft.irfft(spectrum, len(t)),
        "noise in syllables": 0.1 * noise * (0.55 + 0.45 * np.sin(2 * np.pi * 4 * t)),
        "click": np.where((t > 2) & (t < 2.01), 0.9, 0.0),
        "clicks": 0.5 * beats[0],
        "steps": 0.3 * noise * beats[1],
    }[what]
