"""Films from files and arrays: a few frames of RGB, and when each is shown. Only those frames are ever held.

A first pass reads the packets without decoding them: it counts the frames and learns where each lies and which are key
frames. Frames are then chosen, and decoded by going to the key frame before each. Frame numbers and times follow the
reference for films of a constant rate (frame i of N is number i * total // N, shown at number / rate). For a film whose
rate varies they are those on show at even times, by the times that the film states (one that stays on show is taken
once), and come with those times.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import av
import numpy as np

from cellmd.errors import ArgumentError, MediaDecodeError, MediaError, MediaLimitError
from cellmd.processors.containers import broken, open_container
from cellmd.processors.sources import MediaLimits, media_name

if TYPE_CHECKING:
    from numpy.typing import NDArray

_ARRAY_FPS = 24.0  # what the reference takes for frames that come without a rate
_TOLERATED_DRIFT = 2.0  # frames
_MOST_FRAMES_PER_SECOND = 240  # bounds the first pass over a file made of tiny packets


@dataclass(frozen=True)
class Frame:
    """One frame: pixels uint8 RGB (H, W, 3), shown at time_s seconds from the first frame of the film."""

    pixels: NDArray[np.uint8]
    time_s: float


def sample_film(
    medium: Any, *, n_frames: int, fps: float | None = None, limits: MediaLimits | None = None
) -> Iterator[Frame]:
    """Frames spread evenly over a film, one at a time, in order.

    medium: path, bytes, binary file object, or an array (frames, H, W, 3) of uint8, or (array, its frames a second).
    n_frames: how many; a film of fewer gives all of its own. fps: so many a second instead (at least one in all).
    Raises MediaDecodeError, MediaLimitError, ArgumentError.
    """
    limits = limits or MediaLimits()
    if n_frames < 1:
        raise ArgumentError(f"the number of film frames must be at least 1, found {n_frames}")
    if fps is not None and not 0.0 < fps < float("inf"):
        raise ArgumentError(f"film frames a second must be a number above 0, found {fps!r}")
    array, array_fps = medium if _is_array_with_rate(medium) else (medium, _ARRAY_FPS)
    if isinstance(array, np.ndarray):
        yield from _sample_array(media_name(medium), array, float(array_fps), n_frames, fps, limits)
        return
    with open_container(medium, limits) as (name, container):
        stream = _film_stream(name, container)
        _check_pixels(name, stream.width, stream.height, limits)
        stream.thread_type = "AUTO"
        index = _index_packets(name, container, stream, limits)
        wanted = _choose(name, index.times_s, index.rate, n_frames, fps, limits)
        yield from _decode(name, container, stream, index, wanted)


def _is_array_with_rate(medium: Any) -> bool:
    return isinstance(medium, tuple) and len(medium) == 2 and isinstance(medium[0], np.ndarray)


def _sample_array(
    name: str, array: NDArray[Any], array_fps: float, n_frames: int, fps: float | None, limits: MediaLimits
) -> Iterator[Frame]:
    if array.ndim != 4 or array.shape[3] != 3 or array.dtype != np.uint8 or array.size == 0:
        raise MediaDecodeError(
            f"{name}: an array of shape {array.shape} and {array.dtype} is no film; give (frames, H, W, 3) of uint8"
        )
    if not 0.0 < array_fps < float("inf"):
        raise ArgumentError(f"{name}: the film's frames a second must be a number above 0, found {array_fps!r}")
    _check_pixels(name, array.shape[2], array.shape[1], limits)
    times = np.arange(len(array)) / array_fps
    for number, time_s in _choose(name, times, array_fps, n_frames, fps, limits):
        yield Frame(np.ascontiguousarray(array[number]), time_s)


def _film_stream(name: str, container: Any) -> Any:
    for stream in container.streams.video:
        if stream.disposition & stream.disposition.attached_pic:
            continue  # a cover picture is no film
        if stream.codec_context is None:
            raise MediaDecodeError(f"{name}: the film's codec is unknown")
        return stream
    raise MediaDecodeError(f"{name}: holds no film")


def _check_pixels(name: str, width: int, height: int, limits: MediaLimits) -> None:
    if width * height > limits.max_pixels:
        raise MediaLimitError(f"{name}: frames of {width} x {height} are more than {limits.max_pixels:,} pixels")


# ---- what is in the film ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Index:
    """The frames of a film in the order shown.

    pts: their stamps in the stream's clock, ascending; None if the container states none that can be trusted.
    times_s: seconds from the first. rate: frames a second if constant.
    keys: (pts, dts) of the key frames, ascending: when each is shown, and where in the file's own order it lies.
    start: the earliest stamp of all.
    """

    pts: list[int] | None
    times_s: NDArray[np.float64]
    rate: float | None
    keys: list[tuple[int, int]]
    start: int


def _index_packets(name: str, container: Any, stream: Any, limits: MediaLimits) -> _Index:
    stamps: list[int | None] = []
    keys: list[tuple[int, int]] = []
    start = 0
    most = limits.max_video_seconds * _MOST_FRAMES_PER_SECOND
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets)
        except StopIteration:
            break
        except Exception:  # the file breaks off here: what came before is the film
            break
        if not packet.size or packet.is_discard:
            continue
        stamps.append(packet.pts)
        place = packet.pts if packet.dts is None else packet.dts
        if place is not None:
            start = min(start, place)
            if packet.is_keyframe and packet.pts is not None:
                keys.append((packet.pts, place))
        if len(stamps) > most:
            raise MediaLimitError(f"{name}: more than {most:,.0f} frames; the limit is {limits.max_video_seconds:g} s")
    if not stamps:
        raise MediaDecodeError(f"{name}: the film has no frames")
    average = float(stream.average_rate or _ARRAY_FPS)
    rate: float | None = average
    times = np.arange(len(stamps)) / average
    pts = _trusted(container, stream, stamps)
    if pts is not None:
        stated = (np.asarray(pts, np.float64) - pts[0]) * float(stream.time_base)
        # On a constant rate if every frame is shown near its place on the grid; a dropped frame or two do not matter.
        if np.abs(stated - times).max() > _TOLERATED_DRIFT / average:
            times, rate = stated, None
    if times[-1] > limits.max_video_seconds:
        raise MediaLimitError(
            f"{name}: {times[-1]:.0f} s of film are more than the limit of {limits.max_video_seconds:g} s; "
            "cut it or raise max_video_seconds"
        )
    return _Index(pts, times, rate, sorted(keys), start)


def _trusted(container: Any, stream: Any, stamps: list[int | None]) -> list[int] | None:
    """The stamps in the order shown, or None if some are missing or made up.

    AVI states none: FFmpeg counts packets instead, which is not the order shown if the codec reorders frames.
    """
    if None in stamps or (container.format.name == "avi" and stream.codec_context.has_b_frames):
        return None
    pts = sorted(stamp for stamp in stamps if stamp is not None)
    return pts if len(set(pts)) == len(pts) else None


def _choose(
    name: str,
    times_s: NDArray[np.float64],
    rate: float | None,
    n_frames: int,
    fps: float | None,
    limits: MediaLimits,
) -> list[tuple[int, float]]:
    """Numbers of the frames to take, ascending, and the time of each. rate None: evenly in time."""
    total = len(times_s)
    # Without a rate, the last frame is taken to be shown as long as the average one.
    duration = total / rate if rate is not None else float(times_s[-1]) * total / max(total - 1, 1)
    n = max(1, int(duration * fps)) if fps is not None else n_frames
    n = min(n, total)
    if n > limits.max_frames:
        raise MediaLimitError(f"{name}: {n} frames are more than the limit of {limits.max_frames}; ask for fewer")
    if rate is not None:
        numbers = [i * total // n for i in range(n)]
        return [(number, number / rate) for number in numbers]
    shown = [bisect_right(times_s, i * duration / n) - 1 for i in range(n)]
    return [(number, float(times_s[number])) for number in sorted(set(shown))]


# ---- getting at the frames ----------------------------------------------------------------------------------------


def _decode(
    name: str, container: Any, stream: Any, index: _Index, wanted: Sequence[tuple[int, float]]
) -> Iterator[Frame]:
    n_found = 0
    try:
        reader = _Reader(container, stream, index)
        frames = (reader.by_count if index.pts is None else reader.by_stamp)([number for number, _ in wanted])
        for frame, (_, time_s) in zip(frames, wanted, strict=False):
            yield Frame(_pixels(frame), time_s)
            n_found += 1
    except MediaError:
        raise
    except Exception as error:  # decoders of hostile input raise whatever they stumble over
        if not n_found:
            raise broken(name, "the film is broken", error) from error
    if not n_found:
        raise MediaDecodeError(f"{name}: no frame of the film can be decoded")


class _Reader:
    """Decodes forward, and can skip to a key frame."""

    def __init__(self, container: Any, stream: Any, index: _Index) -> None:
        self._container = container
        self._stream = stream
        self._index = index
        self._can_skip = True
        self._last: Any = None
        self._frames: Iterator[Any] = iter(())
        self._go_to(index.start)

    def by_count(self, numbers: Sequence[int]) -> Iterator[Any]:
        """Frames by number, decoding all before the last."""
        remaining = list(reversed(numbers))
        for number, frame in enumerate(self._frames):
            if number == remaining[-1]:
                yield frame
                remaining.pop()
                if not remaining:
                    return

    def by_stamp(self, numbers: Sequence[int]) -> Iterator[Any]:
        """Frames by the stamp of each, decoding on from the one before or from a key frame between the two."""
        stamps = self._index.pts or []
        for number in numbers:
            n_before = bisect_right(self._index.keys, stamps[number], key=lambda key: key[0])
            if n_before:
                self._skip_to(*self._index.keys[n_before - 1])
            frame = self._first_from(stamps[number])
            if frame is None:
                return
            yield frame

    def _skip_to(self, pts: int, dts: int) -> None:
        """Go to the key frame shown at pts, unless it lies behind.

        Some containers look places up by pts, some by dts. If neither leads to a frame at or before the wanted one, the
        container's index is wrong: then begin again and decode everything in order.
        """
        if not self._can_skip or (self._last is not None and self._last.pts >= pts):
            return
        for place in (pts, dts):
            self._go_to(place)
            self._last = next(self._frames, None)
            if self._last is not None and self._last.pts <= pts:
                return
        self._can_skip = False
        self._last = None
        self._go_to(self._index.start)

    def _go_to(self, place: int) -> None:
        self._container.seek(place, stream=self._stream)
        self._frames = _decoded(self._container, self._stream)

    def _first_from(self, stamp: int) -> Any:
        """The first frame shown at or after a stamp (some codecs have packets that show nothing); None at the end."""
        while self._last is None or self._last.pts < stamp:
            self._last = next(self._frames, None)
            if self._last is None:
                return None
        return self._last


def _decoded(container: Any, stream: Any) -> Iterator[Any]:
    """Frames from where the container stands. A packet that does not decode is passed over, as players do."""
    for packet in container.demux(stream):
        try:
            frames = packet.decode()
        except av.error.FFmpegError:
            continue
        yield from (frame for frame in frames if frame.pts is not None or packet.pts is None)


def _pixels(frame: Any) -> NDArray[np.uint8]:
    """RGB, turned as the film's display matrix says (whole quarter turns counter-clockwise)."""
    pixels = frame.to_ndarray(format="rgb24")
    quarter_turns = round(frame.rotation / 90) % 4
    return np.ascontiguousarray(np.rot90(pixels, quarter_turns)) if quarter_turns else pixels
