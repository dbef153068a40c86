"""Opening sound and film containers with FFmpeg (through PyAV) so that a file can reach nothing but itself.

FFmpeg knows playlists, concatenation scripts and network streams, which would make it read other files or call hosts
that a medium names. Three walls keep that out: the medium is handed over as an open file, never as a name; only the
formats below are recognised, none of which refers to others (references of MOV files are off by default); and no
protocol is allowed for whatever a demuxer might still want to open.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import av

from cellmd.errors import MediaDecodeError
from cellmd.processors.sources import MediaLimits, open_medium

_FORMATS = (
    "wav,w64,aiff,au,caf,mp3,flac,ogg,aac,ac3,eac3,amr,wv,tta,mov,mp4,m4a,3gp,matroska,webm,avi,asf,flv,mpegts,mpeg,gif"
)
_READ_BYTES = 1 << 18


@contextmanager
def open_container(medium: Any, limits: MediaLimits) -> Iterator[tuple[str, Any]]:
    """The medium's name and its open av container. Errors while it is open are not translated: see `broken`."""
    with open_medium(medium, limits) as source:
        options = {
            "format_whitelist": _FORMATS,
            "protocol_whitelist": "none",
            "max_pixels": str(limits.max_pixels),  # decoders refuse larger frames themselves, whenever they come
        }
        try:
            container = av.open(source.file, "r", options=options, buffer_size=_READ_BYTES, **_any_metadata(av))
        except Exception as error:  # parsers of hostile input raise whatever they stumble over
            raise broken(source.name, "not a sound or film of a known kind", error) from error
        with container:
            yield source.name, container


def _any_metadata(av: Any) -> dict[str, str]:
    """Titles and the like may be in any encoding. PyAV 19 minds none, those before it have to be told."""
    return {} if int(av.__version__.split(".")[0]) >= 19 else {"metadata_errors": "replace"}


def broken(name: str, what: str, error: Exception) -> MediaDecodeError:
    """The error for a medium that FFmpeg refused, with FFmpeg's own reason in short."""
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return MediaDecodeError(f"{name}: {what} ({reason})")
