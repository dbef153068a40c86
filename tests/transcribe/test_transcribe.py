"""Long recordings: heard in pieces, written down in order, gone on with after a stop."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import subprocess
import sys
import termios
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cellmd
from cellmd.cli.main import main
from cellmd.processors.decode_audio import decode_audio
from cellmd.runtime.scheduler import Scheduler
from cellmd.transcribe.formats import Segment, as_json, as_srt, as_text, as_vtt
from cellmd.transcribe.job import transcribe_file
from cellmd.transcribe.pauses import RATE_HZ, Span, pieces
from cellmd.transcribe.recording import Task, transcribe
from live_server import until
from noises import heard
from spoken import recording, silence, voice, wav

# ---- what is written ------------------------------------------------------------------------------------

BENCH = Path(__file__).parents[2] / "bench"
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


def test_pieces_heard_together_are_those_heard_alone(scheduler: tuple[cellmd.Model, Scheduler]) -> None:
    waveform = recording()
    spans = pieces(waveform)
    together = list(transcribe(*scheduler, waveform, spans, Task(), at_once=3))
    alone = [s for span in spans for s in transcribe(*scheduler, waveform, [span], Task(), at_once=1)]
    assert [(s.start_s, s.stop_s) for s in together] == [(round(s.start_s, 3), round(s.stop_s, 3)) for s in spans]
    if scheduler[0].backend == "cpu":  # bit for bit
        assert together == alone
    assert all("\n" not in segment.text for segment in together)


def test_a_transcription_that_is_stopped_frees_its_slots(scheduler: tuple[cellmd.Model, Scheduler]) -> None:
    waveform = recording()
    segments = transcribe(*scheduler, waveform, pieces(waveform), Task(), at_once=3)
    next(segments)
    segments.close()
    until(lambda: scheduler[1].counts.running == 0)
    assert list(transcribe(*scheduler, waveform, pieces(waveform), Task(), at_once=3, stopped=lambda: True)) == []


MEDIA = files("cellmd.demo") / "media"
TRUTH = json.loads((MEDIA / "truth.json").read_text())["sentence.wav"]["answer"]


def test_music_makes_no_words(tmp_path: Path, demo: Path) -> None:
    said = decode_audio((MEDIA / "sentence.wav").read_bytes())
    band, noise = (heard(what, 10).astype(np.float32) for what in ("band", "noise"))
    with cellmd.load(demo, context=1024) as model:
        scheduler = model.scheduler(slots=3)
        for parts, want in (([band, silence(3), noise], []), ([band, silence(3), said, silence(3), noise], [TRUTH])):
            (tmp_path / "talk.wav").write_bytes(wav(np.concatenate(parts)))
            segments = transcribe_file(model, scheduler, tmp_path / "talk.wav", Task(), None, 3)
            assert [segment.text for segment in segments] == want


def test_words_are_neither_lost_nor_doubled(tmp_path: Path, demo: Path) -> None:
    """The small trained model that comes with cellmd hears one sentence at a time, so the pauses are long."""
    sentence = decode_audio((MEDIA / "sentence.wav").read_bytes())
    talk = np.concatenate([silence(1), *[x for _ in range(4) for x in (sentence, silence(4))]])
    (tmp_path / "talk.wav").write_bytes(wav(talk))
    with cellmd.load(demo, context=1024) as model:
        scheduler = model.scheduler(slots=3)
        segments = transcribe_file(model, scheduler, tmp_path / "talk.wav", Task(), None, 3)
    assert [segment.text for segment in segments] == [TRUTH] * 4
    for i, segment in enumerate(segments):
        begin = 1 + i * (len(sentence) / RATE_HZ + 4)
        assert segment.start_s == pytest.approx(begin, abs=0.5)
        assert segment.stop_s == pytest.approx(begin + len(sentence) / RATE_HZ, abs=0.5)


def test_minutes_of_speech_silence_and_music(demo: Path) -> None:
    """The program that does the same with an hour: words, times, nothing made up, killed and gone on with, memory."""
    command = [sys.executable, str(BENCH / "recording.py"), str(demo), "--minutes", "3", "--threads", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(done.stdout)
    assert result["sentences"] > 8
    assert result["found"] == result["sentences"]
    assert result["invented"] == 0
    assert result["not_heard_again"] == result["killed_after"] > 0


# ---- the command ----------------------------------------------------------------------------------------


def test_the_command_writes_files_and_goes_on_where_it_was(
    tmp_path: Path, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "talk.wav").write_bytes(wav(recording()))
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


def test_progress_says_how_fast_it_goes(tmp_path: Path, path: Path) -> None:
    (tmp_path / "talk.wav").write_bytes(wav(np.concatenate([voice(3), silence(3), voice(3)])))
    command = [sys.executable, "-m", "cellmd.cli.main", "transcribe", str(tmp_path / "talk.wav"), "--model", str(path)]
    reads, writes = pty.openpty()
    termios.tcsetwinsize(writes, (24, 120))
    with subprocess.Popen([*command, "--context", "2048"], stdout=subprocess.PIPE, stderr=writes) as process:
        os.close(writes)
        shown = b""
        with contextlib.suppress(OSError):  # how a terminal ends
            while more := os.read(reads, 1 << 16):
                shown += more
        assert process.stdout is not None
        assert process.stdout.read()
    os.close(reads)
    assert process.returncode == 0
    assert re.search(r"talk.wav: 100%.* \d+\.\d\d times real time", shown.decode())


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
