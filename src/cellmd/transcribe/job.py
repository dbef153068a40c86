"""One recording to one transcript, with progress, and gone on with after an interruption.

While the work goes on, every finished segment is a line of TARGET.part; its first line says of what sound, model and
task they are. A later run with the same goes on after them. It stays until `forget`, so that of several recordings none
that is finished is heard again.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
from tqdm import tqdm

from cellmd.api import Model
from cellmd.processors.sources import MediaLimits
from cellmd.runtime.scheduler import Scheduler
from cellmd.transcribe.formats import FORMATS, Segment
from cellmd.transcribe.pauses import RATE_HZ, Span, pieces
from cellmd.transcribe.recording import Task, read, transcribe

_LIMITS = MediaLimits(max_audio_seconds=24 * 3600.0, max_video_seconds=24 * 3600.0)


def transcribe_file(
    model: Model, scheduler: Scheduler, file: Path, task: Task, target: Path | None, at_once: int
) -> list[Segment]:
    """The segments with words of a recording. target: where the transcript is written, in the form of its suffix; what
    is done is kept beside it until `forget`."""
    began = time.perf_counter()
    waveform = read(file, model, _LIMITS)
    spans = _pieces(waveform, file.name)
    journal = None if target is None else _Journal(_journal_of(target), _identity(waveform, model, task))
    segments = journal.segments if journal is not None else []
    todo = spans[len(segments) :]
    seconds_todo = sum(span.stop_s - span.start_s for span in todo)
    with tqdm(total=round(seconds_todo), unit="s", desc=file.name, disable=None) as bar:
        heard = 0.0
        for segment in transcribe(model, scheduler, waveform, todo, task, at_once=at_once):
            segments.append(segment)
            if journal is not None:
                journal.add(segment)
            heard += segment.stop_s - segment.start_s
            bar.n = round(heard)
            bar.set_postfix_str(f"{heard / (time.perf_counter() - began):.2f} times real time")
    spoken = [segment for segment in segments if segment.text]
    if target is not None and journal is not None:
        journal.close()
        whole = target.with_name(target.name + ".new")  # the transcript appears whole or not at all
        whole.write_text(FORMATS[target.suffix.removeprefix(".")](spoken), encoding="utf-8")
        whole.replace(target)
    return spoken


def forget(target: Path) -> None:
    """There is nothing to go on with any more."""
    _journal_of(target).unlink(missing_ok=True)


def _journal_of(target: Path) -> Path:
    return target.with_name(target.name + ".part")


def _pieces(waveform: np.ndarray, name: str) -> list[Span]:
    with tqdm(total=len(waveform) // RATE_HZ, unit="s", desc=f"{name}: pauses", disable=None, leave=False) as bar:

        def looked(seconds: float) -> bool:
            bar.update(round(seconds) - bar.n)
            return True

        return pieces(waveform, looked)


def _identity(waveform: np.ndarray, model: Model, task: Task) -> str:
    digest = hashlib.sha256(np.ascontiguousarray(waveform).data)
    status = os.stat(model.path)
    digest.update(f"{status.st_size} {status.st_mtime_ns} {task} {RATE_HZ} silero".encode())
    return digest.hexdigest()


class _Journal:
    """The finished segments of a transcript that is not finished. segments: those of an earlier run."""

    def __init__(self, path: Path, identity: str) -> None:
        self._path = path
        self.segments = list(self._earlier(identity))
        self._file = path.open("w", encoding="utf-8")
        self._write({"identity": identity})
        for segment in self.segments:
            self._write(asdict(segment))

    def add(self, segment: Segment) -> None:
        self._write(asdict(segment))

    def close(self) -> None:
        self._file.close()

    def _write(self, content: dict[str, object]) -> None:
        self._file.write(json.dumps(content, ensure_ascii=False) + "\n")
        self._file.flush()

    def _earlier(self, identity: str) -> Iterator[Segment]:
        """Up to the first line that was not written whole."""
        try:
            lines = self._path.read_text(encoding="utf-8").split("\n")[:-1]
            if not lines or json.loads(lines[0]) != {"identity": identity}:
                return
            for line in lines[1:]:
                yield Segment(**json.loads(line))
        except (OSError, ValueError, TypeError):
            return
