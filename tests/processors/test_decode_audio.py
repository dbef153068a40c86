"""Sounds of every kind, rate and channel count become 16 kHz mono; broken ones end in clear errors."""

from __future__ import annotations

import io
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellmd.errors import MediaDecodeError, MediaError, MediaLimitError
from cellmd.processors.decode_audio import decode_audio
from cellmd.processors.sources import MediaLimits
from processors.media_files import LOSSLESS, SOUNDS, film_file, outcome, sound_file, tone

RATE = 16_000
STEP = 2.0**-15  # of 16-bit samples


def decibels(error: np.ndarray, signal: np.ndarray) -> float:
    return float(10 * np.log10(np.mean(error**2) / np.mean(signal**2)))


def away_from_the_ends(waveform: np.ndarray) -> np.ndarray:
    return waveform[1_600:-1_600]


def main_frequency(waveform: np.ndarray) -> float:
    spectrum = np.abs(np.fft.rfft(waveform * np.hanning(len(waveform))))
    return float(spectrum.argmax() * RATE / len(waveform))


@pytest.mark.parametrize("ending", SOUNDS)
def test_every_container(ending: str) -> None:
    waveform = decode_audio(sound_file(ending, np.stack([tone(1.0, 48_000)] * 2), 48_000))
    assert waveform.dtype == np.float32
    assert len(waveform) == pytest.approx(RATE, rel=0.03)  # raw AAC keeps its encoder's lead-in
    assert main_frequency(waveform) == pytest.approx(440.0, abs=1.0)
    assert away_from_the_ends(waveform).std() == pytest.approx(0.5 / np.sqrt(2), rel=0.06)  # MP3 takes 5 %


@pytest.mark.parametrize("ending", LOSSLESS)
def test_lossless_sound_at_the_models_rate_is_untouched(ending: str) -> None:
    rng = np.random.default_rng(0)
    samples = rng.integers(-32_767, 32_768, 5_000) / 32_767
    decoded = decode_audio(sound_file(ending, samples[None], RATE))
    np.testing.assert_array_equal(decoded, (np.rint(samples * 32_767) * STEP).astype(np.float32))


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 32_000, 44_100, 48_000, 96_000, 192_000])
def test_any_rate(rate: int) -> None:
    """-90 dB within 96 % of the narrower band, which is the resampler's stated quality."""
    for hertz in (100.0, 0.48 * min(rate, RATE)):
        expected = tone(1.0, RATE, hertz)
        decoded = decode_audio((tone(1.0, rate, hertz).astype(np.float32), rate))
        assert len(decoded) == RATE
        error = away_from_the_ends(decoded - expected)
        assert decibels(error, expected) < -90


@pytest.mark.parametrize("rate", [22_050, 44_100, 96_000])
def test_what_lies_above_the_band_does_not_fold_back(rate: int) -> None:
    loud = tone(1.0, rate, 8_300.0)
    assert decibels(away_from_the_ends(decode_audio((loud, rate))), loud) < -90


def test_channels_are_averaged() -> None:
    left, right = tone(0.5, RATE), tone(0.5, RATE, 1_000.0)
    surround = np.stack([left, right, left, right, left, right])
    for channels in (np.stack([left, right]), surround):
        decoded = decode_audio(sound_file("wav", channels, RATE))
        np.testing.assert_allclose(decoded, (left + right) / 2, atol=STEP)
        np.testing.assert_allclose(decode_audio(channels), (left + right) / 2, atol=1e-7)
        np.testing.assert_allclose(decode_audio(channels.T), (left + right) / 2, atol=1e-7)


@pytest.mark.parametrize("kind", [np.int16, np.int32, np.uint8, np.float32, np.float64])
def test_arrays_of_any_sample_type(kind: type) -> None:
    wave = tone(0.1, RATE)
    if np.issubdtype(kind, np.floating):
        array, step = wave.astype(kind), 1e-7
    else:
        full = np.iinfo(kind).max // (2 if kind == np.uint8 else 1)
        array, step = (np.rint(wave * full) + (128 if kind == np.uint8 else 0)).astype(kind), 1.0 / full
    np.testing.assert_allclose(decode_audio(array), wave, atol=1.5 * step)


def test_every_form_of_input(tmp_path: Path) -> None:
    data = sound_file("wav", tone(0.3, RATE)[None], RATE)
    expected = decode_audio(data)
    path = tmp_path / "tone.wav"
    path.write_bytes(data)
    prefixed = io.BytesIO(b"skipped" + data)
    prefixed.seek(7)

    class Pipe(io.RawIOBase):
        """Cannot seek."""

        def __init__(self) -> None:
            self._data = io.BytesIO(data)

        def readable(self) -> bool:
            return True

        def readinto(self, buffer: Any) -> int:
            return self._data.readinto(buffer)

    for medium in (path, str(path), path.as_uri(), data, bytearray(data), io.BytesIO(data), prefixed, Pipe()):
        np.testing.assert_array_equal(decode_audio(medium), expected)
    assert prefixed.tell() == 7


def test_a_title_in_no_known_encoding_is_no_obstacle() -> None:
    samples = np.rint(tone(0.5, RATE) * 32_767).astype("<i2").tobytes()
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setparams((1, 2, RATE, 0, "NONE", ""))
        file.writeframes(samples)
    plain, title = buffer.getvalue(), b"INFOINAM\x04\x00\x00\x00\xff\xfe\xe9\x00"
    body = plain[8:36] + b"LIST" + len(title).to_bytes(4, "little") + title + plain[36:]
    titled = b"RIFF" + len(body).to_bytes(4, "little") + body
    np.testing.assert_array_equal(decode_audio(titled), decode_audio(plain))


def test_the_sound_of_a_film() -> None:
    film = film_file("mp4", sound=tone(1.0, RATE)[None])
    assert main_frequency(decode_audio(film)[:RATE]) == pytest.approx(440.0, abs=1.0)
    silent = film_file("mp4")
    with pytest.raises(MediaDecodeError, match="<bytes>: holds no sound"):
        decode_audio(silent)
    assert len(decode_audio(silent, optional=True)) == 0


def test_limits() -> None:
    data = sound_file("flac", tone(3.0, 44_100)[None], 44_100)
    assert len(decode_audio(data, MediaLimits(max_audio_seconds=3.1))) == 3 * RATE
    for medium in (data, tone(3.0, RATE), (tone(3.0, 8_000), 8_000)):
        with pytest.raises(MediaLimitError, match=r"longer than the limit of 2\.5 s"):
            decode_audio(medium, MediaLimits(max_audio_seconds=2.5))
    with pytest.raises(MediaLimitError, match="bytes are more than the limit"):
        decode_audio(data, MediaLimits(max_bytes=100))


def test_missing_empty_and_foreign_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "notes.mp3").write_text("words, no music\n" * 50)
    (tmp_path / "empty.wav").touch()
    with wave.open(str(tmp_path / "silent.wav"), "wb") as file:  # a header and no samples
        file.setparams((1, 2, RATE, 0, "NONE", ""))
    for name, what in [
        ("none.wav", "no such file"),
        ("notes.mp3", "not a sound or film"),
        ("empty.wav", "empty"),
        ("silent.wav", "the sound is empty"),
    ]:
        with pytest.raises(MediaDecodeError, match=what) as caught:
            decode_audio(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)


def test_playlists_and_scripts_open_nothing(tmp_path: Path) -> None:
    """FFmpeg would otherwise follow them to any file that they name."""
    target = tmp_path / "target.wav"
    target.write_bytes(sound_file("wav", tone(1.0, RATE)[None], RATE))
    segment = tmp_path / "segment.ts"
    segment.write_bytes(film_file("ts", sound=tone(1.0, RATE)[None]))
    scripts = {
        "list.m3u8": f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{segment}\n#EXT-X-ENDLIST\n",
        "url.m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\nhttp://127.0.0.1:9/x.ts\n#EXT-X-ENDLIST\n",
        "list.ffconcat": f"ffconcat version 1.0\nfile '{target}'\n",
        "stream.sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nm=audio 9 RTP/AVP 0\n",
        "dash.mpd": f"<?xml version='1.0'?><MPD><Period><BaseURL>{target}</BaseURL></Period></MPD>",
    }
    for name, script in scripts.items():
        path = tmp_path / name
        path.write_text(script)
        for medium in (path, script.encode()):
            with pytest.raises(MediaDecodeError):
                decode_audio(medium)


@pytest.mark.parametrize(
    "medium",
    [
        np.zeros(0, np.float32),
        np.zeros((2, 3, 4)),
        np.zeros((100, 100)),
        np.full(100, np.nan),
        np.zeros(100, np.complex64),
        np.zeros(100, bool),
        (np.zeros(100), 10),
        (np.zeros(100), 10**7),
        (np.zeros(100), "16k"),
        "https://example.org/a.mp3",
        None,
    ],
)
def test_what_is_no_sound(medium: Any) -> None:
    with pytest.raises(MediaDecodeError):
        decode_audio(medium)


def short_sound(ending: str) -> bytes:
    rate = 48_000 if SOUNDS[ending][1] == "libopus" else 22_050
    return sound_file(ending, tone(0.4, rate)[None], rate)


SAMPLES = {ending: short_sound(ending) for ending in SOUNDS}


@settings(max_examples=200, deadline=2_000)
@given(st.sampled_from(sorted(SOUNDS)), st.floats(0, 1), st.data())
def test_damaged_sounds_end_in_an_error_or_a_sound(ending: str, kept: float, data: st.DataObject) -> None:
    damaged = bytearray(SAMPLES[ending][: max(1, round(kept * len(SAMPLES[ending])))])
    for _ in range(data.draw(st.integers(0, 6))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    waveform = outcome(lambda: decode_audio(bytes(damaged)))
    if isinstance(waveform, MediaError):
        assert "<bytes>" in str(waveform)
    else:
        assert len(waveform) > 0
        assert np.isfinite(waveform).all()


@settings(max_examples=60, deadline=2_000)
@given(st.binary(max_size=3_000))
def test_noise(data: bytes) -> None:
    with pytest.raises(MediaError):
        decode_audio(data)
