"""What every request passes before it reaches an interface: hosts, origins, keys, sizes, times, numbers.

One ASGI middleware. A body is read whole here, within its bounds, before anything is made of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import re
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response

from cellmd.server.errors import ApiError, as_api_error
from cellmd.server.metrics import Metrics
from cellmd.server.settings import LOOPBACK, ServerSettings

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_BODIES_AT_ONCE = 4
"""So many bodies of the largest size may be in memory."""

_SMALL_BYTES = 64 << 10
"""A body of this size is taken even then: large ones do not keep a plain question out."""

_NAMES = re.compile(r"[A-Za-z0-9-]{1,64}( *, *[A-Za-z0-9-]{1,64}){0,63}")
_PUBLIC = ("/", "/health", "/openapi.json")
_SECURITY = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(self)",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' blob: data:; "
        "media-src blob: data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
}


def needs_key(path: str) -> bool:
    """Whether what is at a path is only for those who have the key, where there is one."""
    return path not in _PUBLIC and not path.startswith("/page/")


class Guard:
    """Stands before the application; see the module."""

    def __init__(self, app: App, settings: ServerSettings, metrics: Metrics) -> None:
        self.app = app
        self._settings = settings
        self._metrics = metrics
        self._running = 0
        self._held_bytes = 0  # of the bodies of all requests that are running
        self._key = None if settings.api_key is None else _digest(settings.api_key)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        scope = {**scope, "path": scope["path"].rstrip("/") or "/"}
        headers = Headers(scope=scope)
        origin = self._allowed_origin(scope, headers)
        answer = _Answer(send, origin, self._settings.send_seconds)
        held = _Held()
        try:
            self._check(scope, headers, origin)
            if scope["method"] == "OPTIONS" and origin is not None:
                await _preflight(headers)(scope, receive, answer.send)
            else:
                body = await self._body(headers, receive, held)
                with self._running_request():
                    await self.app(scope, _replay(body, receive), answer.send)
        except _GoneError:
            pass
        except Exception as error:
            if answer.begun:
                raise
            await as_api_error(error).response()(scope, receive, answer.send)
        finally:
            self._held_bytes -= held.n_bytes
            self._metrics.answered(scope["path"], answer.status)

    @contextlib.contextmanager
    def _running_request(self) -> Iterator[None]:
        """While one runs that has arrived whole: who sends slowly takes nobody's place."""
        if self._running >= self._settings.max_requests:
            raise ApiError(503, f"{self._settings.max_requests} requests are running already", code="overloaded")
        self._running += 1
        try:
            yield
        finally:
            self._running -= 1

    def _check(self, scope: Scope, headers: Headers, origin: str | None) -> None:
        settings = self._settings
        if self._key is None and settings.host in LOOPBACK and _host_name(headers.get("host", "")) not in LOOPBACK:
            raise ApiError(
                403, "this server answers to the names of this machine's own loopback only", code="wrong_host"
            )
        if "origin" in headers and origin is None and not _same_origin(headers):
            site = headers["origin"][:200]
            raise ApiError(403, f"pages of {site!r} may not use this server; --origin lets them", code="wrong_origin")
        asks = needs_key(scope["path"]) and scope["method"] != "OPTIONS"
        if self._key is not None and asks and not self._has_key(headers):
            raise ApiError(401, "give the API key: Authorization: Bearer KEY", code="invalid_api_key")

    def _has_key(self, headers: Headers) -> bool:
        scheme, _, given = headers.get("authorization", "").partition(" ")
        right = hmac.compare_digest(_digest(given.strip()), self._key or b"")
        return right and scheme.lower() == "bearer"

    def _allowed_origin(self, scope: Scope, headers: Headers) -> str | None:
        origin = headers.get("origin")
        return origin if origin in self._settings.origins else None

    async def _body(self, headers: Headers, receive: Receive, held: _Held) -> bytes:
        limit = self._settings.max_body_bytes
        declared = headers.get("content-length", "0")
        if not declared.isdigit() or int(declared) > limit:
            raise ApiError(413, f"a request may have {limit:,} bytes", code="body_too_large")
        body = bytearray()  # not a list of pieces: freed in between others, they would not go back to the system
        try:
            async with asyncio.timeout(self._settings.body_seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise _GoneError
                    chunk = message.get("body", b"")
                    held.n_bytes += len(chunk)
                    self._held_bytes += len(chunk)
                    if held.n_bytes > limit:
                        raise ApiError(413, f"a request may have {limit:,} bytes", code="body_too_large")
                    if self._held_bytes > _BODIES_AT_ONCE * limit and held.n_bytes > _SMALL_BYTES:
                        raise ApiError(503, "too many large requests are running already", code="overloaded")
                    body += chunk
                    if not message.get("more_body", False):
                        return bytes(body)
        except TimeoutError:
            seconds = self._settings.body_seconds
            raise ApiError(408, f"the request did not arrive within {seconds:g} s", code="timeout") from None


class _Held:
    """Bytes of one request's body."""

    n_bytes = 0


class _GoneError(Exception):
    """The client left."""


class _Answer:
    """Adds headers to an answer, and gives a client that does not take it a bounded time."""

    def __init__(self, send: Send, origin: str | None, seconds: float) -> None:
        self._send = send
        self._origin = origin
        self._seconds = seconds
        self.begun = False
        self.status = 499

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.begun = True
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            for name, value in _SECURITY.items():
                headers.setdefault(name, value)
            if self._origin is not None:
                headers["Access-Control-Allow-Origin"] = self._origin
                headers["Access-Control-Expose-Headers"] = "Retry-After"
                headers["Cross-Origin-Resource-Policy"] = "cross-origin"
                headers.add_vary_header("Origin")
        try:
            async with asyncio.timeout(self._seconds):
                await self._send(message)
        except TimeoutError:
            raise _GoneError from None


def _replay(body: bytes, receive: Receive) -> Receive:
    """Gives the body once, then whatever comes after it."""
    given = False

    async def next_message() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return next_message


def _preflight(headers: Headers) -> Response:
    """What a page of an allowed site may do: send what headers it likes, as OpenAI's client in a browser does."""
    wanted = headers.get("access-control-request-headers", "")
    return Response(
        status_code=204,
        headers={
            "Access-Control-Allow-Methods": "GET, POST, DELETE",
            "Access-Control-Allow-Headers": wanted if _NAMES.fullmatch(wanted) else "Authorization, Content-Type",
            "Access-Control-Max-Age": "600",
        },
    )


def _digest(text: str) -> bytes:
    """Of equal length for all keys, so that comparing takes the same time for each."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()


def _host_name(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _same_origin(headers: Headers) -> bool:
    try:
        return urlsplit(headers["origin"]).netloc == headers.get("host")
    except ValueError:
        return False
