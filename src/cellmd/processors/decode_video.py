"""Films from files and arrays: a few frames of RGB, and when each is shown. Only those frames are ever held.

A first pass reads the packets without decoding them: it counts the frames and learns where each lies and which are key
frames. Frames are then chosen, and decoded by going to the key frame before each. Frame numbers and times follow the
reference for films of a constant rate (frame i of N is number i * total // N, shown at number / rate). For a film whose
rate varies the frames are chosen evenly in time, by the times that the film states.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from cellmd.errors import ArgumentError, MediaDecodeError, MediaError, MediaLimitError
from cellmd.processors.containers import broken, open_container
from cellmd.processors.sources import MediaLimits, media_name

if TYPE_CHECKING:
    from numpy.typing import NDArray

_ARRAY_FPS = 24.0  # what the reference takes for frames that come without a rate
_MOST_FRAMES_PER_SECOND = 240  # bounds the first pass over a file made of tiny packets
_AV_PRECISION_SECONDS = 1e-3  # Matroska's clock


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
        stream.codec_context.options = {"max_pixels": str(limits.max_pixels)}  # a size may change later in the stream
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
    attached = [stream for stream in container.streams.video if stream.disposition & stream.disposition.attached_pic]
    for stream in container.streams.video:
        if stream not in attached:
            return stream
    raise MediaDecodeError(f"{name}: holds no film" + (" (only a cover picture)" if attached else ""))


def _check_pixels(name: str, width: int, height: int, limits: MediaLimits) -> None:
    if width * height > limits.max_pixels:
        raise MediaLimitError(f"{name}: frames of {width} x {height} are more than {limits.max_pixels:,} pixels")


# ---- what is in the film ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Index:
    """The frames of a film in the order shown.

    pts: their stamps in the stream's clock, ascending; None if the container states none that can be trusted.
    times_s: seconds from the first. key_pts: stamps of the key frames, ascending. rate: frames a second if constant.
    """

    pts: list[int] | None
    times_s: NDArray[np.float64]
    key_pts: list[int]
    rate: float | None


def _index_packets(name: str, container: Any, stream: Any, limits: MediaLimits) -> _Index:
    stamps: list[int | None] = []
    keys: list[int] = []
    most = limits.max_video_seconds * _MOST_FRAMES_PER_SECOND
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets)
        except StopIteration:
            break
        except Exception:  # noqa: BLE001 - the file breaks off here: what came before is the film
            break
        if not packet.size or packet.is_discard:
            continue
        stamps.append(packet.pts)
        if packet.is_keyframe and packet.pts is not None:
            keys.append(packet.pts)
        if len(stamps) > most:
            raise MediaLimitError(f"{name}: more than {most:,.0f} frames; the limit is {limits.max_video_seconds:g} s")
    if not stamps:
        raise MediaDecodeError(f"{name}: the film has no frames")
    average = float(stream.average_rate or 0.0)
    pts = _trusted(container, stream, stamps)
    if pts is None:
        rate = average or _ARRAY_FPS
        times = np.arange(len(stamps)) / rate
    else:
        times = (np.asarray(pts, np.float64) - pts[0]) * float(stream.time_base)
        rate = average if _is_constant(times, average) else None
    if times[-1] > limits.max_video_seconds:
        raise MediaLimitError(
            f"{name}: {times[-1]:.0f} s of film are more than the limit of {limits.max_video_seconds:g} s; "
            "cut it or raise max_video_seconds"
        )
    return _Index(pts, times, sorted(keys), rate)


def _trusted(container: Any, stream: Any, stamps: list[int | None]) -> list[int] | None:
    """The stamps in the order shown, or None if some are missing or made up.

    AVI states none: FFmpeg counts packets instead, which is not the order shown if the codec reorders frames.
    """
    if None in stamps or (container.format.name == "avi" and stream.codec_context.has_b_frames):
        return None
    pts = sorted(stamp for stamp in stamps if stamp is not None)
    return pts if len(set(pts)) == len(pts) else None


def _is_constant(times: NDArray[np.float64], rate: float) -> bool:
    """Whether every frame is shown within half a frame of its place on the grid of `rate`."""
    if rate <= 0.0:
        return False
    drift = np.abs(times - np.arange(len(times)) / rate)
    return bool(drift.max() <= max(0.5 / rate, _AV_PRECISION_SECONDS))


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
    if rate is not None:
        duration = total / rate
    else:  # the last frame is shown about as long as the average one
        duration = float(times_s[-1]) * total / max(total - 1, 1)
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
        if index.pts is None:
            frames = _frames_by_count(container, stream, [number for number, _ in wanted])
        else:
            frames = _frames_by_stamp(container, stream, [index.pts[number] for number, _ in wanted], index.key_pts)
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


def _frames_by_count(container: Any, stream: Any, numbers: Sequence[int]) -> Iterator[Any]:
    """Frames by number, decoding all before the last."""
    _rewind(container, stream)
    remaining = list(reversed(numbers))
    for number, frame in enumerate(_decoded(container, stream)):
        if number == remaining[-1]:
            yield frame
            remaining.pop()
            if not remaining:
                return


def _frames_by_stamp(container: Any, stream: Any, stamps: Sequence[int], keys: Sequence[int]) -> Iterator[Any]:
    """Frames by stamp: from the key frame before each, unless decoding on from the frame before gets there sooner.

    A stamp that no decoded frame bears (some codecs have packets that show nothing) gives the next frame shown.
    """
    position: int | None = None  # stamp of the frame last decoded
    frames: Iterator[Any] = iter(())
    can_seek = True
    last: Any = None
    for stamp in stamps:
        before = bisect_right(keys, stamp)
        key = keys[before - 1] if before else None
        if position is None or (can_seek and key is not None and key > position):
            can_seek = can_seek and key is not None and _seek(container, stream, key)
            if not can_seek:
                _rewind(container, stream)
            frames = _decoded(container, stream)
            last = None
        if last is None or last.pts < stamp:
            last = _first_from(frames, stamp, last)
        if last is not None and last.pts > stamp and can_seek and position != last.pts and _overshot(last, keys, key):
            can_seek = False  # the container's index is wrong: from here on decode everything in order
            _rewind(container, stream)
            frames = _decoded(container, stream)
            last = _first_from(frames, stamp, None)
        if last is None:
            return
        position = last.pts
        yield last
