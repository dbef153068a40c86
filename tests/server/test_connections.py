"""Thousands of connections that send nothing, little, or do not read: others are answered, and memory returns."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import resource
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

import cellmd
from cellmd.server import connections
from cellmd.server.connections import connections_possible
from live_server import Live, until

CHAT = "/v1/chat/completions"
HELLO: dict[str, Any] = {"messages": [{"role": "user", "content": "hello"}], "max_completion_tokens": 2}
N_IDLE, N_SLOW_HEADS, N_SLOW_BODIES, N_DEAF = 2000, 200, 400, 12


@contextlib.contextmanager
def files(n: int) -> Iterator[None]:
    """This process, which is client and server, may open so many files."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    soft = max(before[0], n) if before[1] == resource.RLIM_INFINITY else max(before[0], min(n, before[1]))
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@contextlib.contextmanager
def serving(path: Path, **settings: Any) -> Iterator[Live]:
    with cellmd.load(path, threads=1, context=2048) as model:
        live = Live(model, **settings)
        try:
            yield live
        finally:
            live.close()


def connected(live: Live, n: int, first: bytes = b"") -> list[socket.socket]:
    made = []
    for _ in range(n):
        connection = socket.create_connection(("127.0.0.1", live.engine.settings.port), timeout=20)
        if first:
            connection.sendall(first)
        made.append(connection)
    return made


def head(length: int) -> bytes:
    lines = [f"POST {CHAT} HTTP/1.1", "Host: localhost", "Content-Type: application/json", f"Content-Length: {length}"]
    return "\r\n".join([*lines, "", ""]).encode()


def asked(live: Live) -> float:
    """Seconds that an answer takes on a new connection."""
    began = time.monotonic()
    assert httpx.post(live.url + CHAT, json=HELLO, timeout=60).status_code == 200
    return time.monotonic() - began


def closed(connection: socket.socket) -> bool:
    connection.settimeout(0.05)
    try:
        return connection.recv(1) == b""
    except TimeoutError:
        return False
    except ConnectionError:
        return True


def resident() -> int:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_thousands_of_connections_harm_nobody(path: Path) -> None:
    deaf = json.dumps({**HELLO, "max_completion_tokens": 300, "stream": True, "logprobs": True, "top_logprobs": 20})
    with files(2 * (N_IDLE + N_SLOW_HEADS + N_SLOW_BODIES) + 500), serving(path, queue_limit=64, slots=2) as live:
        alone = max(asked(live) for _ in range(3))
        after: list[int] = []
        for _ in range(2):
            crowd = connected(live, N_IDLE)
            crowd += connected(live, N_SLOW_HEADS, b"POST /v1/chat/comp")
            crowd += connected(live, N_SLOW_BODIES, head(1000) + b'{"mess')
            crowd += connected(live, N_DEAF, head(len(deaf)) + deaf.encode())
            try:
                assert max(asked(live) for _ in range(5)) < alone + 10
                for i in range(0, len(crowd) - N_DEAF, 100):  # a letter now and then
                    with contextlib.suppress(OSError):
                        crowd[i].send(b"a")
                assert asked(live) < alone + 10
            finally:
                for connection in crowd:
                    connection.close()
            until(lambda: len(live.server.server_state.connections) <= 1 and live.counts.running == 0, 60)
            assert asked(live) < alone + 5
            after.append(resident())
        assert after[-1] - after[0] < 24 << 20
        assert live.counts.failed == 0


def test_those_without_a_request_give_way(path: Path) -> None:
    with serving(path, max_connections=40) as live:
        first = connected(live, 30)
        until(lambda: len(live.server.server_state.connections) == 30)
        talking = httpx.Client(base_url=live.url)
        assert talking.post(CHAT, json=HELLO, timeout=60).status_code == 200
        later = connected(live, 60)
        until(lambda: len(live.server.server_state.connections) <= 40)
        assert asked(live) < 30
        until(lambda: all(map(closed, first)))
        assert sum(map(closed, later)) <= 30
        assert not closed(later[-1])
        for connection in [*first, *later]:
            connection.close()
        talking.close()


def test_answers_that_are_being_made_do_not_give_way(path: Path) -> None:
    with serving(path, max_connections=4, slots=3) as live, live.slowed(), contextlib.ExitStack() as streams:
        body = {**HELLO, "max_completion_tokens": 40, "stream": True}
        running = [
            streams.enter_context(httpx.stream("POST", live.url + CHAT, json=body, timeout=60)) for _ in range(3)
        ]
        crowd = connected(live, 30)
        for answer in running:
            assert list(answer.iter_lines())[-2] == "data: [DONE]"
        for connection in crowd:
            connection.close()


def test_more_requests_than_may_run(path: Path) -> None:
    """Those that have not arrived do not count."""
    with serving(path, max_requests=2, slots=2) as live, live.slowed(), contextlib.ExitStack() as streams:
        slow = connected(live, 20, head(1000) + b'{"mess')
        body = {**HELLO, "max_completion_tokens": 500, "stream": True, "response_format": LONG}
        for _ in range(2):
            assert streams.enter_context(httpx.stream("POST", live.url + CHAT, json=body, timeout=60)).is_success
        answer = httpx.post(live.url + CHAT, json=HELLO, timeout=60)
        assert answer.status_code == 503
        assert int(answer.headers["retry-after"]) >= 1
        for connection in slow:
            connection.close()


LONG = {"type": "regex", "regex": "[a-z]{4000}"}


def test_large_bodies_do_not_keep_small_ones_out(path: Path) -> None:
    with serving(path, max_body_bytes=1 << 20) as live:
        large = connected(live, 5, head(1 << 20) + b" " * ((1 << 20) - 1000))
        assert httpx.post(live.url + CHAT, json=HELLO, timeout=60).status_code == 200
        refused = httpx.post(live.url + CHAT, content=b" " * 900_000, timeout=60)
        assert refused.status_code in (400, 503)
        for connection in large:
            connection.close()
        until(lambda: len(live.server.server_state.connections) <= 1)
        assert httpx.post(live.url + CHAT, content=b" " * 900_000, timeout=60).status_code == 400  # no JSON, but read


def test_the_system_is_asked_for_files(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = [(1024, 1 << 20)]
    monkeypatch.setattr(resource, "getrlimit", lambda kind: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda kind, limit: limits.append(limit))
    assert connections_possible(4096) == 4096
    assert limits[-1] == (4096 + connections._KEPT_FILES, 1 << 20)
    limits.append((1024, 2048))
    assert connections_possible(4096) == 2048 - connections._KEPT_FILES
    limits.append((100, 100))
    assert connections_possible(4096) == 1
    limits.append((resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert connections_possible(4096) == 4096
