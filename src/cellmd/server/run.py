"""Running the server: uvicorn with our own bounds on connections, and a drained end."""

from __future__ import annotations

import signal
import socket

import uvicorn

from cellmd.api import Model
from cellmd.errors import BackendError
from cellmd.server.app import application
from cellmd.server.connections import HEAD_SECONDS, connections_possible, protocol
from cellmd.server.engine import Engine
from cellmd.server.memory import memory_given_back
from cellmd.server.settings import ServerSettings


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
        http=protocol(connections_possible(settings.max_connections)),
        ws="none",
        lifespan="off",
        server_header=False,
        timeout_keep_alive=int(HEAD_SECONDS),
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
        with memory_given_back():
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
