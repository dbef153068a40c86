"""A recording through the model: several pieces at once, their texts in order."""

from __future__ import annotations

import functools
import queue
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from cellmd.api import Model
from cellmd.errors import BusyError, CellmdError, UnsupportedModelError
from cellmd.processors.decode_audio import decode_audio
from cellmd.processors.sources import MediaLimits
from cellmd.runtime.job import NOBODY, Client, Job
from cellmd.runtime.result import Piece
from cellmd.runtime.scheduler import Scheduler
from cellmd.transcribe.formats import Segment
from cellmd.transcribe.pauses import RATE_HZ, Span

_TRANSCRIBE = "Transcribe the following speech segment{language}. Only output the transcription, with no newlines."
_TRANSLATE = (
    "Translate the following speech segment{language} into English. Only output the translation, with no newlines."
)
_TOKENS_A_SECOND = 12  # nobody speaks faster; an answer that goes on is no transcript
_TOKENS_BESIDE = 24
_BUSY_SECONDS = 0.2


@dataclass(frozen=True)
class Task:
    """translate: into English. language: the one spoken, None to leave it to the model. hint: words that may occur."""

    translate: bool = False
    language: str | None = None
    hint: str = ""
    temperature: float = 0.0

    @property
    def instruction(self) -> str:
        form = _TRANSLATE if self.translate else _TRANSCRIBE
        text = form.format(language=f" in {self.language}" if self.language else "")
        return f"{text} Names and words that may occur: {self.hint}" if self.hint else text


def read(medium: Any, model: Model, limits: MediaLimits | None = None) -> np.ndarray:
    """A recording's sound, float32 (n,) at RATE_HZ. Raises MediaError, UnsupportedModelError."""
    if model.config.audio is None:
        raise UnsupportedModelError(f"{model.path}: this model has no audio tower and cannot hear")
    if model.processor.config.audio.sample_rate_hz != RATE_HZ:
        raise UnsupportedModelError(f"{model.path}: recordings are cut at {RATE_HZ} Hz, the model hears another rate")
    return decode_audio(medium, limits, RATE_HZ)


def transcribe(
    model: Model,
    scheduler: Scheduler,
    waveform: np.ndarray,
    spans: list[Span],
    task: Task,
    *,
    at_once: int,
    client: Client = NOBODY,
    stopped: Callable[[], bool] = lambda: False,
) -> Iterator[Segment]:
    """The segments of the spans, in order, as they are done; at_once of them are in the scheduler at a time.

    Ends early once `stopped` is true. Raises BusyError if the scheduler's queue is full at the beginning; later this
    waits for its turn.
    """
    heard: queue.SimpleQueue[tuple[int, Piece | CellmdError]] = queue.SimpleQueue()
    running: dict[int, Job] = {}
    said: dict[int, list[str]] = {}
    done: set[int] = set()
    asked = given = 0

    def ask(number: int) -> Job:
        span = spans[number]
        sound = (waveform[span.start : span.stop], RATE_HZ)
        parts = [{"type": "audio", "audio": sound}, {"type": "text", "text": task.instruction}]
        n_tokens = _TOKENS_BESIDE + int(_TOKENS_A_SECOND * (span.stop_s - span.start_s))
        messages = [{"role": "user", "content": parts}]
        request = model.request(messages, client, max_tokens=n_tokens, temperature=task.temperature, seed=0)
        return scheduler.submit(request, functools.partial(_put, heard, number))

    try:
        while given < len(spans) and not stopped():
            while asked < len(spans) and len(running) < at_once:
                try:
                    running[asked] = ask(asked)
                except BusyError:
                    if not asked:
                        raise
                    break
                said[asked] = []
                asked += 1
            if not running:
                time.sleep(_BUSY_SECONDS)
                continue
            try:
                number, what = heard.get(timeout=_BUSY_SECONDS)
            except queue.Empty:
                continue
            if isinstance(what, CellmdError):
                raise what
            said[number].append(what.text)
            if what.finish_reason is not None:
                done.add(number)
                del running[number]
            while given in done:
                span, text = spans[given], " ".join("".join(said.pop(given)).split())
                given += 1
                yield Segment(round(span.start_s, 3), round(span.stop_s, 3), text)
    finally:
        for job in running.values():
            job.cancel()


def _put(heard: queue.SimpleQueue[Any], number: int, what: Piece | CellmdError) -> None:
    heard.put((number, what))
