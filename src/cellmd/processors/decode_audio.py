"""Sound from files and arrays to one float32 channel at the model's sample rate.

Channels are averaged. Rates are changed by FFmpeg's polyphase resampler with a longer filter than its default: for
16 kHz it errs by less than -90 dB up to 7.7 kHz, and what lies above 8.3 kHz folds back at less than -90 dB.
"""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, Any

import av
import numpy as np
from av.filter import Graph

from cellmd.errors import MediaDecodeError, MediaLimitError
from cellmd.processors.containers import broken, open_container
from cellmd.processors.sources import MediaLimits, media_name

if TYPE_CHECKING:
    from numpy.typing import NDArray

_RESAMPLER = "filter_size=256:cutoff=0.985"
_LOWEST_RATE_HZ, _HIGHEST_RATE_HZ = 1_000, 768_000
_MOST_CHANNELS = 64
_CHUNK = 1 << 14
_TOLERATED_SHARE = 0.1  # of packets that do not decode: players skip the odd one (trailing tags, a lost frame)


def decode_audio(
    medium: Any, limits: MediaLimits | None = None, rate_hz: int = 16_000, *, optional: bool = False
) -> NDArray[np.float32]:
    """A sound as float32 (n,), mono at rate_hz, full scale -1..1.

    medium: path, bytes or binary file object of a sound, or of a film whose sound is wanted; or an array at rate_hz; or
    (array, its rate in hertz). Arrays are floats, or integers whose range is full scale (uint8 is centred on 128), of
    shape (samples,) or with a shorter second axis of channels, on either side.
    optional: a film without sound gives an empty array instead of an error.
    A file that ends early gives what it holds. Raises MediaDecodeError, MediaLimitError.
    """
    limits = limits or MediaLimits()
    if isinstance(medium, np.ndarray):
        medium = medium, rate_hz
    if isinstance(medium, tuple) and len(medium) == 2 and isinstance(medium[0], np.ndarray):
        array, array_rate = medium
        return _from_array(media_name(medium), array, array_rate, rate_hz, limits)
    with open_container(medium, limits) as (name, container):
        if not container.streams.audio:
            if optional:
                return np.zeros(0, np.float32)
            raise MediaDecodeError(f"{name}: holds no sound")
        return _decode_stream(name, container, rate_hz, limits)


def _decode_stream(name: str, container: Any, rate_hz: int, limits: MediaLimits) -> NDArray[np.float32]:
    resampler = _Resampler(name, rate_hz, limits.max_audio_seconds)
    n_good = n_bad = 0
    first_error: Exception | None = None
    packets = container.demux(container.streams.audio[0])
    while True:
        try:
            packet = next(packets)
        except StopIteration:
            break
        except Exception as error:  # the container breaks off here: keep what came before
            first_error = first_error or error
            n_bad += 1
            break
        try:
            frames = packet.decode()
        except av.error.EOFError:  # packets after the decoder's end
            continue
        except Exception as error:
            first_error = first_error or error
            n_bad += 1
            continue
        n_good += 1
        for frame in frames:
            resampler.feed(_mono(name, frame), frame.sample_rate)
    if n_bad > max(1, _TOLERATED_SHARE * n_good):
        raise broken(name, f"the sound is broken: {n_bad} of {n_bad + n_good} packets do not decode", first_error)  # type: ignore[arg-type]
    waveform = resampler.finish()
    if not len(waveform):
        raise MediaDecodeError(f"{name}: the sound is empty")
    return waveform


def _mono(name: str, frame: Any) -> NDArray[np.float32]:
    """The mean of a frame's channels."""
    samples = frame.to_ndarray()  # planar: (channels, n); packed: (1, n * channels)
    if not frame.format.is_planar:
        samples = samples.reshape(-1, frame.layout.nb_channels).T
    return _mean_of_channels(name, samples)


def _mean_of_channels(name: str, samples: NDArray[Any]) -> NDArray[np.float32]:
    """(channels, n) of any sample type -> float32 (n,), full scale -1..1. Refuses NaN and infinity."""
    kind = samples.dtype
    offset, full_scale = 0.0, 1.0
    if kind == np.uint8:
        offset = full_scale = 128.0
    elif np.issubdtype(kind, np.signedinteger):
        full_scale = -float(np.iinfo(kind).min)
    elif not np.issubdtype(kind, np.floating):
        raise MediaDecodeError(f"{name}: samples of {kind} are no sound; give floats or integers")
    mono: NDArray[np.float64] = samples.mean(axis=0, dtype=np.float64)
    if not np.isfinite(mono).all():
        raise MediaDecodeError(f"{name}: the sound holds samples that are not finite")
    return ((mono - offset) / full_scale).astype(np.float32)


def _from_array(
    name: str, array: NDArray[Any], array_rate: Any, rate_hz: int, limits: MediaLimits
) -> NDArray[np.float32]:
    if array.ndim not in (1, 2) or array.size == 0:
        raise MediaDecodeError(f"{name}: an array of shape {array.shape} is no sound; give (samples,)")
    channels = np.atleast_2d(array)
    if array.ndim == 2 and array.shape[0] > array.shape[1]:
        channels = array.T
    if len(channels) > _MOST_CHANNELS:
        raise MediaDecodeError(f"{name}: an array of shape {array.shape} has more than {_MOST_CHANNELS} channels")
    if isinstance(array_rate, bool) or not isinstance(array_rate, int | float | np.integer | np.floating):
        raise MediaDecodeError(f"{name}: the sample rate must be a number in hertz, found {array_rate!r}")
    resampler = _Resampler(name, rate_hz, limits.max_audio_seconds)
    resampler.feed(_mean_of_channels(name, channels), round(array_rate))
    return resampler.finish()


class _Resampler:
    """Collects mono sound of one or more sample rates at one rate, and stops at the limit."""

    def __init__(self, name: str, rate_hz: int, max_seconds: float) -> None:
        self._name = name
        self._rate_hz = rate_hz
        self._max_seconds = max_seconds
        self._seconds = 0.0
        self._input_rate = 0
        self._graph: Any = None
        self._position = 0
        self._done = bytearray()  # grows in place: hours of sound need no second copy at the end

    def feed(self, mono: NDArray[np.float32], rate_hz: int) -> None:
        if not _LOWEST_RATE_HZ <= rate_hz <= _HIGHEST_RATE_HZ:
            raise MediaDecodeError(
                f"{self._name}: a sample rate of {rate_hz} Hz is outside {_LOWEST_RATE_HZ}..{_HIGHEST_RATE_HZ}"
            )
        self._seconds += len(mono) / rate_hz
        if self._seconds > self._max_seconds:
            raise MediaLimitError(
                f"{self._name}: the sound is longer than the limit of {self._max_seconds:g} s; "
                "cut it or raise max_audio_seconds"
            )
        if rate_hz != self._input_rate:
            self._flush()
            self._input_rate = rate_hz
            self._graph = None if rate_hz == self._rate_hz else self._new_graph(rate_hz)
            self._position = 0
        if self._graph is None:
            self._done += np.ascontiguousarray(mono).data
            return
        for start in range(0, len(mono), _CHUNK):
            chunk = np.ascontiguousarray(mono[None, start : start + _CHUNK])
            frame = av.AudioFrame.from_ndarray(chunk, format="flt", layout="mono")
            frame.sample_rate = rate_hz
            frame.time_base = Fraction(1, rate_hz)
            frame.pts = self._position
            self._position += chunk.shape[1]
            self._graph[0].push(frame)
            self._drain()

    def finish(self) -> NDArray[np.float32]:
        self._flush()
        return np.frombuffer(self._done, np.float32)

    def _new_graph(self, rate_hz: int) -> Any:
        graph = Graph()
        source = graph.add_abuffer(sample_rate=rate_hz, format="flt", layout="mono", time_base=Fraction(1, rate_hz))
        resample = graph.add("aresample", f"{self._rate_hz}:{_RESAMPLER}")
        plain = graph.add("aformat", "sample_fmts=flt:channel_layouts=mono")
        sink = graph.add("abuffersink")
        source.link_to(resample)
        resample.link_to(plain)
        plain.link_to(sink)
        graph.configure()
        return source, sink, graph

    def _flush(self) -> None:
        if self._graph is not None:
            self._graph[0].push(None)
            self._drain()
            self._graph = None
        self._input_rate = 0

    def _drain(self) -> None:
        while True:
            try:
                self._done += self._graph[1].pull().to_ndarray()[0].data
            except (av.error.BlockingIOError, av.error.EOFError):
                return
