"""Music from nothing but sines and noise: instruments, chords, drums, and all of them together."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

RATE_HZ = 16_000
SCALE = [261.6, 293.7, 329.6, 349.2, 392.0, 440.0, 493.9, 523.3]
CHORDS = [(261.6, 329.6, 392.0), (220.0, 261.6, 329.6), (174.6, 220.0, 261.6), (196.0, 246.9, 293.7)]

Generator = np.random.Generator


def times(seconds: float) -> np.ndarray:
    return np.arange(int(seconds * RATE_HZ)) / RATE_HZ


def note(hertz: float, seconds: float, decay: float, rng: Generator) -> np.ndarray:
    """A struck or (decay 0) held note with seven harmonics."""
    t = times(seconds)
    rising = np.minimum(1, 100 * t) * np.exp(-decay * t)
    return rising * sum(np.sin(2 * np.pi * hertz * k * t + 6 * rng.random()) / k**1.3 for k in range(1, 8))


def chords(seconds: float, rng: Generator, beat: float = 1.0, decay: float = 1.0) -> np.ndarray:
    def chord(notes: Sequence[float]) -> np.ndarray:
        return sum(note(hertz, beat, decay, rng) for hertz in notes) / len(notes)

    return 0.3 * np.concatenate([chord(CHORDS[i % 4]) for i in range(round(seconds / beat))])


def melody(seconds: float, rng: Generator, beat: float = 0.25) -> np.ndarray:
    notes = [note(SCALE[rng.integers(8)], beat, 4.0, rng) for _ in range(round(seconds / beat))]
    return 0.3 * np.concatenate(notes)


def drums(seconds: float, rng: Generator, beats_a_minute: float = 120.0) -> np.ndarray:
    """Bass drum, snare and cymbal in turn."""
    t, out = times(0.25), np.zeros(len(times(seconds + 1)))
    noise = rng.standard_normal(len(t))
    bass = np.sin(2 * np.pi * (50 + 80 * np.exp(-30 * t)) * t) * np.exp(-12 * t)
    snare = (0.6 * noise + 0.5 * np.sin(2 * np.pi * 180 * t)) * np.exp(-18 * t)
    cymbal = 0.4 * noise * np.exp(-60 * t)
    for i, begin in enumerate(np.arange(0, seconds, 30 / beats_a_minute)):
        place = int(begin * RATE_HZ)
        out[place : place + len(t)] += (bass, cymbal, snare, cymbal)[i % 4]
    return 0.4 * out[: len(times(seconds))]


def strings(seconds: float, rng: Generator) -> np.ndarray:
    """A long note with vibrato."""
    phase = 2 * np.pi * np.cumsum(440 * (1 + 0.01 * np.sin(2 * np.pi * 5.5 * times(seconds)))) / RATE_HZ
    return 0.2 * sum(np.sin(k * phase) / k for k in range(1, 10))


def band(seconds: float, rng: Generator) -> np.ndarray:
    parts = [chords(seconds, rng), drums(seconds, rng), melody(seconds, rng)]
    n = min(map(len, parts))
    return 0.6 * sum(part[:n] for part in parts)


SOUNDS: dict[str, Callable[[float, Generator], np.ndarray]] = {
    "chords": chords,
    "fast chords": lambda seconds, rng: chords(seconds, rng, 0.4, 3.0),
    "organ": lambda seconds, rng: chords(seconds, rng, 2.0, 0.0),
    "melody": melody,
    "drums": drums,
    "fast drums": lambda seconds, rng: drums(seconds, rng, 170.0),
    "band": band,
    "strings": strings,
}
