"""Synthetic voices: flite and espeak-ng, called as libraries, one sentence at a time.

Both are installed with `apt install flite espeak-ng`; `CELLMD_DEMO_VOICES` may name a folder with their shared
libraries and `espeak-ng-data` instead. `rms` (flite) and every espeak-ng voice of `HELD_OUT_VARIANTS` or
`HELD_OUT_ACCENTS` speak in no training sentence.
"""

from __future__ import annotations

import ctypes
import os
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np

RATE = 16_000
FLITE = ("slt", "awb", "kal", "kal16")
HELD_OUT_FLITE = "rms"
ACCENTS = ("en-us", "en", "en-gb-scotland", "en-gb-x-rp", "en-us-nyc", "en-029")
HELD_OUT_ACCENTS = ("en-gb-x-gbcwmd",)
VARIANTS = (
    "", "f1", "f2", "f3", "f4", "f5", "m1", "m2", "m3", "m4", "m5", "m6", "m7", "klatt", "klatt2", "klatt3", "klatt5",
    "Alex", "Andrea", "Annie", "Denis", "Diogo", "Gene", "Henrique", "Hugo", "Jacky", "Lee", "Marco", "Mike", "adam",
    "anika", "antonio", "aunty", "belinda", "benjamin", "boris", "caleb", "david", "ed", "edward", "gustave", "iven",
    "john", "linda", "marcelo", "max", "michel", "norbert", "pablo", "paul", "quincy", "rob", "robert", "shelby",
    "steph", "travis", "victor", "zac",
)  # fmt: skip
HELD_OUT_VARIANTS = ("Alicia", "Michael", "pedro", "miguel")


@dataclass(frozen=True)
class Voice:
    """A speaker: `flite:slt` or `espeak:en-us+f3`, with tempo (1 = its own) and pitch (0 to 1, 0.5 = its own)."""

    name: str
    tempo: float = 1.0
    pitch: float = 0.5


def training_voice(rng: random.Random) -> Voice:
    """A voice for a training sentence: flite six times in ten."""
    tempo, pitch = rng.uniform(0.78, 1.3), rng.uniform(0.2, 0.8)
    if rng.random() < 0.62:
        return Voice("flite:" + rng.choices(FLITE, weights=(34, 34, 14, 18))[0], tempo, pitch)
    variant = rng.choice(VARIANTS)
    return Voice(f"espeak:{rng.choice(ACCENTS)}" + (f"+{variant}" if variant else ""), tempo, pitch)


def trained_voice_for_test(rng: random.Random) -> Voice:
    """A voice that was heard in training, as it is out of the box."""
    if rng.random() < 0.62:
        return Voice("flite:" + rng.choice(FLITE))
    variant = rng.choice(VARIANTS)
    return Voice(f"espeak:{rng.choice(ACCENTS)}" + (f"+{variant}" if variant else ""))


def unheard_voice_for_test(rng: random.Random) -> Voice:
    """flite's `rms`: no sentence of it was heard in training."""
    return Voice(f"flite:{HELD_OUT_FLITE}")


def unheard_espeak_for_test(rng: random.Random) -> Voice:
    return Voice(f"espeak:{rng.choice(HELD_OUT_ACCENTS)}+{rng.choice(HELD_OUT_VARIANTS)}")


class _Wave(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_char_p), ("rate", ctypes.c_int), ("length", ctypes.c_int), ("channels", ctypes.c_int),
        ("samples", ctypes.POINTER(ctypes.c_short)),
    )  # fmt: skip


class _FliteVoice(ctypes.Structure):
    _fields_ = (("name", ctypes.c_char_p), ("features", ctypes.c_void_p))


_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


_NOT_SOUNDS = frozenset(" \u02c8\u02cc\u02d0\u0361\u0329\u200d_-.:'")
# The characters that the grammar's words come to; 0 is the blank of the auxiliary loss.
SOUNDS = "abdefhijklmnopstuvwzæðŋɐɑɔəɚɛɜɡɪɹɾʃʊʌʒθᵻ"

_BASE_PITCH = {"slt": 170.0, "awb": 120.0, "rms": 100.0, "kal": 105.0, "kal16": 105.0}


class Speaker:
    """Both synthesisers, loaded once a process."""

    def __init__(self) -> None:
        folder = os.environ.get("CELLMD_DEMO_VOICES", "")
        self._folder = Path(folder) if folder else None
        self._flite = self._library("libflite.so.1")
        self._library("libflite_usenglish.so.1")
        self._library("libflite_cmulex.so.1")
        self._flite.flite_init()
        self._flite.flite_text_to_wave.restype = ctypes.POINTER(_Wave)
        self._flite.flite_text_to_wave.argtypes = [ctypes.c_char_p, ctypes.c_void_p]
        self._flite.flite_feat_set_float.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_float]
        self._flite.delete_wave.argtypes = [ctypes.c_void_p]
        self._voices: dict[str, ctypes._Pointer[_FliteVoice]] = {}
        self._espeak = self._library("libespeak-ng.so.1")
        data = str(self._folder.parent).encode() if self._folder else None
        self._espeak_rate = self._espeak.espeak_Initialize(2, 0, data, 0)
        pointer, number = ctypes.c_void_p, ctypes.c_uint
        self._espeak.espeak_Synth.argtypes = [
            pointer, ctypes.c_size_t, number, ctypes.c_int, number, number, pointer, pointer
        ]  # fmt: skip
        self._espeak.espeak_TextToPhonemes.restype = ctypes.c_char_p
        self._phonemes: dict[str, str] = {}
        self._pieces: list[np.ndarray] = []
        self._keep = _CALLBACK(self._collect)
        self._espeak.espeak_SetSynthCallback(self._keep)

    def phonemes(self, text: str) -> str:
        """The sounds of a sentence, a character each, as espeak-ng writes them for American English."""
        words = []
        for word in text.split():
            if word not in self._phonemes:
                self._espeak.espeak_SetVoiceByName(b"en-us")
                letters = ctypes.c_char_p(word.encode())
                found = self._espeak.espeak_TextToPhonemes(ctypes.byref(letters), 1, 2) or b""
                self._phonemes[word] = "".join(c for c in found.decode() if c not in _NOT_SOUNDS)
            words.append(self._phonemes[word])
        return "".join(words)

    def _library(self, name: str) -> ctypes.CDLL:
        path = self._folder / name if self._folder else name
        return ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)

    def _collect(self, samples: ctypes._Pointer[ctypes.c_short], length: int, _events: object) -> int:
        if samples and length > 0:
            self._pieces.append(np.ctypeslib.as_array(samples, (length,)).copy())
        return 0

    def say(self, text: str, voice: Voice) -> np.ndarray:
        """float32 in -1..1 at 16 kHz, scaled to a peak of 0.5."""
        engine, _, name = voice.name.partition(":")
        samples, rate = (self._say_flite if engine == "flite" else self._say_espeak)(text, name, voice)
        sound = resample(samples.astype(np.float32), rate, RATE)
        return sound * (0.5 / max(1.0, float(np.abs(sound).max())))

    def _say_flite(self, text: str, name: str, voice: Voice) -> tuple[np.ndarray, int]:
        if name not in self._voices:
            register = getattr(self._library(f"libflite_cmu_us_{name}.so.1"), f"register_cmu_us_{name}")
            register.restype, register.argtypes = ctypes.POINTER(_FliteVoice), [ctypes.c_char_p]
            self._voices[name] = register(None)
        handle = self._voices[name]
        features = handle.contents.features
        self._flite.flite_feat_set_float(features, b"duration_stretch", 1.0 / voice.tempo)
        pitch = _BASE_PITCH[name] * (0.8 + 0.4 * voice.pitch)
        self._flite.flite_feat_set_float(features, b"int_f0_target_mean", pitch)
        wave = self._flite.flite_text_to_wave(text.encode(), handle)
        found = wave.contents
        samples, rate = np.ctypeslib.as_array(found.samples, (found.length,)).copy(), found.rate
        self._flite.delete_wave(wave)
        return samples, rate

    def _say_espeak(self, text: str, name: str, voice: Voice) -> tuple[np.ndarray, int]:
        if self._espeak.espeak_SetVoiceByName(name.encode()) != 0:
            raise ValueError(f"espeak-ng has no voice {name!r}")
        self._espeak.espeak_SetParameter(1, round(165 * voice.tempo), 0)
        self._espeak.espeak_SetParameter(3, round(100 * voice.pitch), 0)
        self._pieces.clear()
        letters = text.encode() + b"\0"
        self._espeak.espeak_Synth(letters, len(letters), 0, 1, 0, 1, None, None)
        self._espeak.espeak_Synchronize()
        return np.concatenate(self._pieces), self._espeak_rate


def resample(samples: np.ndarray, rate: int, wanted: int) -> np.ndarray:
    """By way of the spectrum: exact for our short sounds, and needs only NumPy."""
    if rate == wanted:
        return samples
    length = round(len(samples) * wanted / rate)
    padded = 2 ** (len(samples) - 1).bit_length()
    spectrum = np.fft.rfft(samples, padded)
    out_length = padded * wanted // rate
    if padded * wanted % rate:
        places = np.arange(length) * (rate / wanted)
        cut = int(len(spectrum) * min(1.0, wanted / rate))
        spectrum[cut:] = 0
        return np.interp(places, np.arange(len(samples)), np.fft.irfft(spectrum, padded)[: len(samples)]).astype(
            np.float32
        )
    out = np.zeros(out_length // 2 + 1, np.complex128)
    keep = min(len(out), len(spectrum))
    out[:keep] = spectrum[:keep]
    return (np.fft.irfft(out, out_length)[:length] * (wanted / rate)).astype(np.float32)


def trimmed(sound: np.ndarray, before: float, after: float) -> np.ndarray:
    """Cut the silence at both ends down to so many seconds."""
    loud = np.flatnonzero(np.abs(sound) > 0.01)
    if len(loud) == 0:
        return sound
    start = max(0, loud[0] - int(before * RATE))
    return sound[start : loud[-1] + 1 + int(after * RATE)]
