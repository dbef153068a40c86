"""Speech, silence and files of them, made of the recording that comes with cellmd."""

from __future__ import annotations

import functools
import io
import wave
from importlib.resources import files

import numpy as np

from cellmd.processors.decode_audio import decode_audio
from cellmd.transcribe.pauses import RATE_HZ


@functools.cache
def sentence() -> np.ndarray:
    """What somebody says in the recording that comes with cellmd, without the pauses around it."""
    whole = decode_audio((files("cellmd.demo") / "media" / "sentence.wav").read_bytes())
    loud = np.flatnonzero(np.abs(whole) > 0.05)
    return whole[loud[0] : loud[-1]]


def voice(seconds: float, seed: int = 0) -> np.ndarray:
    """Somebody who speaks without a pause."""
    n = int(seconds * RATE_HZ)
    begun = np.tile(sentence(), 2 + n // len(sentence()))[seed * 4000 % len(sentence()) :]
    return begun[:n]


def silence(seconds: float) -> np.ndarray:
    return np.zeros(int(seconds * RATE_HZ), np.float32)


def wav(waveform: np.ndarray) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as sound:
        sound.setparams((1, 2, RATE_HZ, 0, "NONE", ""))
        sound.writeframes((waveform * 32767).astype("<i2").tobytes())
    return file.getvalue()


def recording() -> np.ndarray:
    """Two pauses, one passage that is longer than the model hears at once, silence at both ends."""
    parts = [silence(2), voice(3), silence(4), voice(32, 1), silence(3), voice(2, 2), silence(5)]
    return np.concatenate(parts)
