"""Recordings at the interface: every form of transcript, streamed or not, and what is refused."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest

import cellmd
from cellmd.errors import ArgumentError
from cellmd.transcribe.languages import language_name
from cellmd.transcribe.pauses import RATE_HZ
from live_server import Live, until
from spoken import recording, silence, voice, wav


def test_openais_client(client: openai.OpenAI) -> None:
    file = ("talk.wav", wav(recording()))
    create: Any = client.audio.transcriptions.create
    verbose = create(model="tiny", file=file, response_format="verbose_json")
    assert verbose.duration == pytest.approx(len(recording()) / RATE_HZ, abs=0.01)
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


def test_a_streamed_transcript(client: openai.OpenAI, live: Live) -> None:
    file = ("talk.wav", wav(recording()))
    whole = client.audio.transcriptions.create(model="tiny", file=file).text
    events: list[Any] = list(client.audio.transcriptions.create(model="tiny", file=file, stream=True))
    deltas = [event.delta for event in events if event.type == "transcript.text.delta"]
    assert len(deltas) == 4
    assert "".join(deltas) == whole == events[-1].text
    assert events[-1].type == "transcript.text.done"
    with pytest.raises(openai.BadRequestError):
        client.audio.transcriptions.create(model="tiny", file=("x.wav", b"no sound"), stream=True)
    until(lambda: live.counts.running == 0)


def test_a_client_that_leaves_ends_its_transcript(live: Live) -> None:
    before = live.counts.finished
    files = {"file": ("talk.wav", wav(np.concatenate([recording()] * 8)))}
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
