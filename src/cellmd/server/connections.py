"""Connections: very many may be open, and those whose request has not arrived give way to new ones.

Whoever opens thousands of connections and sends nothing, or a letter now and then, takes only places of others who do
so.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_SECONDS = 15.0
"""For the head of a request to arrive, also of the next one of a connection."""

_KEPT_FILES = 256
"""Files that a server opens beside its connections."""


class Lobby:
    """Connections that wait for a request, or for the rest of one; the longest wait first. most: open at once, all."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._waiting: OrderedDict[PatientProtocol, None] = OrderedDict()
        self._ending: set[PatientProtocol] = set()  # told to end, which takes a turn of the event loop

    def enter(self, connection: PatientProtocol) -> None:
        self._waiting[connection] = None
        self._waiting.move_to_end(connection)

    def leave(self, connection: PatientProtocol) -> None:
        self._waiting.pop(connection, None)

    def lost(self, connection: PatientProtocol) -> None:
        self.leave(connection)
        self._ending.discard(connection)

    def make_room(self, n_open: int) -> None:
        """End those that wait longest until no more than `most` are open. The newest waits too: if all others are at
        work, it is the one."""
        while n_open - len(self._ending) > self.most and self._waiting:
            longest, _ = self._waiting.popitem(last=False)
            self._ending.add(longest)
            longest.transport.abort()


class PatientProtocol(H11Protocol):
    """HTTP/1.1 that gives a connection a bounded time to send the head of a request. lobby: of its server."""

    lobby: Lobby
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._wait()
        self.lobby.make_room(len(self.connections))

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        self.lobby.lost(self)
        super().connection_lost(exc)

    def handle_events(self) -> None:
        super().handle_events()
        if self.cycle is None or self.cycle.response_complete:
            return
        self._stop_timer()  # the head is here; the body has a time of its own
        if self.conn.their_state not in (h11.IDLE, h11.SEND_BODY):
            self.lobby.leave(self)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self.transport.is_closing():
            self._stop_timer()
            self._wait()

    def _wait(self) -> None:
        self.lobby.enter(self)
        self._timer = self.loop.call_later(HEAD_SECONDS, self.transport.close)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def protocol(most: int) -> type[PatientProtocol]:
    """The protocol of one server."""
    return type("ServerProtocol", (PatientProtocol,), {"lobby": Lobby(most)})


def connections_possible(wanted: int) -> int:
    """So many connections, or fewer if the system gives no more files to this process; it is asked for them."""
    try:
        import resource
    except ImportError:  # no such bound here
        return wanted
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + _KEPT_FILES
    if soft != resource.RLIM_INFINITY and soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return wanted if soft == resource.RLIM_INFINITY else max(1, min(wanted, soft - _KEPT_FILES))
