"""What a server allows. Every bound is checked before memory or time is spent on what lies beyond it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cellmd.api import DEFAULT_CACHE_BYTES
from cellmd.errors import ArgumentError
from cellmd.processors.sources import MediaLimits

LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class ServerSettings:
    """host, port: where to listen. api_key: what clients have to show; None for loopback alone, or public_without_key.

    name: what the model is called. origins: other sites whose pages may use the server (CORS).
    max_body_bytes: of a request. max_pixels: of one picture or frame. max_media_seconds: of one sound or film, and of
    all recordings that are being heard. max_answer_tokens: of one answer. max_choices: answers of one request.
    max_requests: that have arrived, at once. max_connections: open at once; those without a request give way to new.
    body_seconds: for a request to arrive. answer_seconds: for an answer to be made, waiting included.
    send_seconds: for a client to take what was sent. drain_seconds: for answers to end when the server stops.
    allow_urls: media are fetched by http and https from public hosts, within body_seconds and max_body_bytes.
    cache_dir: where beginnings of prompts and encoded media outlive the server, of cache_bytes at most; None: nowhere.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    api_key: str | None = None
    public_without_key: bool = False
    name: str = "cellmd"
    origins: tuple[str, ...] = ()
    max_body_bytes: int = 64 << 20
    max_pixels: int = 1 << 25
    max_media_seconds: float = 4 * 3600.0
    max_answer_tokens: int = 8192
    max_choices: int = 8
    max_requests: int = 256
    max_connections: int = 4096
    body_seconds: float = 60.0
    answer_seconds: float = 1800.0
    send_seconds: float = 60.0
    drain_seconds: float = 30.0
    allow_urls: bool = False
    cache_dir: Path | None = None
    cache_bytes: int = DEFAULT_CACHE_BYTES

    def __post_init__(self) -> None:
        if self.host not in LOOPBACK and self.api_key is None and not self.public_without_key:
            raise ArgumentError(
                f"the host {self.host} can be reached from other machines: give --api-key, or "
                "--public-without-key if everyone who reaches it may use it"
            )
        if self.api_key is not None and not self.api_key.strip():
            raise ArgumentError("the API key is empty")
        if not 0 <= self.port <= 65535:
            raise ArgumentError(f"port must be 0..65535, found {self.port}")

    @property
    def media_limits(self) -> MediaLimits:
        return MediaLimits(
            max_bytes=self.max_body_bytes,
            max_pixels=self.max_pixels,
            max_audio_seconds=self.max_media_seconds,
            max_video_seconds=self.max_media_seconds,
            max_frames=256,
        )
