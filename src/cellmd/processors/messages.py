"""What a user says, in any of the accepted forms, to plain messages for the template and a list of media.

A plain string is one user message, its media before the text: pictures, then sounds, then films. Messages are
`{"role": ..., "content": text or parts}`; a part is a string, `{"type": "text", "text": ...}` or a medium,
`{"type": "image" | "audio" | "video"}`. A medium stands in its part under its type's name or "url", "path" or "data"
(bytes or base64), or is taken from the lists `images`, `audio`, `videos`, in order. The forms of OpenAI's interface
(`image_url`, `input_audio`, `video_url`, tool arguments as JSON text) are understood as well.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, get_args

from cellmd.errors import PromptError
from cellmd.processors.features import MediaKind

_ROLES = ("system", "developer", "user", "assistant", "tool")
_KINDS: dict[str, MediaKind] = {
    "image": "image",
    "image_url": "image",
    "audio": "audio",
    "input_audio": "audio",
    "video": "video",
    "video_url": "video",
}
_MOST_NESTED = 64


@dataclass(frozen=True)
class MediaPart:
    """A medium in its place. sound_of_film: the medium is a film, and only its sound, if it has any, is meant."""

    kind: MediaKind
    medium: Any
    sound_of_film: bool = False


@dataclass(frozen=True)
class Conversation:
    """Messages as plain JSON data, media parts reduced to `{"type": kind}`, and the media in the same order."""

    messages: list[dict[str, Any]]
    media: list[MediaPart]


def media_list(media: Any) -> list[Any]:
    """A list of media, also from a single one (a path, bytes, file, picture, array, or array with its rate)."""
    if media is None:
        return []
    with_rate = (
        isinstance(media, tuple) and len(media) == 2 and hasattr(media[0], "shape") and isinstance(media[1], Real)
    )
    if isinstance(media, list | tuple) and not with_rate:
        return list(media)
    return [media]


def conversation(
    messages: str | Sequence[Mapping[str, Any]],
    images: Any = (),
    audio: Any = (),
    videos: Any = (),
    *,
    video_audio: bool = False,
) -> Conversation:
    """Bring messages and media together. video_audio: every film is followed by its sound.

    Raises PromptError for messages of another form, and if places and media do not match in number.
    """
    given: dict[MediaKind, list[Any]] = {
        "image": media_list(images),
        "audio": media_list(audio),
        "video": media_list(videos),
    }
    if isinstance(messages, str):
        parts: list[Any] = [{"type": kind} for kind in get_args(MediaKind) for _ in given[kind]]
        messages = [{"role": "user", "content": [*parts, {"type": "text", "text": messages}] if parts else messages}]
    if not isinstance(messages, Sequence) or isinstance(messages, bytes) or not messages:
        raise PromptError("messages must be a string or a non-empty list of {'role': ..., 'content': ...}")
    reader = _Reader({kind: list(reversed(media)) for kind, media in given.items()}, video_audio)
    plain = [reader.message(i, message) for i, message in enumerate(messages)]
    for kind, left in reader.waiting.items():
        if left:
            raise PromptError(
                f"{len(given[kind])} of kind {kind} given, but the messages have {len(given[kind]) - len(left)} places "
                f"for them; add a part {{'type': '{kind}'}} where each belongs"
            )
    return Conversation(plain, reader.media)


class _Reader:
    def __init__(self, waiting: dict[MediaKind, list[Any]], video_audio: bool) -> None:
        self.waiting = waiting  # media of the lists, last first
        self.media: list[MediaPart] = []
        self._video_audio = video_audio

    def message(self, index: int, message: Any) -> dict[str, Any]:
        where = f"message {index}"
        if not isinstance(message, Mapping):
            raise PromptError(f"{where} is a {type(message).__name__}, not a {{'role': ..., 'content': ...}}")
        role = message.get("role")
        if role not in _ROLES:
            raise PromptError(f"{where}: role {role!r} is none of {', '.join(_ROLES)}")
        plain: dict[str, Any] = {}
        for key, value in message.items():
            if value is None:
                continue
            if key == "content" and not isinstance(value, str) and isinstance(value, Sequence):
                plain[key] = [part for item in value for part in self._parts(where, item)]
            elif key == "tool_calls":
                plain[key] = _tool_calls(where, value)
            else:
                plain[key] = plain_data(where, value)
        if "thinking" in plain and "reasoning_content" not in plain:
            plain["reasoning_content"] = plain["thinking"]
        return plain

    def _parts(self, where: str, part: Any) -> list[dict[str, Any]]:
        if isinstance(part, str):
            return [{"type": "text", "text": part}]
        if not isinstance(part, Mapping):
            raise PromptError(f"{where}: a content part is a {type(part).__name__}, not text or {{'type': ...}}")
        kind = part.get("type")
        if kind == "text":
            if not isinstance(part.get("text"), str):
                raise PromptError(f"{where}: a text part without a string under 'text'")
            return [{"type": "text", "text": part["text"]}]
        if kind not in _KINDS:
            raise PromptError(f"{where}: content part of type {kind!r}; known are text, {', '.join(_KINDS)}")
        medium_kind = _KINDS[kind]
        medium = _inline_medium(where, kind, part)
        if medium is None:
            if not self.waiting[medium_kind]:
                raise PromptError(f"{where}: a place for {medium_kind} without one; none is left in the list either")
            medium = self.waiting[medium_kind].pop()
        self.media.append(MediaPart(medium_kind, medium))
        if medium_kind == "video" and self._video_audio:
            self.media.append(MediaPart("audio", medium, sound_of_film=True))
            return [{"type": "video"}, {"type": "audio"}]
        return [{"type": medium_kind}]


def _inline_medium(where: str, kind: str, part: Mapping[str, Any]) -> Any:
    """The medium that a part carries, or None."""
    value = part.get(kind)
    if isinstance(value, Mapping):  # OpenAI nests it once more
        part, value = value, None
    for key in ("url", "path"):
        value = part.get(key) if value is None else value
    if value is not None or part.get("data") is None:
        return value
    data = part["data"]
    if not isinstance(data, str):
        return data
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        raise PromptError(f"{where}: 'data' of a part of type {kind} is neither bytes nor base64 text") from None


def _tool_calls(where: str, calls: Any) -> list[dict[str, Any]]:
    plain = plain_data(where, calls)
    if not isinstance(plain, list):
        raise PromptError(f"{where}: tool_calls must be a list")
    for call in plain:
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise PromptError(f"{where}: a tool call must be {{'function': {{'name': ..., 'arguments': {{...}}}}}}")
        arguments = function.setdefault("arguments", None)
        if isinstance(arguments, str):
            try:
                function["arguments"] = json.loads(arguments) if arguments.strip() else {}
            except ValueError as error:
                raise PromptError(
                    f"{where}: the arguments of tool call {function['name']!r} are no JSON: {error}"
                ) from None
    return plain


def plain_data(where: str, value: Any, depth: int = 0) -> Any:
    """JSON data rebuilt from plain types: objects would have methods that a template could call."""
    if depth > _MOST_NESTED:
        raise PromptError(f"{where}: data nested more than {_MOST_NESTED} deep")
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, Mapping):
        return {plain_data(where, key, depth + 1): plain_data(where, item, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain_data(where, item, depth + 1) for item in value]
    raise PromptError(f"{where}: a {type(value).__name__} cannot be part of a prompt; only JSON data can")
