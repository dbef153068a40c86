"""A server that runs in a thread of the test's own process, on a free port of the loopback. Whatever it answers is held
against its OpenAPI document."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import cellmd
from cellmd.server.openapi import document
from cellmd.server.run import server
from cellmd.server.settings import ServerSettings
from openapi_check import Checker, Exchange, Listening


class Live:
    """A server that runs in a thread of this process."""

    def __init__(self, model: cellmd.Model, **settings: Any) -> None:
        slots, queue_limit = settings.pop("slots", 3), settings.pop("queue_limit", 8)
        chosen = ServerSettings(port=free_port(), name="tiny", **{"drain_seconds": 1.0, **settings})
        self.server, self.engine = server(model, chosen, slots=slots, queue_limit=queue_limit)
        self._guard: Any = self.server.config.app
        self._listening = self.server.config.app = Listening(self._guard)
        self.url = f"http://127.0.0.1:{chosen.port}"
        self._thread = threading.Thread(target=self.server.run, daemon=True)
        self._thread.start()
        until(lambda: self.server.started)

    @property
    def counts(self) -> Any:
        return self.engine.scheduler.counts

    @property
    def routes(self) -> list[Any]:
        return list(self._guard.app.routes)

    @contextmanager
    def slowed(self) -> Iterator[None]:
        """Every step of the model takes 20 ms more."""
        runner: Any = self.engine.scheduler._runner

        def slowly(step: Callable[..., Any]) -> Callable[..., Any]:
            def slow_step(*arguments: Any) -> Any:
                time.sleep(0.02)
                return step(*arguments)

            return slow_step

        runner.advance, runner.steps = slowly(runner.advance), slowly(runner.steps)
        try:
            yield
        finally:
            del runner.advance, runner.steps

    @property
    def exchanges(self) -> list[Exchange]:
        return self._listening.exchanges

    def close(self) -> None:
        """Ends the server. What it was asked and answered has to be what its document says."""
        self.server.should_exit = True
        self._thread.join(20)
        self.engine.scheduler.close()
        checker = Checker(json.loads(json.dumps(document(self.engine.settings))))
        untrue = checker.untrue(self.exchanges)
        assert not untrue, "not as the document says:\n" + "\n".join(untrue)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends, "it never happened"
        time.sleep(0.002)
