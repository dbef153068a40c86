"""POST /v1/audio/transcriptions and /v1/audio/translations: recordings of any length within the server's bounds."""

from __future__ import annotations

import asyncio
import threading
from typing import Any, Literal

from pydantic import Field
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, PlainTextResponse, Response

from cellmd.server.chat import client_of
from cellmd.server.engine import Engine, left
from cellmd.server.errors import ApiError
from cellmd.server.schemas import Form, parse_object
from cellmd.transcribe.formats import Segment, as_srt, as_vtt
from cellmd.transcribe.pauses import RATE_HZ, pieces
from cellmd.transcribe.recording import Task, read, transcribe

_MOST_FIELDS = 32


class AudioRequest(Form):
    file: Any = Field(
        description="the recording: a sound or a film", json_schema_extra={"type": "string", "format": "binary"}
    )
    model: str = ""
    language: str | None = Field(None, max_length=64, pattern=r"^[A-Za-z -]*$")
    prompt: str | None = Field(None, max_length=2000, description="words that may occur")
    response_format: Literal["json", "text", "srt", "vtt", "verbose_json"] = "json"
    temperature: float = Field(0.0, ge=0, le=100)


async def transcriptions(http: HttpRequest) -> Response:
    return await _heard(http, translate=False)


async def translations(http: HttpRequest) -> Response:
    return await _heard(http, translate=True)


async def _heard(http: HttpRequest, *, translate: bool) -> Response:
    engine: Engine = http.app.state.engine
    asked, sound = await _form(http)
    waveform = await engine.in_thread(read, sound, engine.model, engine.settings.media_limits)
    spans = await engine.in_thread(pieces, waveform)
    task = Task(translate, asked.language or None, asked.prompt or "", asked.temperature)
    stop = threading.Event()

    def hear() -> list[Segment]:
        return list(
            transcribe(
                engine.model,
                engine.scheduler,
                waveform,
                spans,
                task,
                at_once=engine.scheduler.n_slots,
                client=client_of(http),
                stopped=stop.is_set,
            )
        )

    hearing = asyncio.ensure_future(asyncio.to_thread(hear))
    leaving = asyncio.ensure_future(left(http))
    try:
        await asyncio.wait(
            (hearing, leaving), timeout=engine.settings.answer_seconds, return_when=asyncio.FIRST_COMPLETED
        )
        if not hearing.done():
            if leaving.done():
                raise ApiError(499, "the client left")
            raise ApiError(504, "the recording took too long", code="timeout")
        segments = hearing.result()
    finally:
        stop.set()
        leaving.cancel()
    return _shown(asked, [s for s in segments if s.text], len(waveform) / RATE_HZ, translate=translate)


async def _form(http: HttpRequest) -> tuple[AudioRequest, bytes]:
    if not http.headers.get("content-type", "").startswith("multipart/form-data"):
        raise ApiError(400, "send the recording as multipart/form-data", code="invalid_value")
    try:
        async with http.form(max_files=1, max_fields=_MOST_FIELDS) as form:
            asked = parse_object(
                {key: value for key, value in form.items() if isinstance(value, str)} | {"file": None}, AudioRequest
            )
            file = form.get("file")
            if not isinstance(file, UploadFile):
                raise ApiError(400, "file: the recording is missing", code="invalid_value", param="file")
            return asked, await file.read()
    except (HTTPException, ClientDisconnect) as error:
        raise ApiError(400, f"the form cannot be read: {error}", code="invalid_value") from None


def _shown(asked: AudioRequest, segments: list[Segment], seconds: float, *, translate: bool) -> Response:
    text = " ".join(segment.text for segment in segments)
    if asked.response_format == "text":
        return PlainTextResponse(text + "\n")
    if asked.response_format == "srt":
        return PlainTextResponse(as_srt(segments), media_type="application/x-subrip")
    if asked.response_format == "vtt":
        return PlainTextResponse(as_vtt(segments), media_type="text/vtt")
    if asked.response_format == "json":
        return JSONResponse({"text": text, "usage": {"type": "duration", "seconds": round(seconds, 3)}})
    return JSONResponse(
        {
            "task": "translate" if translate else "transcribe",
            "language": asked.language or "",
            "duration": round(seconds, 3),
            "text": text,
            "segments": [
                {"id": i, "start": s.start_s, "end": s.stop_s, "text": s.text} for i, s in enumerate(segments)
            ],
        }
    )
