"""Where media come from: a path, bytes, a file object, a data: URI; opened within bounds, named for error messages.

Nothing is ever fetched from a network, and only regular files are opened.
"""

from __future__ import annotations

import base64
import binascii
import io
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import unquote, urlsplit

from cellmd.errors import MediaDecodeError, MediaLimitError

_SCHEME = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]+://")


@dataclass(frozen=True)
class MediaLimits:
    """Bounds that decoding keeps, checked before memory is taken.

    max_bytes: of a file or buffer. max_pixels: of one picture or film frame (Pillow itself refuses above 178 million).
    max_audio_seconds, max_video_seconds: of what is decoded. max_frames: taken from one film.
    """

    max_bytes: int = 4 << 30
    max_pixels: int = 1 << 26
    max_audio_seconds: float = 3_600.0
    max_video_seconds: float = 4 * 3_600.0
    max_frames: int = 1_024


@dataclass(frozen=True)
class OpenMedium:
    """An open, seekable binary file at its beginning, and the name that errors call it by."""

    name: str
    file: BinaryIO


def media_name(medium: Any) -> str:
    """What error messages call a medium: its path, `<bytes>`, `<array>`, `<image>`, `<file>`."""
    if isinstance(medium, str):
        return "<data URI>" if medium.startswith("data:") else medium
    if isinstance(medium, os.PathLike):
        return os.fsdecode(medium)
    if isinstance(medium, bytes | bytearray | memoryview):
        return "<bytes>"
    if isinstance(medium, tuple) and medium:
        return media_name(medium[0])
    if hasattr(medium, "read"):
        name = getattr(medium, "name", None)
        return name if isinstance(name, str) and name else "<file>"
    if hasattr(medium, "shape"):
        return "<array>"
    return "<image>" if hasattr(medium, "getbands") else f"<{type(medium).__name__}>"


@contextmanager
def open_medium(medium: Any, limits: MediaLimits) -> Iterator[OpenMedium]:
    """Open a path (str or PathLike, also `file://`), bytes, a `data:` URI or a binary file object.

    A file object is read from its current position, is left open, and is put back to that position if it can seek.
    Raises MediaDecodeError for what is missing, empty or no medium at all, MediaLimitError above limits.max_bytes.
    """
    name = media_name(medium)
    if isinstance(medium, bytes | bytearray | memoryview):
        yield OpenMedium(name, _buffer(name, bytes(medium), limits))
    elif isinstance(medium, str) and medium.startswith("data:"):
        yield OpenMedium(name, _buffer(name, _data_uri(medium, limits), limits))
    elif isinstance(medium, str | os.PathLike):
        with _open_path(_local_path(medium), limits) as file:
            yield OpenMedium(name, file)
    elif hasattr(medium, "read"):
        start = _position(medium)
        try:
            yield OpenMedium(name, _file_object(name, medium, start, limits))
        finally:
            if start is not None:
                medium.seek(start)
    else:
        raise MediaDecodeError(f"{name} is no medium; give a path, bytes, a binary file object or an array")


def _local_path(medium: str | os.PathLike[str]) -> Path:
    text = os.fsdecode(medium)
    if isinstance(medium, str) and text.startswith("file://"):
        return Path(unquote(urlsplit(text).path))
    if isinstance(medium, str) and _SCHEME.match(text):
        raise MediaDecodeError(f"{text}: cellmd fetches nothing from a network; download the file and pass its path")
    return Path(text)


def _open_path(path: Path, limits: MediaLimits) -> BinaryIO:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # a pipe or device could be endless
            raise MediaDecodeError(f"{path}: not a regular file")
        _check_size(str(path), status.st_size, limits)
        return path.open("rb")
    except FileNotFoundError:
        raise MediaDecodeError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:  # ValueError: a path with a null character
        raise MediaDecodeError(f"{path}: cannot be opened ({error})") from None


def _check_size(name: str, n_bytes: int, limits: MediaLimits) -> None:
    if n_bytes == 0:
        raise MediaDecodeError(f"{name}: the file is empty")
    if n_bytes > limits.max_bytes:
        raise MediaLimitError(f"{name}: {n_bytes:,} bytes are more than the limit of {limits.max_bytes:,}")


def _buffer(name: str, data: bytes, limits: MediaLimits) -> BinaryIO:
    _check_size(name, len(data), limits)
    return io.BytesIO(data)


def _data_uri(uri: str, limits: MediaLimits) -> bytes:
    head, _, body = uri.partition(",")
    if not head.endswith(";base64"):
        raise MediaDecodeError("<data URI>: only base64 data is supported (data:TYPE;base64,...)")
    _check_size("<data URI>", len(body) * 3 // 4, limits)
    try:
        return base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError):
        raise MediaDecodeError("<data URI>: the base64 data is malformed") from None


def _position(file: Any) -> int | None:
    """Where a file object stands, or None if it cannot seek."""
    try:
        return int(file.tell()) if file.seekable() else None
    except (AttributeError, OSError, ValueError):
        return None


def _file_object(name: str, file: Any, start: int | None, limits: MediaLimits) -> BinaryIO:
    try:
        if start == 0 and not isinstance(file.read(0), str):
            _check_size(name, file.seek(0, os.SEEK_END), limits)
            file.seek(0)
            return file  # type: ignore[no-any-return]
        data = file.read(limits.max_bytes + 1)
    except (OSError, ValueError) as error:
        raise MediaDecodeError(f"{name}: cannot be read ({error})") from None
    if not isinstance(data, bytes):
        raise MediaDecodeError(f"{name}: the file object gives text; open it in binary mode ('rb')")
    return _buffer(name, data, limits)
