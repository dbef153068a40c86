"""Media by URL: from public hosts alone, at the address that was checked, with nothing given away, within bounds."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellmd.errors import MediaDecodeError, MediaError, MediaLimitError
from cellmd.server import fetch
from cellmd.server.fetch import Fetcher, Wanted, is_public
from public_hosts import PNG, PUBLIC, Host, fetched, moved, ok, refused

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
