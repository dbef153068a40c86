"""Media from addresses that clients name, for servers that were told to fetch them (`--allow-urls`).

A client could make a server ask what only the server can reach: its own machine, its neighbours, the metadata service
of its cloud. So a name is resolved once, every address that it has must be a public one, and the connection goes to the
address that was checked, not to the name again; redirections are checked the same way. Nothing that belongs to the
client or to the server is sent along: no key, no cookie, no referrer. Sizes, times, numbers and kinds are bounded.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import urljoin, urlsplit

import h11

from cellmd.errors import MediaDecodeError, MediaLimitError
from cellmd.processors.features import MediaKind

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
"""The addresses of a host, as text."""
Connect = Callable[[str, int, str | None], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]
"""A connection to an address and port; with TLS for the host that is named, if one is."""

FETCHED_AT_ONCE = 4
"""Requests whose media may be in memory, each of the largest size."""

_MOST_URLS = 16
_MOST_REDIRECTIONS = 3
_MOST_HEAD_BYTES = 32 << 10
_MOST_URL_CHARACTERS = 8192
_CONNECT_SECONDS = 10.0
_REDIRECTIONS = (301, 302, 303, 307, 308)
_TYPES: Mapping[MediaKind, tuple[str, ...]] = {
    "image": ("image/",),
    "audio": ("audio/", "video/", "application/ogg"),
    "video": ("video/", "image/gif", "application/ogg"),
}
_UNNAMED = ("", "application/octet-stream", "binary/octet-stream")
_NOT_ASKED = [
    ipaddress.ip_network(network)
    for network in (
        "192.0.0.0/24",  # of protocols; some clouds have metadata there
        "192.88.99.0/24",  # relays of 6to4
        "64:ff9b::/96",  # IPv6 that ends at an IPv4 address within it: NAT64, 6to4, Teredo, and an old form;
        "64:ff9b:1::/48",  # nobody needs them to reach a public host
        "2002::/16",
        "2001::/32",
        "::/96",
    )
]


@dataclass(frozen=True)
class Wanted:
    """An address, of what kind the medium there has to be, and where in the request it stands."""

    url: str
    kind: MediaKind
    where: str


class Fetcher:
    """Fetches media by http and https. max_bytes: of all media of a request. seconds: for all of them.

    resolve and connect are the network, for tests. Raises MediaDecodeError and MediaLimitError.
    """

    def __init__(
        self, max_bytes: int, seconds: float, *, resolve: Resolve | None = None, connect: Connect | None = None
    ) -> None:
        self._max_bytes = max_bytes
        self._seconds = seconds
        self._resolve = resolve or _resolve
        self._connect = connect or _connect
        self._turns = asyncio.Semaphore(FETCHED_AT_ONCE)

    @contextlib.asynccontextmanager
    async def fetched(self, wanted: Sequence[Wanted]) -> AsyncIterator[Mapping[str, bytes]]:
        """The media by their URLs; those of few requests are in memory at a time, until this is left."""
        if not wanted:
            yield {}
            return
        if len(wanted) > _MOST_URLS:
            raise MediaLimitError(f"{len(wanted)} media are to be fetched; a request may name {_MOST_URLS}")
        async with self._turns:
            got: dict[str, bytes] = {}
            try:
                async with asyncio.timeout(self._seconds):
                    for one in wanted:
                        if one.url not in got:
                            left = self._max_bytes - sum(map(len, got.values()))
                            got[one.url] = await self._get(one, left)
            except TimeoutError:
                raise MediaLimitError(f"the media did not arrive within {self._seconds:g} s") from None
            yield got

    async def _get(self, wanted: Wanted, max_bytes: int) -> bytes:
        url = wanted.url
        for _ in range(_MOST_REDIRECTIONS + 1):
            found = await self._ask(url, wanted, max_bytes)
            if isinstance(found, bytes):
                return found
            url = urljoin(url, found)
        raise MediaDecodeError(f"{wanted.where}: more than {_MOST_REDIRECTIONS} redirections")

    async def _ask(self, url: str, wanted: Wanted, max_bytes: int) -> bytes | str:
        """What lies at a URL, or the URL that it points to instead."""
        where = wanted.where
        scheme, host, port, target = _parts(url, where)
        address = await self._public_address(host, port, where)
        try:
            async with asyncio.timeout(_CONNECT_SECONDS):
                reader, writer = await self._connect(address, port, host if scheme == "https" else None)
        except TimeoutError:
            raise MediaDecodeError(f"{where}: {host} does not answer") from None
        except (OSError, ValueError) as error:
            raise MediaDecodeError(f"{where}: no connection to {host}: {_reason(error)}") from None
        try:
            return await self._exchange(reader, writer, _host_header(scheme, host, port), target, wanted, max_bytes)
        except h11.RemoteProtocolError as error:
            raise MediaDecodeError(f"{where}: {host} does not speak HTTP: {error}") from None
        except (OSError, asyncio.IncompleteReadError) as error:
            raise MediaDecodeError(f"{where}: the connection to {host} broke: {_reason(error)}") from None
        finally:
            writer.transport.abort()  # never wait for a peer that does not close

    async def _public_address(self, host: str, port: int, where: str) -> str:
        """The first address of a host, once all of them are known to be public ones."""
        try:
            addresses = [_address(text) for text in await self._resolve(host, port)]
        except (OSError, ValueError, UnicodeError):
            raise MediaDecodeError(f"{where}: {host} is no host that can be found") from None
        if not addresses or not all(map(is_public, addresses)):
            raise MediaDecodeError(f"{where}: {host} is no public host; this server fetches from no others")
        return str(addresses[0])

    async def _exchange(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        host: str,
        target: str,
        wanted: Wanted,
        max_bytes: int,
    ) -> bytes | str:
        talk = h11.Connection(h11.CLIENT, max_incomplete_event_size=_MOST_HEAD_BYTES)
        headers = [
            ("Host", host),
            ("User-Agent", "cellmd"),
            ("Accept", "*/*"),
            ("Accept-Encoding", "identity"),
            ("Connection", "close"),
        ]
        writer.write(talk.send(h11.Request(method="GET", target=target, headers=headers)) or b"")
        talk.send(h11.EndOfMessage())
        await writer.drain()
        chunks: list[bytes] = []
        n_bytes = 0
        while True:
            event = talk.next_event()
            if event is h11.NEED_DATA:
                talk.receive_data(await reader.read(1 << 16))
            elif isinstance(event, h11.Response):
                elsewhere = _checked(event, wanted, max_bytes)
                if elsewhere is not None:
                    return elsewhere
            elif isinstance(event, h11.Data):
                n_bytes += len(event.data)
                _check_size(n_bytes, wanted.where, max_bytes)
                chunks.append(bytes(event.data))
            elif isinstance(event, h11.EndOfMessage):
                return b"".join(chunks)
            elif not isinstance(event, h11.InformationalResponse):
                raise MediaDecodeError(f"{wanted.where}: the answer ended before it began")


def is_public(address: Address) -> bool:
    """Whether an address is one of the Internet at large, an IPv4 one within an IPv6 one included."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return is_public(address.ipv4_mapped)
        if address.scope_id is not None or address.is_site_local:
            return False
    if any(address in network for network in _NOT_ASKED):
        return False
    return address.is_global and not (address.is_multicast or address.is_reserved or address.is_unspecified)


def _parts(url: str, where: str) -> tuple[str, str, int, str]:
    """Scheme, host, port and target of a URL that may be asked for."""
    try:
        split = urlsplit(url)
        host, port = split.hostname, split.port
    except ValueError:
        raise MediaDecodeError(f"{where}: no URL that can be read") from None
    if split.scheme not in ("http", "https") or not host or len(url) > _MOST_URL_CHARACTERS:
        raise MediaDecodeError(f"{where}: only http and https URLs with a host are fetched")
    if "@" in split.netloc:
        raise MediaDecodeError(f"{where}: the URL has a user or password in it; this server sends none")
    target = (split.path or "/") + (f"?{split.query}" if split.query else "")
    if not url.isascii() or not url.isprintable() or " " in url:
        raise MediaDecodeError(f"{where}: the URL has characters that have to be percent-encoded")
    return split.scheme, host, port or (443 if split.scheme == "https" else 80), target


def _host_header(scheme: str, host: str, port: int) -> str:
    shown = f"[{host}]" if ":" in host else host
    return shown if port == (443 if scheme == "https" else 80) else f"{shown}:{port}"


def _address(text: str) -> Address:
    return ipaddress.ip_address(text)


def _checked(response: h11.Response, wanted: Wanted, max_bytes: int) -> str | None:
    """Where the answer says the medium lies instead, if it does."""
    where = wanted.where
    headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in response.headers}
    if response.status_code in _REDIRECTIONS and "location" in headers:
        return headers["location"]
    if response.status_code != 200:
        raise MediaDecodeError(f"{where}: the host answers {response.status_code}")
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise MediaDecodeError(f"{where}: the host packs its answer although it was asked not to")
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in _UNNAMED and not kind.startswith(_TYPES[wanted.kind]):
        raise MediaDecodeError(f"{where}: {kind[:100]!r} is there, not {wanted.kind}")
    declared = headers.get("content-length", "0")
    _check_size(int(declared) if declared.isdecimal() else 0, where, max_bytes)
    return None


def _check_size(n_bytes: int, where: str, max_bytes: int) -> None:
    if n_bytes > max_bytes:
        raise MediaLimitError(f"{where}: what is there is too large; a request's media may have {max_bytes:,} bytes")


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return error.reason or "TLS failed"
    return (error.strerror if isinstance(error, OSError) else None) or type(error).__name__


async def _resolve(host: str, port: int) -> Sequence[str]:
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(address[0]) for _, _, _, _, address in found]


async def _connect(address: str, port: int, tls_host: str | None) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    context = ssl.create_default_context() if tls_host is not None else None
    return await asyncio.open_connection(
        address, port, ssl=context, server_hostname=tls_host, family=socket.AF_UNSPEC, flags=socket.AI_NUMERICHOST
    )
