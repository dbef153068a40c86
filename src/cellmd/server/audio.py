"""POST /v1/audio/transcriptions and /v1/audio/translations: recordings of any length within the server's bounds."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator
from typing import Any, Literal

from pydantic import ConfigDict, Field
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, PlainTextResponse, Response

from cellmd.runtime.job import Client
from cellmd.server.chat import client_of
from cellmd.server.engine import Engine, while_there
from cellmd.server.errors import ApiError
from cellmd.server.events import DONE, event, event_stream
from cellmd.server.replies import (
    DurationUsage,
    TranscribedSegment,
    TranscriptDelta,
    TranscriptDone,
    Transcription,
    VerboseTranscription,
)
from cellmd.server.schemas import Form, parse_object
from cellmd.transcribe.formats import Segment, as_srt, as_vtt
from cellmd.transcribe.languages import language_name
from cellmd.transcribe.pauses import RATE_HZ, pieces
from cellmd.transcribe.recording import Task, read, transcribe

_MOST_FIELDS = 32
_NOTHING = object()
_GRANULARITIES = ("timestamp_granularities[]", "timestamp_granularities")


class AudioRequest(Form):
    model_config = ConfigDict(strict=False)  # the fields of a form are texts

    file: Any = Field(
        description="the recording: a sound or a film", json_schema_extra={"type": "string", "format": "binary"}
    )
    model: str = ""
    language: str | None = Field(
        None, max_length=64, pattern=r"^[A-Za-z -]*$", description="spoken: its code (ISO 639-1) or its English name"
    )
    prompt: str | None = Field(None, max_length=2000, description="words that may occur")
    response_format: Literal["json", "text", "srt", "vtt", "verbose_json"] = "json"
    temperature: float = Field(0.0, ge=0, le=100)
    stream: bool = Field(False, description="segments as server-sent events, as they are heard")
    timestamp_granularities: list[Literal["segment", "word"]] = Field(
        [], alias="timestamp_granularities[]", max_length=2, description="segment; word is refused: see the manual"
    )


async def transcriptions(http: HttpRequest) -> Response:
    return await _heard(http, translate=False)


async def translations(http: HttpRequest) -> Response:
    return await _heard(http, translate=True)


async def _heard(http: HttpRequest, *, translate: bool) -> Response:
    engine: Engine = http.app.state.engine
    asked, sound = await _form(http)
    if "word" in asked.timestamp_granularities:
        raise ApiError(
            400,
            "timestamp_granularities: the model writes what it hears and does not say when each word was spoken; times "
            "of words would be made up. `segment` gives the times of passages between pauses",
            code="unsupported_parameter",
            param="timestamp_granularities",
        )
    language = language_name(asked.language) if asked.language else None
    waveform = await engine.in_thread(read, sound, engine.model, engine.settings.media_limits)
    task = Task(translate, language, asked.prompt or "", asked.temperature)
    hearing = Hearing(engine, waveform, task, client_of(http))
    seconds = len(waveform) / RATE_HZ
    if asked.stream:
        await hearing.begun(http)
        return event_stream(hearing, _events(hearing, seconds))
    return _shown(asked, await hearing.whole(http), seconds, task)


class Hearing:
    """The segments of a recording as they are heard, in order, those without words left out. `close` ends it early."""

    def __init__(self, engine: Engine, waveform: Any, task: Task, client: Client) -> None:
        self._found: asyncio.Queue[Segment | Exception | None] = asyncio.Queue()
        self._first: Any = _NOTHING
        self._stop = threading.Event()
        self._loop = asyncio.get_running_loop()
        self._seconds = engine.settings.answer_seconds
        self._ends = self._loop.time() + self._seconds
        engine.hold_recording(len(waveform) / RATE_HZ)
        # A thread of its own: one that waits for others would wait for all of theirs.
        threading.Thread(target=self._hear, args=(engine, waveform, task, client), daemon=True).start()

    def _hear(self, engine: Engine, waveform: Any, task: Task, client: Client) -> None:
        last: Exception | None = None
        n_slots, stopped = engine.scheduler.n_slots, self._stop.is_set
        try:
            spans = pieces(waveform, lambda _: not stopped())
            options: dict[str, Any] = {"at_once": n_slots, "client": client, "stopped": stopped}
            for segment in transcribe(engine.model, engine.scheduler, waveform, spans, task, **options):
                self._loop.call_soon_threadsafe(self._found.put_nowait, segment)
        except Exception as error:
            last = error
        with contextlib.suppress(RuntimeError):  # the loop has ended with the server
            self._loop.call_soon_threadsafe(self._ended, engine, len(waveform) / RATE_HZ, last)

    def _ended(self, engine: Engine, seconds: float, last: Exception | None) -> None:
        engine.release_recording(seconds)
        self._found.put_nowait(last)

    async def __aiter__(self) -> AsyncIterator[Segment]:
        while True:
            found = self._first if self._first is not _NOTHING else await self._next()
            self._first = _NOTHING
            if isinstance(found, Exception):
                raise found
            if found is None:
                return
            if found.text:
                yield found

    async def _next(self) -> Segment | Exception | None:
        try:
            return await asyncio.wait_for(self._found.get(), self._ends - self._loop.time())
        except TimeoutError:
            return ApiError(504, f"the recording took longer than {self._seconds:g} s", code="timeout")

    async def begun(self, http: HttpRequest) -> None:
        """Returns once there is a segment. What goes wrong before that is raised: it still has a status of its own."""
        try:
            self._first = await while_there(http, self._next())
            if isinstance(self._first, Exception):
                raise self._first
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._stop.set()

    async def whole(self, http: HttpRequest) -> list[Segment]:
        """All segments. Raises ApiError if the client leaves."""
        try:
            return await while_there(http, self._all())
        finally:
            self.close()

    async def _all(self) -> list[Segment]:
        return [segment async for segment in self]


async def _events(hearing: Hearing, seconds: float) -> AsyncIterator[str]:
    texts: list[str] = []
    async for segment in hearing:
        more = f" {segment.text}" if texts else segment.text
        delta: TranscriptDelta = {"type": "transcript.text.delta", "delta": more}
        yield event(delta)
        texts.append(segment.text)
    done: TranscriptDone = {"type": "transcript.text.done", "text": " ".join(texts), "usage": _usage(seconds)}
    yield event(done)
    yield DONE


def _usage(seconds: float) -> DurationUsage:
    return {"type": "duration", "seconds": round(seconds, 3)}


async def _form(http: HttpRequest) -> tuple[AudioRequest, bytes]:
    if not http.headers.get("content-type", "").startswith("multipart/form-data"):
        raise ApiError(400, "send the recording as multipart/form-data", code="invalid_value")
    try:
        async with http.form(max_files=1, max_fields=_MOST_FIELDS) as form:
            fields: dict[str, Any] = {key: value for key, value in form.items() if isinstance(value, str)}
            granularities = [value for key in _GRANULARITIES for value in form.getlist(key)]
            asked = parse_object({**fields, "file": None, _GRANULARITIES[0]: granularities}, AudioRequest)
            file = form.get("file")
            if not isinstance(file, UploadFile):
                raise ApiError(400, "file: the recording is missing", code="invalid_value", param="file")
            return asked, await file.read()
    except (HTTPException, ClientDisconnect) as error:
        raise ApiError(400, f"the form cannot be read: {error}", code="invalid_value") from None


def _shown(asked: AudioRequest, segments: list[Segment], seconds: float, task: Task) -> Response:
    text = " ".join(segment.text for segment in segments)
    if asked.response_format == "text":
        return PlainTextResponse(text + "\n")
    if asked.response_format == "srt":
        return PlainTextResponse(as_srt(segments), media_type="application/x-subrip")
    if asked.response_format == "vtt":
        return PlainTextResponse(as_vtt(segments), media_type="text/vtt")
    if asked.response_format == "json":
        plain: Transcription = {"text": text, "usage": _usage(seconds)}
        return JSONResponse(plain)
    shown: list[TranscribedSegment] = [
        {"id": i, "start": s.start_s, "end": s.stop_s, "text": s.text} for i, s in enumerate(segments)
    ]
    verbose: VerboseTranscription = {
        "task": "translate" if task.translate else "transcribe",
        "language": (task.language or "").lower(),
        "duration": round(seconds, 3),
        "text": text,
        "segments": shown,
    }
    return JSONResponse(verbose)
