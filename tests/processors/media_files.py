"""Sound and film files for tests, made with PyAV in whatever container is asked for."""

from __future__ import annotations

import io
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import av
import numpy as np

from cellmd.errors import MediaError

SOUNDS = {  # file ending: container, codec, sample format; lossless ones first
    "wav": ("wav", "pcm_s16le", "s16"),
    "flac": ("flac", "flac", "s16"),
    "mp3": ("mp3", "libmp3lame", "s16p"),
    "ogg": ("ogg", "libopus", "s16"),
    "m4a": ("ipod", "aac", "fltp"),
    "aac": ("adts", "aac", "fltp"),
    "mkv": ("matroska", "flac", "s16"),
    "webm": ("webm", "libopus", "s16"),
    "aiff": ("aiff", "pcm_s16be", "s16"),
}
LOSSLESS = ("wav", "flac", "mkv", "aiff")
FILMS = {  # name: container, codec
    "mp4": ("mp4", "libx264"),
    "mov": ("mov", "libx264"),
    "mkv": ("matroska", "libx264"),
    "webm": ("webm", "libvpx-vp9"),
    "vp8.webm": ("webm", "libvpx"),
    "avi": ("avi", "mpeg4"),
    "h264.avi": ("avi", "libx264"),
    "mjpeg.avi": ("avi", "mjpeg"),
    "ts": ("mpegts", "libx264"),
    "gif": ("gif", "gif"),
}
_PIXELS = {"mjpeg": "yuvj420p", "gif": "rgb8"}


def tone(seconds: float, rate: int, hertz: float = 440.0) -> np.ndarray:
    """A sine of amplitude a half, float64 (samples,)."""
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)


def sound_file(ending: str, channels: np.ndarray, rate: int) -> bytes:
    """channels: float (channels, samples), -1..1."""
    container_name, codec, sample_format = SOUNDS[ending]
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container_name) as container:
        write_sound(container, sound_stream(container, codec, sample_format, channels, rate), channels)
    return buffer.getvalue()


def sound_stream(container: Any, codec: str, sample_format: str, channels: np.ndarray, rate: int) -> Any:
    return container.add_stream(codec, rate=rate, layout=_layout(channels), format=sample_format)


def write_sound(container: Any, stream: Any, channels: np.ndarray) -> None:
    integers = np.rint(channels * 32767).clip(-32768, 32767).astype(np.int16)
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(integers), format="s16p", layout=_layout(channels))
    frame.sample_rate = stream.rate
    frame.pts = 0
    frame.time_base = Fraction(1, stream.rate)
    resampler = av.AudioResampler(stream.format.name, _layout(channels), stream.rate, stream.frame_size or 1024)
    for piece in [*resampler.resample(frame), *resampler.resample(None)]:
        container.mux(stream.encode(piece))
    container.mux(stream.encode(None))


def _layout(channels: np.ndarray) -> str:
    return {1: "mono", 2: "stereo", 6: "5.1"}[len(channels)]


def film_file(
    name: str,
    n_frames: int = 50,
    fps: int = 25,
    size: tuple[int, int] = (48, 64),
    *,
    times: list[Fraction] | None = None,
    sound: np.ndarray | None = None,
) -> bytes:
    """A film of frames that are grey(0), grey(1), ... but for the codec's losses.

    size: height, width. times: seconds at which each frame is shown, for a film of varying rate.
    sound: (channels, samples) at 16 kHz.
    """
    container_name, codec = FILMS[name]
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container_name) as container:
        stream = container.add_stream(codec, rate=fps)
        stream.height, stream.width = size
        stream.pix_fmt = _PIXELS.get(codec, "yuv420p")
        stream.gop_size = 12
        if times:
            stream.codec_context.time_base = Fraction(1, 1000)
        speech = None if sound is None else sound_stream(container, "aac", "fltp", sound, 16_000)
        for i in range(n_frames):
            frame = av.VideoFrame.from_ndarray(grey(i, size), format="rgb24")
            frame.pts = round(times[i] * 1000) if times else i
            frame.time_base = Fraction(1, 1000) if times else Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if sound is not None:
            write_sound(container, speech, sound)
    return buffer.getvalue()


def grey(number: int, size: tuple[int, int]) -> np.ndarray:
    return np.full((*size, 3), number * 4 % 256, np.uint8)


def brightness(pixels: np.ndarray) -> int:
    """The number of a frame made by `grey` (modulo 64)."""
    return int(np.rint(pixels.astype(np.float64).mean() / 4))


def all_frames(data: bytes) -> list[np.ndarray]:
    """Every frame of a film, decoded from beginning to end."""
    with av.open(io.BytesIO(data)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def outcome(decode: Callable[[], Any]) -> Any:
    """What decoding gives, or the MediaError that it ends in; any other exception is a failure of the test."""
    try:
        return decode()
    except MediaError as error:
        return error
