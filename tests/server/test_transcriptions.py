"""Long recordings: cut at pauses without loss, heard in pieces, written down in order, gone on with after a stop."""

from __future__ import annotations

import contextlib
import functools
import io
import itertools
import json
import wave
from collections.abc import Iterator
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import cellmd
import music
from cellmd.cli.main import main
from cellmd.errors import ArgumentError
from cellmd.processors.decode_audio import decode_audio
from cellmd.runtime.scheduler import Scheduler
from cellmd.transcribe import pauses
from cellmd.transcribe.formats import Segment, as_json, as_srt, as_text, as_vtt
from cellmd.transcribe.job import transcribe_file
from cellmd.transcribe.languages import language_name
from cellmd.transcribe.pauses import MAX_SECONDS, RATE_HZ, Span, pieces, spans_of, speech
from cellmd.transcribe.recording import Task, transcribe
from live_server import Live, until


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


@pytest.fixture(scope="module")
def recording() -> np.ndarray:
    """Two pauses, one passage that is longer than the model hears at once, silence at both ends."""
    parts = [silence(2), voice(3), silence(4), voice(32, 1), silence(3), voice(2, 2), silence(5)]
    return np.concatenate(parts)


# ---- where it is cut ------------------------------------------------------------------------------------


def test_pieces_hold_all_speech_and_none_of_the_pauses(recording: np.ndarray) -> None:
    found = pieces(recording)
    spoken = [(2.0, 5.0), (9.0, 41.0), (44.0, 46.0)]
    assert len(found) == 4  # the long passage is two
    for start, stop in spoken:
        inside = [piece for piece in found if piece.start_s < stop and piece.stop_s > start]
        assert inside[0].start_s <= start + 0.1
        assert inside[-1].stop_s >= stop - 0.1
    assert sum(piece.stop_s - piece.start_s for piece in found) < 37 + 3 * 1.2
    assert all(piece.stop_s - piece.start_s <= MAX_SECONDS for piece in found)


SOUNDS = ["chords", "fast chords", "organ", "melody", "drums", "fast drums", "band", "strings"]
NOISES = ["nothing", "silence", "hum", "hiss", "noise", "deep noise", "noise in syllables", "click", "clicks", "steps"]


@pytest.mark.parametrize("what", [*SOUNDS, *NOISES])
def test_where_nobody_speaks_there_are_no_pieces(what: str) -> None:
    for level in (1.0, 0.1):
        assert pieces((level * heard(what)).astype(np.float32)) == []


def heard(what: str, seconds: float = 10.0) -> np.ndarray:
    """Music and noise, loud."""
    rng = np.random.default_rng(0)
    t = np.arange(int(seconds * RATE_HZ)) / RATE_HZ
    noise = rng.standard_normal(len(t))
    if what in SOUNDS:
        return music.SOUNDS[what](seconds, rng)
    spectrum = np.fft.rfft(noise) / np.sqrt(1 + np.arange(len(t) // 2 + 1))
    beats = [np.where((t * 2) % 1 < width, 1.0, 0.0) for width in (0.01, 0.08)]
    return {
        "nothing": t[:0],
        "silence": 0 * t,
        "hum": 0.1 * (np.sin(2 * np.pi * 50 * t) + 0.5 * np.sin(2 * np.pi * 150 * t)),
        "hiss": 1e-3 * noise,
        "noise": 0.1 * noise,
        "deep noise": 8 * np.fft.irfft(spectrum, len(t)),
        "noise in syllables": 0.1 * noise * (0.55 + 0.45 * np.sin(2 * np.pi * 4 * t)),
        "click": np.where((t > 2) & (t < 2.01), 0.9, 0.0),
        "clicks": 0.5 * beats[0],
        "steps": 0.3 * noise * beats[1],
    }[what]


@pytest.mark.parametrize("what", [*SOUNDS, "noise", "deep noise", "steps"])
def test_words_between_music_are_found_and_the_music_is_not(what: str) -> None:
    other = heard(what, 8).astype(np.float32)
    found = pieces(np.concatenate([other, silence(0.5), voice(5), silence(0.5), other]))
    assert found
    assert found[0].start_s > 8
    assert found[0].start_s < 8.8
    assert 13 < found[-1].stop_s < 14.5


@pytest.mark.parametrize("what", [*SOUNDS, "noise"])
def test_words_over_quiet_music_are_found(what: str) -> None:
    other = heard(what, 12)
    mixed = other * (0.03 / np.sqrt(np.mean(other**2)))  # the voice is about 15 dB above it
    mixed[4 * RATE_HZ : 8 * RATE_HZ] += voice(4)
    found = pieces(mixed.astype(np.float32))
    assert found
    assert 3.0 < found[0].start_s < 4.6
    assert 7.4 < found[-1].stop_s < 9.0


def test_a_recording_nobody_waits_for_is_not_looked_through() -> None:
    assert pieces(voice(40), lambda seconds: seconds < 20) == []


def test_a_long_passage_is_cut_where_it_is_quiet() -> None:
    waveform = np.concatenate([voice(20), 1e-4 * voice(0.3), voice(20, 1)])
    first = pauses._cut(waveform, Span(0, len(waveform)))[0]
    assert 20.0 <= first.stop_s <= 20.3


@given(st.lists(st.booleans(), max_size=400), st.integers(0, pauses._FRAME - 1))
def test_spans_hold_every_run_of_speech_and_never_touch(frames: list[bool], beyond: int) -> None:
    active = np.array(frames, dtype=bool)
    n_samples = max(0, len(active) * pauses._FRAME - beyond)
    spans = spans_of(active, n_samples)
    for before, after in itertools.pairwise(spans):
        assert before.stop < after.start
    covered = np.zeros(len(active) * pauses._FRAME, dtype=bool)
    for span in spans:
        assert 0 <= span.start < span.stop <= n_samples
        covered[span.start : span.stop] = True
    run = 0
    for i, spoken in enumerate([*frames, False]):
        if spoken:
            run += 1
        elif run >= 8:  # no run this long may be lost
            assert covered[(i - run) * pauses._FRAME : min(i * pauses._FRAME, n_samples)].all()
            run = 0
        else:
            run = 0


@given(st.integers(1, 100 * RATE_HZ), st.integers(0, 10))
@settings(max_examples=20, deadline=None)
def test_cutting_neither_doubles_nor_loses(n: int, seed: int) -> None:
    waveform = np.random.default_rng(seed).standard_normal(n).astype(np.float32)
    cuts = pauses._cut(waveform, Span(0, n))
    assert cuts[0].start == 0
    assert cuts[-1].stop == n
    assert all(a.stop == b.start for a, b in itertools.pairwise(cuts))
    assert all(0 < cut.stop - cut.start <= MAX_SECONDS * RATE_HZ for cut in cuts)


def test_speech_is_the_same_whatever_stands_around_it() -> None:
    one = speech(np.concatenate([silence(3), voice(2), silence(3)]))
    assert len(one) == 1
    assert 2.5 < one[0].start_s < 3.1
    assert 4.9 < one[0].stop_s < 5.6


# ---- what is written ------------------------------------------------------------------------------------

SEGMENTS = [Segment(0.0, 1.5, "One & <two>"), Segment(3600.25, 3661.9996, "--> three")]


def test_formats() -> None:
    assert as_text(SEGMENTS) == "One & <two>\n--> three\n"
    assert as_srt(SEGMENTS) == (
        "1\n00:00:00,000 --> 00:00:01,500\nOne & <two>\n\n2\n01:00:00,250 --> 01:01:02,000\n--> three\n"
    )
    assert as_vtt(SEGMENTS) == (
        "WEBVTT\n\n00:00:00.000 --> 00:00:01.500\nOne &amp; &lt;two&gt;\n\n"
        "01:00:00.250 --> 01:01:02.000\n--&gt; three\n"
    )
    assert json.loads(as_json(SEGMENTS))["segments"][1]["text"] == "--> three"


# ---- how it is heard ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scheduler(path: Path) -> Iterator[tuple[cellmd.Model, Scheduler]]:
    with cellmd.load(path, threads=1, context=2048) as model:
        scheduler = model.scheduler(slots=3)
        yield model, scheduler
        scheduler.close()


def test_pieces_heard_together_are_those_heard_alone(
    scheduler: tuple[cellmd.Model, Scheduler], recording: np.ndarray
) -> None:
    spans = pieces(recording)
    together = list(transcribe(*scheduler, recording, spans, Task(), at_once=3))
    alone = [s for span in spans for s in transcribe(*scheduler, recording, [span], Task(), at_once=1)]
    assert [(s.start_s, s.stop_s) for s in together] == [(round(s.start_s, 3), round(s.stop_s, 3)) for s in spans]
    if scheduler[0].backend == "cpu":  # bit for bit
        assert together == alone
    assert all("\n" not in segment.text for segment in together)


def test_a_transcription_that_is_stopped_frees_its_slots(
    scheduler: tuple[cellmd.Model, Scheduler], recording: np.ndarray
) -> None:
    segments = transcribe(*scheduler, recording, pieces(recording), Task(), at_once=3)
    next(segments)
    segments.close()
    until(lambda: scheduler[1].counts.running == 0)
    assert list(transcribe(*scheduler, recording, pieces(recording), Task(), at_once=3, stopped=lambda: True)) == []


def test_music_makes_no_words(tmp_path: Path) -> None:
    """With the small trained model, which says something whatever it is given to hear."""
    demo = files("cellmd.demo")
    with as_file(demo / "checkpoint") as checkpoint:
        cellmd.convert(checkpoint, tmp_path / "demo.cellmd")
    truth = json.loads((demo / "media" / "truth.json").read_text())["sentence.wav"]["answer"]
    said = decode_audio((demo / "media" / "sentence.wav").read_bytes())
    band, noise = (heard(what, 10).astype(np.float32) for what in ("band", "noise"))
    with cellmd.load(tmp_path / "demo.cellmd", context=1024) as model:
        scheduler = model.scheduler(slots=3)
        for parts, want in (([band, silence(3), noise], []), ([band, silence(3), said, silence(3), noise], [truth])):
            (tmp_path / "talk.wav").write_bytes(wav(np.concatenate(parts)))
            segments = transcribe_file(model, scheduler, tmp_path / "talk.wav", Task(), None, 3)
            assert [segment.text for segment in segments] == want


def test_words_are_neither_lost_nor_doubled(tmp_path: Path) -> None:
    """The small trained model that comes with cellmd hears one sentence at a time, so the pauses are long."""
    demo = files("cellmd.demo")
    with as_file(demo / "checkpoint") as checkpoint:
        cellmd.convert(checkpoint, tmp_path / "demo.cellmd")
    truth = json.loads((demo / "media" / "truth.json").read_text())["sentence.wav"]["answer"]
    sentence = decode_audio((demo / "media" / "sentence.wav").read_bytes())
    recording = np.concatenate([silence(1), *[x for _ in range(4) for x in (sentence, silence(4))]])
    (tmp_path / "talk.wav").write_bytes(wav(recording))
    with cellmd.load(tmp_path / "demo.cellmd", context=1024) as model:
        scheduler = model.scheduler(slots=3)
        segments = transcribe_file(model, scheduler, tmp_path / "talk.wav", Task(), None, 3)
    assert [segment.text for segment in segments] == [truth] * 4
    for i, segment in enumerate(segments):
        begin = 1 + i * (len(sentence) / RATE_HZ + 4)
        assert segment.start_s == pytest.approx(begin, abs=0.5)
        assert segment.stop_s == pytest.approx(begin + len(sentence) / RATE_HZ, abs=0.5)


# ---- the command ----------------------------------------------------------------------------------------


def test_the_command_writes_files_and_goes_on_where_it_was(
    tmp_path: Path, path: Path, recording: np.ndarray, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "talk.wav").write_bytes(wav(recording))
    command = ["transcribe", str(tmp_path / "talk.wav"), "--model", str(path), "--context", "2048", "--threads", "1"]
    assert main([*command, "--format", "srt"]) == 0
    whole = capsys.readouterr().out
    assert whole.count("-->") == 4

    output = tmp_path / "out"
    assert main([*command, "--format", "srt", "--output", str(output)]) == 0
    assert (output / "talk.srt").read_text() == whole
    assert [file.name for file in output.iterdir()] == ["talk.srt"]

    journal = output / "talk.srt.part"
    with pytest.MonkeyPatch.context() as patch:
        from cellmd.transcribe import job

        real = job.transcribe

        def interrupted(*arguments: Any, **options: Any) -> Iterator[Segment]:
            for i, segment in enumerate(real(*arguments, **options)):
                if i == 2:
                    raise KeyboardInterrupt
                yield segment

        patch.setattr(job, "transcribe", interrupted)
        assert main([*command, "--format", "srt", "--output", str(output)]) == 130
    lines = journal.read_text().splitlines()
    assert len(lines) == 3
    lines[2] = lines[2].replace('"text": "', '"text": "KEPT ')
    journal.write_text("\n".join(lines) + '\n{"start_s": 5')  # the last line was cut short
    assert main([*command, "--format", "srt", "--output", str(output)]) == 0
    again = (output / "talk.srt").read_text()
    assert again.replace("KEPT ", "") == whole
    assert "KEPT" in again
    assert not journal.exists()


def test_of_several_recordings_none_that_is_finished_is_heard_again(
    tmp_path: Path, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cellmd.transcribe import job

    names = ["one", "two\u2028"]  # a separator of lines to some, and a name like others
    for name in names:
        (tmp_path / f"{name}.wav").write_bytes(wav(voice(3)))
    files, output = [str(tmp_path / f"{name}.wav") for name in names], tmp_path / "out"
    command = ["transcribe", *files, "--model", str(path), "--context", "2048", "--threads", "1", "--format", "json"]
    heard: list[int] = []
    real = job.transcribe

    def counted(model: Any, scheduler: Any, waveform: Any, spans: list[Span], *rest: Any, **options: Any) -> Any:
        heard.append(len(spans))
        if len(heard) == 2:
            raise KeyboardInterrupt
        for segment in real(model, scheduler, waveform, spans, *rest, **options):
            yield Segment(segment.start_s, segment.stop_s, "said\u2028so")

    monkeypatch.setattr(job, "transcribe", counted)
    assert main([*command, "--output", str(output)]) == 130
    assert main([*command, "--output", str(output)]) == 0
    assert heard == [1, 1, 0, 1]  # the first, the one that was interrupted, nothing, that one again
    assert sorted(file.name for file in output.iterdir()) == [f"{name}.json" for name in names]
    for name in names:
        assert json.loads((output / f"{name}.json").read_text())["segments"][0]["text"] == "said\u2028so"


def test_silence_yields_nothing(tmp_path: Path, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "quiet.wav").write_bytes(wav(silence(3)))
    assert main(["transcribe", str(tmp_path / "quiet.wav"), "--model", str(path), "--context", "2048"]) == 0
    assert capsys.readouterr().out == ""


def test_the_commands_errors(tmp_path: Path, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["transcribe", "none.wav", "--model", str(path)]) == 1
    assert "none.wav: no such file" in capsys.readouterr().err
    twice = ["a/x.wav", "b/x.mp3", "--output", str(tmp_path)]
    assert main(["transcribe", *twice, "--model", str(path)]) == 1
    assert "two recordings" in capsys.readouterr().err


# ---- the interface --------------------------------------------------------------------------------------


def test_openais_client(client: openai.OpenAI, recording: np.ndarray) -> None:
    file = ("talk.wav", wav(recording))
    create: Any = client.audio.transcriptions.create
    verbose = create(model="tiny", file=file, response_format="verbose_json")
    assert verbose.duration == pytest.approx(len(recording) / RATE_HZ, abs=0.01)
    assert [segment.start for segment in verbose.segments] == sorted(segment.start for segment in verbose.segments)
    assert len(verbose.segments) == 4
    file = ("short.wav", wav(np.concatenate([silence(1), voice(2), silence(3), voice(2)])))
    text = create(model="tiny", file=file).text
    assert text
    assert create(model="tiny", file=file, response_format="text").strip() == text
    assert create(model="tiny", file=file, response_format="srt").count("-->") == 2
    assert create(model="tiny", file=file, response_format="vtt").startswith("WEBVTT\n")
    assert client.audio.translations.create(model="tiny", file=file).text
    assert create(model="tiny", file=("quiet.wav", wav(silence(2)))).text == ""


def test_a_streamed_transcript(client: openai.OpenAI, live: Live, recording: np.ndarray) -> None:
    file = ("talk.wav", wav(recording))
    whole = client.audio.transcriptions.create(model="tiny", file=file).text
    events: list[Any] = list(client.audio.transcriptions.create(model="tiny", file=file, stream=True))
    deltas = [event.delta for event in events if event.type == "transcript.text.delta"]
    assert len(deltas) == 4
    assert "".join(deltas) == whole == events[-1].text
    assert events[-1].type == "transcript.text.done"
    with pytest.raises(openai.BadRequestError):
        client.audio.transcriptions.create(model="tiny", file=("x.wav", b"no sound"), stream=True)
    until(lambda: live.counts.running == 0)


def test_a_client_that_leaves_ends_its_transcript(live: Live, recording: np.ndarray) -> None:
    before = live.counts.finished
    files = {"file": ("talk.wav", wav(np.concatenate([recording] * 8)))}
    address = f"{live.url}/v1/audio/transcriptions"
    for stream in ("true", "false"):
        with live.slowed(), contextlib.suppress(httpx.ReadTimeout), contextlib.ExitStack() as leaving:
            request = httpx.stream("POST", address, data={"stream": stream}, files=files, timeout=1.0)
            next(leaving.enter_context(request).iter_lines())
        until(lambda: live.counts.running == 0)
    assert live.counts.finished - before < 2 * 8 * 4


def test_recordings_that_together_are_too_long_are_refused(path: Path) -> None:
    with cellmd.load(path, threads=1, context=2048) as model:
        live = Live(model, max_media_seconds=10.0)
        try:

            def ask(seconds: float) -> httpx.Response:
                files = {"file": ("talk.wav", wav(voice(seconds)))}
                return httpx.post(f"{live.url}/v1/audio/transcriptions", files=files, timeout=60)

            live.engine.hold_recording(7.0)  # as one does that is being heard
            refused = ask(4)
            assert refused.status_code == 503
            assert refused.json()["error"]["code"] == "overloaded"
            assert int(refused.headers["retry-after"]) > 0
            assert ask(2).status_code == 200
            live.engine.release_recording(7.0)
            assert [ask(8).status_code for _ in range(2)] == [200, 200]
            assert ask(11).json()["error"]["code"] == "invalid_media"
        finally:
            live.close()


@pytest.mark.parametrize("granularities", [["word"], ["word", "segment"], ["segment"]])
def test_times_of_words_are_not_made_up(client: openai.OpenAI, granularities: Any) -> None:
    options: Any = {"response_format": "verbose_json", "timestamp_granularities": granularities}
    create: Any = client.audio.transcriptions.create
    if "word" in granularities:
        with pytest.raises(openai.BadRequestError, match="made up") as error:
            create(model="tiny", file=("x.wav", wav(voice(2))), **options)
        assert error.value.param == "timestamp_granularities"
    else:
        assert len(create(model="tiny", file=("x.wav", wav(voice(2))), **options).segments) == 1


def test_languages_by_code_and_by_name(client: openai.OpenAI) -> None:
    assert [language_name(one) for one in ("de", "pt-BR", "Welsh", "HT")] == [
        *("German", "Portuguese", "Welsh", "Haitian Creole")
    ]
    with pytest.raises(ArgumentError, match="xx"):
        language_name("xx-YY")
    create: Any = client.audio.transcriptions.create
    file = ("x.wav", wav(voice(2)))
    heard = {
        one: create(model="tiny", file=file, language=one, response_format="verbose_json") for one in ("de", "German")
    }
    assert heard["de"].language == "german"
    assert heard["de"].text == heard["German"].text


@pytest.mark.parametrize(
    ("form", "files"),
    [
        ({"timestamp_granularities[]": "letter"}, {"file": ("x.wav", wav(silence(1)))}),
        ({"stream": "perhaps"}, {"file": ("x.wav", wav(silence(1)))}),
        ({}, None),
        ({"file": "a text"}, None),
        ({}, {"file": ("x.wav", b"no sound")}),
        ({"response_format": "poem"}, {"file": ("x.wav", wav(silence(1)))}),
        ({"temperature": "x"}, {"file": ("x.wav", wav(silence(1)))}),
        ({"language": "ignore all; " * 20}, {"file": ("x.wav", wav(silence(1)))}),
        ({"language": "xx"}, {"file": ("x.wav", wav(silence(1)))}),
    ],
)
def test_wrong_forms(live: Live, form: dict[str, str], files: Any) -> None:
    answer = httpx.post(f"{live.url}/v1/audio/transcriptions", data=form, files=files, timeout=60)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"]


def test_a_broken_multipart_body(live: Live) -> None:
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    for body in (b"", b"--x", b"--x\r\nContent-Disposition: form-data; name=file", b"\x00" * 1000):
        answer = httpx.post(f"{live.url}/v1/audio/transcriptions", content=body, headers=headers, timeout=60)
        assert answer.status_code == 400
    headers = {"Content-Type": "multipart/form-data"}
    assert httpx.post(f"{live.url}/v1/audio/transcriptions", content=b"x", headers=headers).status_code == 400
