"""Sounds and films as files in memory, by way of PyAV."""

from __future__ import annotations

import io
from collections.abc import Sequence
from fractions import Fraction

import av
import numpy as np
from PIL import Image


def film_bytes(frames: Sequence[Image.Image], fps: int) -> bytes:
    """An mp4 (H.264)."""
    store = io.BytesIO()
    with av.open(store, "w", format="mp4") as box:
        stream = box.add_stream("libx264", rate=fps, options={"crf": "20", "preset": "medium"})
        stream.width, stream.height = frames[0].size
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            box.mux(stream.encode(av.VideoFrame.from_image(frame)))
        box.mux(stream.encode())
    return store.getvalue()


def film_frames(content: bytes) -> tuple[list[Image.Image], float]:
    """All frames, and how many a second."""
    with av.open(io.BytesIO(content)) as box:
        stream = box.streams.video[0]
        rate = float(stream.average_rate or 24)
        return [frame.to_image() for frame in box.decode(stream)], rate


def sound_bytes(samples: np.ndarray, rate: int = 16_000, form: str = "flac") -> bytes:
    """Mono sound, 16 bits, as `flac` or `wav`."""
    store = io.BytesIO()
    codec = {"flac": "flac", "wav": "pcm_s16le"}[form]
    with av.open(store, "w", format=form) as box:
        stream = box.add_stream(codec, rate=rate, layout="mono")
        pcm = (samples.clip(-1, 1) * 32767).astype(np.int16)
        frame = av.AudioFrame.from_ndarray(pcm[None], format="s16", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
        box.mux(stream.encode(frame))
        box.mux(stream.encode())
    return store.getvalue()


def sound_samples(content: bytes) -> np.ndarray:
    """float32 at the file's own rate."""
    with av.open(io.BytesIO(content)) as box:
        resampler = av.AudioResampler("s16", "mono")
        pieces = [r.to_ndarray()[0] for f in box.decode(audio=0) for r in resampler.resample(f)]
    return np.concatenate(pieces).astype(np.float32) / 32767
