"""The right frames of films, at the right times, from every container; broken films end in clear errors."""

from __future__ import annotations

import itertools
import struct
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellmd.errors import ArgumentError, MediaDecodeError, MediaError, MediaLimitError
from cellmd.processors.decode_video import Frame, sample_film
from cellmd.processors.sources import MediaLimits
from processors.media_files import FILMS, all_frames, brightness, film_file, grey, outcome, sound_file, tone

N, FPS = 50, 25
SAMPLES = {name: film_file(name, N, FPS) for name in FILMS}


def sample(medium: Any, **options: Any) -> list[Frame]:
    return list(sample_film(medium, **{"n_frames": 32, **options}))


@pytest.mark.parametrize("name", FILMS)
@pytest.mark.parametrize("n", [1, 7, 32, 50, 80])
def test_frames_of_every_container_are_those_of_the_rule(name: str, n: int) -> None:
    """Frame i of n is number i * total // n, exactly as decoding the film from its beginning gives it."""
    frames = sample(SAMPLES[name], n_frames=n)
    taken = min(n, N)
    numbers = [i * N // taken for i in range(taken)]
    assert [frame.time_s for frame in frames] == [number / FPS for number in numbers]
    every = all_frames(SAMPLES[name])
    for frame, number in zip(frames, numbers, strict=True):
        np.testing.assert_array_equal(frame.pixels, every[number])


@pytest.mark.parametrize(("fps", "expected"), [(0.01, 1), (1.0, 2), (2.6, 5), (25.0, 50), (1000.0, 50)])
def test_frames_a_second(fps: float, expected: int) -> None:
    frames = sample(SAMPLES["mp4"], fps=fps)
    assert len(frames) == expected
    assert [frame.time_s for frame in frames] == [(i * N // expected) / FPS for i in range(expected)]


@pytest.mark.parametrize("name", ["mkv", "mp4"])
def test_a_film_of_varying_rate_is_sampled_evenly_in_time(name: str) -> None:
    """Two seconds of motion, three of stillness, two of motion: frames are those on show at even times."""
    times = [Fraction(i, 10) for i in range(20)] + [Fraction(50 + i, 10) for i in range(20)]
    duration, n = float(times[-1]) * 40 / 39, 7
    shown = [max(k for k in range(40) if times[k] <= i * duration / n) for i in range(n)]
    expected = sorted(set(shown))
    frames = sample(film_file(name, 40, times=times), n_frames=n)
    assert [frame.time_s for frame in frames] == pytest.approx([float(times[k]) for k in expected], abs=2e-3)
    assert [brightness(frame.pixels) for frame in frames] == pytest.approx(expected, abs=1)


@pytest.mark.parametrize(("matrix", "turns"), [((0, 1, -1, 0), -1), ((-1, 0, 0, -1), 2), ((0, -1, 1, 0), 1)])
def test_rotation(matrix: tuple[int, int, int, int], turns: int) -> None:
    """The display matrix of an MP4 track header (as telephones write it) is honoured."""
    data = bytearray(SAMPLES["mp4"])
    a, b, c, d = (value << 16 for value in matrix)
    place = data.index(b"tkhd") + 4 + 40
    data[place : place + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    plain, turned = sample(SAMPLES["mp4"], n_frames=2), sample(bytes(data), n_frames=2)
    for before, after in zip(plain, turned, strict=True):
        np.testing.assert_array_equal(after.pixels, np.rot90(before.pixels, turns))


def test_arrays() -> None:
    array = np.stack([grey(i, (4, 6)) for i in range(10)])
    frames = sample((array, 5.0), n_frames=4)
    assert [brightness(frame.pixels) for frame in frames] == [0, 2, 5, 7]
    assert [frame.time_s for frame in frames] == [0.0, 0.4, 1.0, 1.4]
    assert [frame.time_s for frame in sample(array, n_frames=2)] == [0.0, 5 / 24]


def test_only_sampled_frames_are_held() -> None:
    """The film is never decoded as a whole: asking for its first frame of many takes no pass over the rest."""
    frames = sample_film(film_file("mkv", 600, size=(64, 64)), n_frames=600)
    first = list(itertools.islice(frames, 3))
    assert [brightness(frame.pixels) for frame in first] == [0, 1, 2]


def test_limits() -> None:
    film = SAMPLES["mkv"]
    with pytest.raises(MediaLimitError, match="64 x 48"):
        sample(film, limits=MediaLimits(max_pixels=3_000))
    with pytest.raises(MediaLimitError, match=r"2 s of film .* 1\.5 s"):
        sample(film, limits=MediaLimits(max_video_seconds=1.5))
    with pytest.raises(MediaLimitError, match="32 frames are more than the limit of 10"):
        sample(film, limits=MediaLimits(max_frames=10))
    with pytest.raises(MediaLimitError, match="more than 24 frames"):
        sample(film, limits=MediaLimits(max_video_seconds=0.1))
    with pytest.raises(MediaLimitError, match="6 x 4"):
        sample(np.zeros((2, 4, 6, 3), np.uint8), limits=MediaLimits(max_pixels=20))


@pytest.mark.parametrize("options", [{"n_frames": 0}, {"n_frames": -3}, {"fps": 0.0}, {"fps": float("nan")}])
def test_senseless_numbers_of_frames(options: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError):
        sample(SAMPLES["mp4"], **options)


def test_what_holds_no_film_is_named(tmp_path: Path) -> None:
    path = tmp_path / "speech.mp4"
    path.write_bytes(sound_file("m4a", tone(0.2, 16_000)[None], 16_000))
    with pytest.raises(MediaDecodeError, match=r"speech\.mp4: holds no film"):
        sample(path)
    for medium in (tmp_path / "none.mp4", b"", b"not a film at all, just words", None, "rtsp://host/film"):
        with pytest.raises(MediaDecodeError):
            sample(medium)
    for array in (np.zeros((2, 4, 4), np.uint8), np.zeros((0, 4, 4, 3), np.uint8), np.zeros((2, 4, 4, 3))):
        with pytest.raises(MediaDecodeError, match="<array>"):
            sample(array)
    with pytest.raises(ArgumentError):
        sample((np.zeros((2, 4, 4, 3), np.uint8), 0.0))


def test_a_film_without_frames(tmp_path: Path) -> None:
    path = tmp_path / "cut.mkv"
    whole = film_file("mkv", 2)
    path.write_bytes(whole[: whole.index(b"\x1f\x43\xb6\x75")])  # up to its first cluster of frames
    with pytest.raises(MediaDecodeError, match=r"cut\.mkv"):
        sample(path)


@settings(max_examples=200, deadline=4_000)
@given(st.sampled_from(sorted(FILMS)), st.floats(0, 1), st.data())
def test_damaged_films_end_in_an_error_or_in_frames(name: str, kept: float, data: st.DataObject) -> None:
    damaged = bytearray(SAMPLES[name][: max(1, round(kept * len(SAMPLES[name])))])
    for _ in range(data.draw(st.integers(0, 6))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    frames = outcome(lambda: sample(bytes(damaged), n_frames=4))
    if isinstance(frames, MediaError):
        assert "<bytes>" in str(frames)
    else:
        assert 1 <= len(frames) <= 4
        assert all(frame.pixels.ndim == 3 for frame in frames)


@pytest.mark.reference
@settings(max_examples=200, deadline=None)
@given(st.integers(1, 5_000), st.integers(1, 64), st.floats(0.5, 60.0))
def test_numbers_and_times_are_the_references(total: int, n_frames: int, rate: float) -> None:
    from transformers.video_utils import VideoMetadata, default_sample_indices_fn

    metadata = VideoMetadata(total_num_frames=total, fps=rate)
    metadata.frames_indices = default_sample_indices_fn(metadata, num_frames=min(n_frames, total))
    film = np.broadcast_to(np.zeros((1, 1, 1, 3), np.uint8), (total, 1, 1, 3)), rate
    assert [frame.time_s for frame in sample(film, n_frames=n_frames)] == metadata.timestamps
