"""A host of the loopback that stands for public ones, and what is fetched from it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Sequence
from typing import Any

import pytest

from cellmd.errors import MediaError
from cellmd.server.fetch import Fetcher, Wanted

PUBLIC = "93.184.215.14"
PNG = b"\x89PNG..."


def ok(body: bytes, kind: str = "image/png", *more: str) -> bytes:
    lines = ["HTTP/1.1 200 OK", f"Content-Type: {kind}", f"Content-Length: {len(body)}", *more]
    return "\r\n".join([*lines, "", ""]).encode() + body


def moved(to: str, status: int = 302) -> bytes:
    return f"HTTP/1.1 {status} Moved\r\nLocation: {to}\r\nContent-Length: 0\r\n\r\n".encode()


class Host:
    """A host of the loopback that stands for public ones."""

    def __init__(self, names: dict[str, Sequence[str]]) -> None:
        self.names = names
        self.answers: dict[str, bytes] = {}
        self.heads: list[bytes] = []
        self.resolved: list[str] = []
        self.connected: list[tuple[str, int, str | None]] = []
        self.pause = 0.0
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Host:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *exc: object) -> None:
        assert self._server is not None
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            self.heads.append(head)
            content = self.answers[head.split()[1].decode()]
            step = 7 if self.pause else 1 << 20
            for i in range(0, len(content), step):
                writer.write(content[i : i + step])
                await writer.drain()
                await asyncio.sleep(self.pause)
        writer.close()

    async def resolve(self, name: str, port: int) -> Sequence[str]:
        self.resolved.append(name)
        if name not in self.names:
            raise socket.gaierror(-2, "unknown")
        return self.names[name]

    async def connect(
        self, address: str, port: int, tls_host: str | None
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        self.connected.append((address, port, tls_host))
        assert self._server is not None
        return await asyncio.open_connection(*self._server.sockets[0].getsockname())

    def fetcher(self, max_bytes: int = 10_000, seconds: float = 5.0) -> Fetcher:
        return Fetcher(max_bytes, seconds, resolve=self.resolve, connect=self.connect)


def fetched(
    urls: list[str],
    answers: dict[str, bytes],
    names: dict[str, Sequence[str]] | None = None,
    kind: Any = "image",
    pause: float = 0.0,
    **bounds: Any,
) -> tuple[list[bytes], Host]:
    """The media, and the host that gave them."""

    async def run() -> tuple[list[bytes], Host]:
        async with Host(names or {"pictures.example": [PUBLIC]}) as host:
            host.answers = answers
            host.pause = pause
            seen.append(host)
            wanted = [Wanted(url, kind, "messages.0.content.0") for url in urls]
            async with host.fetcher(**bounds).fetched(wanted) as got:
                return [got[url] for url in urls], host

    seen: list[Host] = []
    try:
        return asyncio.run(run())
    except MediaError as error:
        error.host = seen[0]  # type: ignore[attr-defined]
        raise


def refused(url: str, answers: dict[str, bytes] | None = None, **options: Any) -> tuple[str, Host]:
    with pytest.raises(MediaError) as error:
        fetched([url], answers or {}, **options)
    return str(error.value), error.value.host  # type: ignore[attr-defined]
