"""Media by URL: from public hosts alone, at the address that was checked, with nothing given away, within bounds."""

from __future__ import annotations

import asyncio
import contextlib
import io
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import cellmd
from cellmd.errors import MediaDecodeError, MediaError, MediaLimitError
from cellmd.server import fetch
from cellmd.server.fetch import Fetcher, Wanted, is_public
from live_server import Live

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


# ---- what works ------------------------------------------------------------------------------------------------------


def test_a_medium_arrives() -> None:
    url = "http://pictures.example/a/b.png?size=2#part"
    (got,), host = fetched([url], {"/a/b.png?size=2": ok(PNG)})
    assert got == PNG
    assert host.connected == [(PUBLIC, 80, None)]


def test_nothing_is_given_away() -> None:
    _, host = fetched(["http://pictures.example:8081/"], {"/": ok(PNG)})
    lines = host.heads[0].decode().strip().split("\r\n")
    assert lines[0] == "GET / HTTP/1.1"
    names = {line.partition(":")[0].lower() for line in lines[1:]}
    assert names == {"host", "user-agent", "accept", "accept-encoding", "connection"}
    assert "Host: pictures.example:8081" in lines


def test_tls_is_for_the_host_that_was_named() -> None:
    _, host = fetched(["https://pictures.example/"], {"/": ok(PNG)})
    assert host.connected == [(PUBLIC, 443, "pictures.example")]


def test_redirections_are_followed() -> None:
    names = {"pictures.example": [PUBLIC], "other.example": ["8.8.4.4"]}
    answers = {"/": moved("/b"), "/b": moved("https://other.example/c", 307), "/c": ok(PNG)}
    (got,), host = fetched(["http://pictures.example/"], answers, names)
    assert got == PNG
    assert host.connected == [(PUBLIC, 80, None), (PUBLIC, 80, None), ("8.8.4.4", 443, "other.example")]


def test_chunks_and_unnamed_kinds() -> None:
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
    assert fetched(["http://pictures.example/"], {"/": chunked})[0] == [b"abcde"]
    until_close = b"HTTP/1.0 200 OK\r\nContent-Type: application/octet-stream\r\n\r\nabc"
    assert fetched(["http://pictures.example/"], {"/": until_close})[0] == [b"abc"]


def test_the_same_is_fetched_once() -> None:
    url = "http://pictures.example/"
    got, host = fetched([url, url], {"/": ok(PNG)})
    assert got == [PNG, PNG]
    assert len(host.heads) == 1


# ---- where it does not go --------------------------------------------------------------------------------------------

PRIVATE = [
    "127.0.0.1",
    "127.8.8.8",
    "0.0.0.0",
    "10.0.0.1",
    "172.16.3.4",
    "192.168.1.1",
    "169.254.169.254",
    "100.64.0.1",
    "100.100.100.200",
    "192.0.0.192",
    "198.18.0.1",
    "224.0.0.1",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "fe80::1",
    "fe80::1%eth0",
    "fec0::1",
    "fd00:ec2::254",
    "ff02::1",
    "::ffff:127.0.0.1",
    "::ffff:169.254.169.254",
    "::ffff:10.0.0.1",
    "::127.0.0.1",
    "64:ff9b::7f00:1",
    "64:ff9b::a9fe:a9fe",
    "2002:7f00:1::",
    "2002:a9fe:a9fe::1",
    "2001:0:7f00:1::",
    "2001:db8::1",
]


@pytest.mark.parametrize("address", PRIVATE)
def test_addresses_that_are_not_public(address: str) -> None:
    assert not is_public(fetch._address(address))
    said, host = refused("http://pictures.example/", names={"pictures.example": [address]})
    assert "no public host" in said
    assert host.connected == []
    said, host = refused("http://pictures.example/", names={"pictures.example": [PUBLIC, address]})
    assert host.connected == []


@pytest.mark.parametrize("address", [PUBLIC, "1.1.1.1", "2606:4700:4700::1111", "::ffff:1.1.1.1"])
def test_addresses_that_are(address: str) -> None:
    assert is_public(fetch._address(address))


@given(st.ip_addresses(v=4))
def test_an_address_within_another_is_judged_by_itself(address: Any) -> None:
    mapped = fetch._address(f"::ffff:{address}")
    assert is_public(mapped) == is_public(address)
    for wrapped in (f"64:ff9b::{address}", f"2002:{int(address) >> 16:x}:{int(address) & 0xFFFF:x}::"):
        assert not is_public(fetch._address(wrapped))


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/",
        "http://127.1/",
        "http://2130706433/",
        "http://0x7f000001/",
        "http://[::1]/",
        "http://[::ffff:127.0.0.1]/",
        "http://localhost/",
        "http://169.254.169.254/latest/meta-data/",
        "http://0/",
    ],
)
def test_this_machine_is_not_asked_whatever_it_is_called(url: str) -> None:
    """With the system's own resolver, and a connector that nobody may call."""

    async def connect(*arguments: Any) -> Any:
        raise AssertionError("connected")

    async def run() -> None:
        async with Fetcher(1000, 5.0, connect=connect).fetched([Wanted(url, "image", "here")]):
            pass

    with pytest.raises(MediaDecodeError):
        asyncio.run(run())


def test_redirections_are_checked_like_the_first() -> None:
    names = {"pictures.example": [PUBLIC], "inside.example": ["10.0.0.1"]}
    for target in (
        "http://inside.example/",
        "http://169.254.169.254/",
        "file:///etc/passwd",
        "ftp://pictures.example/",
    ):
        names["169.254.169.254"] = ["169.254.169.254"]
        said, host = refused("http://pictures.example/", {"/": moved(target)}, names=names)
        assert len(host.connected) == 1, said


def test_a_name_is_resolved_once_and_the_connection_goes_to_what_was_checked() -> None:
    """A name server that says something public first and something private then (DNS rebinding)."""
    answers = iter([[PUBLIC], ["127.0.0.1"], ["127.0.0.1"]])

    async def run() -> Host:
        async with Host({}) as host:
            host.answers = {"/": ok(PNG)}

            async def resolve(name: str, port: int) -> Sequence[str]:
                return next(answers)

            fetcher = Fetcher(1000, 5.0, resolve=resolve, connect=host.connect)
            async with fetcher.fetched([Wanted("http://rebinding.example/", "image", "here")]):
                return host

    assert asyncio.run(run()).connected == [(PUBLIC, 80, None)]
    assert next(answers) == ["127.0.0.1"]  # nobody asked twice


def test_a_redirection_to_the_same_name_is_resolved_and_checked_again() -> None:
    answers = iter([[PUBLIC], ["127.0.0.1"]])

    async def run() -> None:
        async with Host({}) as host:
            host.answers = {"/": moved("/again"), "/again": ok(PNG)}

            async def resolve(name: str, port: int) -> Sequence[str]:
                return next(answers)

            fetcher = Fetcher(1000, 5.0, resolve=resolve, connect=host.connect)
            async with fetcher.fetched([Wanted("http://rebinding.example/", "image", "here")]):
                pass

    with pytest.raises(MediaDecodeError, match="no public host"):
        asyncio.run(run())


# ---- wrong URLs, wrong answers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "ftp://pictures.example/",
        "file:///etc/passwd",
        "gopher://pictures.example/",
        "//pictures.example/",
        "pictures.example/a.png",
        "/etc/passwd",
        "",
        "http://",
        "http:///a",
        "http://user@pictures.example/",
        "http://user:secret@pictures.example/",
        "http://pictures.example:99999/",
        "http://pictures.example:x/",
        "http://[::1/",
        "http://pictures.example/a b",
        "http://pictures.example/\r\nX: y",
        "http://pictures.example/ä",
        "http://pictures.example/" + "a" * 9000,
        "http://nowhere.example/",
    ],
)
def test_urls_that_are_not_asked_for(url: str) -> None:
    _, host = refused(url, {"/": ok(PNG)})
    assert host.connected == []


@given(st.text(max_size=60))
@settings(max_examples=200, deadline=None)
def test_any_text_for_a_url_is_refused_in_good_order(text: str) -> None:
    with pytest.raises(MediaError):
        fetched([text], {})


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"nonsense",
        b"HTTP/1.1 200 OK\r\n\r",
        b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Basic\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        ok(PNG, "text/html"),
        ok(PNG, "audio/wav"),
        ok(PNG, "image/png", "Content-Encoding: gzip"),
        b"\x00" * 1000,
    ],
)
def test_answers_that_are_no_medium(answer: bytes) -> None:
    refused("http://pictures.example/", {"/": answer})


def test_redirections_have_an_end() -> None:
    said, host = refused("http://pictures.example/", {"/": moved("/")})
    assert "redirections" in said
    assert len(host.heads) == 4


def test_sizes_are_bounded() -> None:
    url = "http://pictures.example/"
    assert len(fetched([url], {"/": ok(bytes(10_000))})[0][0]) == 10_000
    for answer in (
        ok(bytes(10_001)),
        b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n",
        b"HTTP/1.0 200 OK\r\n\r\n" + bytes(20_000),
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + (b"1000\r\n" + bytes(4096) + b"\r\n") * 5,
    ):
        said, _ = refused(url, {"/": answer})
        assert "too large" in said
    with pytest.raises(MediaLimitError, match="too large"):  # all of a request together
        fetched([f"{url}{i}" for i in range(3)], {f"/{i}": ok(bytes(4000)) for i in range(3)})
    with pytest.raises(MediaLimitError, match="may name"):
        fetched([f"{url}{i}" for i in range(17)], {f"/{i}": ok(b"x") for i in range(17)})


def test_times_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that sends a little now and then, in the head and in the body."""
    said, _ = refused("http://pictures.example/", {"/": ok(bytes(4000))}, pause=0.01, seconds=0.3)
    assert "within 0.3 s" in said
    monkeypatch.setattr(fetch, "_CONNECT_SECONDS", 0.05)

    async def never(*arguments: Any) -> Any:
        await asyncio.sleep(60)

    async def run() -> None:
        async def resolve(name: str, port: int) -> Sequence[str]:
            return [PUBLIC]

        async with Fetcher(1000, 5.0, resolve=resolve, connect=never).fetched([Wanted("http://a.b/", "image", "x")]):
            pass

    with pytest.raises(MediaDecodeError, match="does not answer"):
        asyncio.run(run())


@pytest.mark.parametrize("kind", ["image", "audio", "video"])
def test_kinds_are_asked_for(kind: Any) -> None:
    url = "http://pictures.example/"
    right = {"image": "image/webp", "audio": "audio/mpeg; rate=1", "video": "video/mp4"}[kind]
    assert fetched([url], {"/": ok(b"x", right)}, kind=kind)[0] == [b"x"]
    with pytest.raises(MediaDecodeError):
        fetched([url], {"/": ok(b"x", "text/plain")}, kind=kind)


# ---- through the server ----------------------------------------------------------------------------------------------


@pytest.fixture
def picture_host() -> Iterator[int]:
    """A host of pictures on the loopback: its port."""
    file = io.BytesIO()
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(file, "png")

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "image/png")
            self.end_headers()
            self.wfile.write(file.getvalue())

        def log_message(self, *arguments: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port
    server.shutdown()
    server.server_close()


def ask(live: Live, *urls: str, **more: Any) -> httpx.Response:
    parts = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    messages = [{"role": "user", "content": [*parts, {"type": "text", "text": "what is this"}]}]
    body = {"messages": messages, "max_completion_tokens": 2, **more}
    return httpx.post(f"{live.url}/v1/chat/completions", json=body, timeout=60)


@pytest.fixture
def opened(path: Path) -> Iterator[Callable[..., Live]]:
    with contextlib.ExitStack() as stack:

        def open_(**settings_: Any) -> Live:
            live = Live(stack.enter_context(cellmd.load(path, threads=1, context=2048)), **settings_)
            stack.callback(live.close)
            return live

        yield open_


def test_a_server_fetches_only_if_it_was_told_to(opened: Callable[..., Live], picture_host: int) -> None:
    url = f"http://pictures.example:{picture_host}/a.png"
    live = opened()
    answer = ask(live, url)
    assert answer.status_code == 400
    assert "fetches nothing" in answer.json()["error"]["message"]


def test_a_picture_by_its_url(opened: Callable[..., Live], picture_host: int) -> None:
    live = opened(allow_urls=True)
    answer = ask(live, f"http://127.0.0.1:{picture_host}/a.png")
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "invalid_media"

    async def resolve(name: str, port: int) -> Sequence[str]:
        return [PUBLIC]

    async def connect(address: str, port: int, tls_host: str | None) -> Any:
        assert (address, tls_host) == (PUBLIC, None)
        return await asyncio.open_connection("127.0.0.1", port)

    live.engine.fetcher = Fetcher(1 << 20, 5.0, resolve=resolve, connect=connect)
    url = f"http://pictures.example:{picture_host}/a.png"
    answer = ask(live, url, url)
    assert answer.status_code == 200, answer.text
    assert answer.json()["usage"]["prompt_tokens"] > ask(live).json()["usage"]["prompt_tokens"]


def test_certificates_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    async def open_connection(address: str, port: int, **options: Any) -> None:
        seen.update(options)

    monkeypatch.setattr(asyncio, "open_connection", open_connection)
    asyncio.run(fetch._connect(PUBLIC, 443, "pictures.example"))
    assert seen["server_hostname"] == "pictures.example"
    assert seen["ssl"].check_hostname
    assert seen["ssl"].verify_mode == ssl.CERT_REQUIRED
    assert seen["flags"] == socket.AI_NUMERICHOST
    asyncio.run(fetch._connect(PUBLIC, 80, None))
    assert seen["ssl"] is None
