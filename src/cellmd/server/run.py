"""Running the server: uvicorn, with time limits on connections that send nothing, and a drained end."""

from __future__ import annotations

import asyncio
import signal
import socket
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from cellmd.api import Model
from cellmd.errors import BackendError
from cellmd.server.app import application
from cellmd.server.engine import Engine
from cellmd.server.settings import ServerSettings

_HEAD_SECONDS = 15.0


class PatientProtocol(H11Protocol):
    """HTTP/1.1 that gives a connection a bounded time to send the head of a request."""

    _waiting: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def handle_events(self) -> None:
        super().handle_events()
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_waiting()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self.transport.is_closing():
            self._stop_waiting()
            self._wait()

    def _wait(self) -> None:
        self._waiting = self.loop.call_later(_HEAD_SECONDS, self.transport.close)

    def _stop_waiting(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None


def server(model: Model, settings: ServerSettings, *, slots: int, queue_limit: int) -> tuple[uvicorn.Server, Engine]:
    """A server that is ready to run, and its engine, whose scheduler has to be closed after it."""
    scheduler = model.scheduler(
        slots, queue_limit=queue_limit, cache_dir=settings.cache_dir, cache_bytes=settings.cache_bytes
    )
    engine = Engine(model, scheduler, settings)
    config = uvicorn.Config(
        application(engine),
        host=settings.host,
        port=settings.port,
        http=PatientProtocol,
        ws="none",
        lifespan="off",
        server_header=False,
        limit_concurrency=2 * settings.max_requests,
        timeout_keep_alive=int(_HEAD_SECONDS),
        timeout_graceful_shutdown=int(settings.drain_seconds),
        h11_max_incomplete_event_size=32 << 10,
        log_level="warning",
        proxy_headers=False,
    )
    return uvicorn.Server(config), engine


def serve(model: Model, settings: ServerSettings, *, slots: int, queue_limit: int) -> None:
    """Serve until SIGTERM or SIGINT; then take no more, let answers end, and return."""
    listening = _listen(settings)
    running, engine = server(model, settings, slots=slots, queue_limit=queue_limit)
    # uvicorn raises the signal that ended it once more, for the handlers that were there before it.
    before = {number: signal.signal(number, _ended) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        running.run(sockets=[listening])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        engine.scheduler.close()
        listening.close()


def _listen(settings: ServerSettings) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listening = socket.socket(family, kind, protocol)
    except OSError as error:
        raise BackendError(f"{settings.host} is no address of this machine: {error}") from None
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
    except OSError as error:
        listening.close()
        raise BackendError(f"cannot listen at {settings.host}, port {settings.port}: {error.strerror}") from None
    return listening


def _ended(number: int, frame: object) -> None:
    """The server has ended already, in good order."""
