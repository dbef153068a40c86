"""A transcript as text, SubRip, WebVTT or JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Segment:
    """What is said from start_s to stop_s."""

    start_s: float
    stop_s: float
    text: str


def as_text(segments: Sequence[Segment]) -> str:
    return "".join(f"{segment.text}\n" for segment in segments)


def as_srt(segments: Sequence[Segment]) -> str:
    return "\n".join(
        f"{i}\n{_clock(s.start_s, ',')} --> {_clock(s.stop_s, ',')}\n{s.text}\n" for i, s in enumerate(segments, 1)
    )


def as_vtt(segments: Sequence[Segment]) -> str:
    cues = [f"{_clock(s.start_s, '.')} --> {_clock(s.stop_s, '.')}\n{_escaped(s.text)}\n" for s in segments]
    return "\n".join(["WEBVTT\n", *cues])


def as_json(segments: Sequence[Segment]) -> str:
    return json.dumps({"segments": [asdict(segment) for segment in segments]}, ensure_ascii=False, indent=1) + "\n"


FORMATS: dict[str, Callable[[Sequence[Segment]], str]] = {"txt": as_text, "srt": as_srt, "vtt": as_vtt, "json": as_json}


def _clock(seconds: float, point: str) -> str:
    ms = round(seconds * 1000)
    return f"{ms // 3_600_000:02}:{ms // 60_000 % 60:02}:{ms // 1000 % 60:02}{point}{ms % 1000:03}"


def _escaped(text: str) -> str:
    """WebVTT has markup: a text that looks like it stays text, and `-->` would end the cue's head."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
