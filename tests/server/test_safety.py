"""Wrong input, wrong clients, too much of everything: the server says no, stays up, and gives its memory back."""

from __future__ import annotations

import base64
import contextlib
import ctypes
import gc
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import wave
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

import cellmd
from cellmd.errors import ArgumentError
from cellmd.server import connections, memory
from cellmd.server.settings import ServerSettings
from live_server import Live, free_port, until

CHAT = "/v1/chat/completions"
HELLO: dict[str, Any] = {"messages": [{"role": "user", "content": "hello"}], "max_completion_tokens": 2}
LONG: dict[str, Any] = {
    **HELLO,
    "max_completion_tokens": 1500,
    "response_format": {"type": "regex", "regex": "[a-z]{4000}"},
}


@contextlib.contextmanager
def serving(path: Path, **settings: Any) -> Iterator[Live]:
    with cellmd.load(path, threads=1, context=2048) as model:
        live = Live(model, **settings)
        try:
            yield live
        finally:
            live.close()


@pytest.fixture(scope="module")
def strict(path: Path) -> Iterator[Live]:
    """Small bounds."""
    with serving(
        path,
        max_body_bytes=1 << 20,
        max_pixels=1 << 20,
        max_media_seconds=5.0,
        body_seconds=0.5,
        origins=("https://friend.example",),
        queue_limit=2,
        slots=2,
    ) as live:
        yield live


def works(live: Live, **headers: str) -> bool:
    return httpx.post(live.url + CHAT, json=HELLO, headers=headers, timeout=60).status_code == 200


def raw(live: Live, *pieces: bytes, pause: float = 0.0, seconds: float = 10.0) -> bytes:
    """What the server answers to these bytes, until it closes the connection or has said enough."""
    with socket.create_connection(("127.0.0.1", live.engine.settings.port), timeout=seconds) as connection:
        for piece in pieces:
            connection.sendall(piece)
            time.sleep(pause)
        with contextlib.suppress(TimeoutError, ConnectionError):
            answer = b""
            while chunk := connection.recv(1 << 16):
                answer += chunk
        return answer


def head(length: int | None, *more: str) -> bytes:
    lines = [f"POST {CHAT} HTTP/1.1", "Host: localhost", "Content-Type: application/json", "Connection: close", *more]
    lines += [] if length is None else [f"Content-Length: {length}"]
    return "\r\n".join([*lines, "", ""]).encode()


# ---- who may ask ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.2", "example.org"])
def test_a_public_address_needs_a_key(host: str) -> None:
    with pytest.raises(ArgumentError, match="--api-key"):
        ServerSettings(host=host)
    assert ServerSettings(host=host, api_key="secret")
    assert ServerSettings(host=host, public_without_key=True)
    with pytest.raises(ArgumentError, match="empty"):
        ServerSettings(host=host, api_key=" ")


def test_the_key_is_asked_for(path: Path) -> None:
    with serving(path, api_key="sesame") as live:
        for given in ({}, {"Authorization": "Bearer sesam"}, {"Authorization": "sesame"}, {"Authorization": "Bearer"}):
            answer = httpx.post(live.url + CHAT, json=HELLO, headers=given)
            assert answer.status_code == 401
            assert answer.json()["error"]["code"] == "invalid_api_key"
            assert httpx.get(live.url + "/metrics", headers=given).status_code == 401
        assert works(live, Authorization="Bearer sesame")
        assert works(live, Authorization="Bearer sesame", Host="anything.example")  # the key is what counts
        assert httpx.get(live.url + "/health").status_code == 200
        assert httpx.get(live.url).status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "", "[::1"])
def test_other_names_for_this_machine_are_refused(strict: Live, host: str) -> None:
    answer = httpx.post(strict.url + CHAT, json=HELLO, headers={"Host": host})
    assert answer.status_code == 403


def test_other_sites_are_refused_but_for_friends(strict: Live) -> None:
    for origin in ("https://evil.example", "null", "http://127.0.0.1:1"):
        answer = httpx.post(strict.url + CHAT, json=HELLO, headers={"Origin": origin})
        assert answer.status_code == 403
        assert "access-control-allow-origin" not in answer.headers
        preflight = httpx.options(strict.url + CHAT, headers={"Origin": origin})
        assert preflight.status_code == 403
    friend = {"Origin": "https://friend.example", "Access-Control-Request-Method": "POST"}
    for answer in (
        httpx.options(strict.url + CHAT, headers=friend),
        httpx.post(strict.url + CHAT, json=HELLO, headers=friend),
    ):
        assert answer.is_success
        assert answer.headers["access-control-allow-origin"] == "https://friend.example"
    asked = {**friend, "Access-Control-Request-Headers": "authorization,content-type,x-stainless-lang"}
    allowed = httpx.options(strict.url + CHAT, headers=asked).headers["access-control-allow-headers"]
    assert allowed == "authorization,content-type,x-stainless-lang"  # as OpenAI's client in a browser sends them
    asked["Access-Control-Request-Headers"] = "x" * 5000
    assert "xxx" not in httpx.options(strict.url + CHAT, headers=asked).headers["access-control-allow-headers"]
    assert works(strict, Origin=strict.url)


def test_the_page_may_load_nothing_from_elsewhere(strict: Live) -> None:
    headers = httpx.get(strict.url).headers
    policy = headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'")
    assert "unsafe" not in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"


@pytest.mark.parametrize("address", ["/page/../app.py", "/page/%2e%2e/app.py", "/page/app.py", "/page//etc/passwd"])
def test_only_the_pages_own_files_are_given(strict: Live, address: str) -> None:
    assert httpx.get(strict.url + address).status_code == 404


# ---- bodies ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
        b"[" * 100_000,
        b'{"messages":' + b'[{"a":' * 50_000,
        b'{"messages": [{"role": "user", "content": "x"}], "temperature": NaN}',
        b'{"messages": [{"role": "user", "content": "x"}], "seed": 1' + b"0" * 5000 + b"}",
        json.dumps({**HELLO, "response_format": {"type": "json_schema", "json_schema": {"schema": "x"}}}).encode(),
        json.dumps({**HELLO, "tools": [{"type": "function", "function": {"name": "a b"}}]}).encode(),
    ],
)
def test_bodies_that_are_no_requests(strict: Live, body: bytes) -> None:
    answer = httpx.post(strict.url + CHAT, content=body, headers={"Content-Type": "application/json"}, timeout=60)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["message"]


def test_deep_schemas_are_refused_or_done_with(strict: Live) -> None:
    schema: dict[str, Any] = {"type": "object"}
    for _ in range(90):
        schema = {"type": "object", "properties": {"a": schema}}
    form = {"type": "json_schema", "json_schema": {"schema": schema}}
    assert httpx.post(strict.url + CHAT, json={**HELLO, "response_format": form}, timeout=60).status_code in (200, 400)
    tool = {"type": "function", "function": {"name": "a", "parameters": schema}}
    assert httpx.post(strict.url + CHAT, json={**HELLO, "tools": [tool]}, timeout=60).status_code in (200, 400)
    assert works(strict)


def test_large_bodies_are_not_read(strict: Live) -> None:
    assert b" 413 " in raw(strict, head(1 << 40), b"{")
    chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    with contextlib.suppress(ConnectionError):
        assert b" 413 " in raw(strict, head(None, "Transfer-Encoding: chunked"), *[chunk] * 17)
    assert works(strict)


def test_bodies_cut_short_and_slow_ones(strict: Live) -> None:
    with socket.create_connection(("127.0.0.1", strict.engine.settings.port)) as connection:
        connection.sendall(head(1000) + b'{"messages"')
    assert b" 408 " in raw(strict, head(1000), b'{"messages"', seconds=5)
    assert works(strict)


def test_slow_heads_are_ended(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.3)
    with serving(path) as live:
        began = time.monotonic()
        assert raw(live, b"POST /v1/chat", seconds=8) == b""
        assert time.monotonic() - began < 4
        assert works(live)


def test_heads_that_are_too_large(strict: Live) -> None:
    assert not raw(strict, head(2, "X: " + "x" * 100_000), b"{}").startswith(b"HTTP/1.1 200")
    assert works(strict)


# ---- media ----------------------------------------------------------------------------------------------


def media(kind: str, content: bytes) -> dict[str, Any]:
    data = base64.b64encode(content).decode()
    if kind == "audio":
        part: dict[str, Any] = {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}
    else:
        part = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}
    return {**HELLO, "messages": [{"role": "user", "content": [part]}]}


def bomb(side: int) -> bytes:
    """A PNG of side x side pixels in few bytes."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return len(content).to_bytes(4, "big") + name + content + zlib.crc32(name + content).to_bytes(4, "big")

    header = side.to_bytes(4, "big") * 2 + bytes([8, 0, 0, 0, 0])
    packed = zlib.compress(bytes(min(side * (side + 1), 1 << 26)), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def silence(seconds: float) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as sound:
        sound.setparams((1, 1, 8000, 0, "NONE", ""))
        sound.writeframes(bytes([128]) * int(8000 * seconds))
    return file.getvalue()


@pytest.mark.parametrize(
    "body",
    [
        media("image", bomb(4_000)),
        media("image", bomb(60_000)),
        media("image", b"\x89PNG\r\n\x1a\n" + os.urandom(1000)),
        media("audio", silence(60)),
        media("audio", b"RIFF\xff\xff\xff\xffWAVEfmt " + os.urandom(200)),
        media("audio", b""),
    ],
    ids=["bomb", "huge", "broken", "endless", "lies", "empty"],
)
def test_media_that_would_take_too_much(strict: Live, body: dict[str, Any]) -> None:
    answer = httpx.post(strict.url + CHAT, json=body, timeout=60)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["code"] == "invalid_media"
    assert works(strict)


# ---- too many -------------------------------------------------------------------------------------------


def test_a_full_queue_answers_429(strict: Live) -> None:
    with strict.slowed(), contextlib.ExitStack() as streams:
        for _ in range(4):
            streams.enter_context(httpx.stream("POST", strict.url + CHAT, json={**LONG, "stream": True}, timeout=60))
        until(lambda: strict.counts.running == 2 and strict.counts.waiting == 2)
        answer = httpx.post(strict.url + CHAT, json=HELLO, timeout=60)
        assert answer.status_code == 429
        assert int(answer.headers["retry-after"]) >= 1
        assert answer.json()["error"]["type"] == "rate_limit_error"
    until(lambda: strict.counts.running == 0)
    assert works(strict)


def test_many_idle_connections(strict: Live) -> None:
    idle = [socket.create_connection(("127.0.0.1", strict.engine.settings.port)) for _ in range(300)]
    try:
        assert works(strict)
    finally:
        for connection in idle:
            connection.close()
    assert works(strict)


def test_a_client_that_does_not_read_harms_nobody(strict: Live) -> None:
    body = json.dumps({**LONG, "stream": True, "logprobs": True, "top_logprobs": 20}).encode()
    with socket.create_connection(("127.0.0.1", strict.engine.settings.port)) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.sendall(head(len(body)) + body)
        began = time.monotonic()
        assert works(strict)
        assert time.monotonic() - began < 10
    until(lambda: strict.counts.running == 0)


def test_an_answer_has_a_bounded_time(path: Path) -> None:
    with serving(path, answer_seconds=0.3) as live, live.slowed():
        answer = httpx.post(live.url + CHAT, json=LONG, timeout=60)
        assert answer.status_code == 504
        until(lambda: live.counts.running == 0)


def test_memory_comes_back(strict: Live) -> None:
    body = media("image", b"\x89PNG\r\n\x1a\n" + bytes(700_000))

    def ask(times: int) -> int:
        for _ in range(times):
            httpx.post(strict.url + CHAT, json=body, timeout=60)
            httpx.post(strict.url + CHAT, json=HELLO, timeout=60)
        gc.collect()
        resident = Path("/proc/self/statm").read_text().split()[1]
        return int(resident) * os.sysconf("SC_PAGE_SIZE")

    before = ask(10)
    assert ask(30) - before < 16 << 20  # a body that stays each time would be 30 MB and more
    assert strict.engine.scheduler.counts.running == 0


def own_memory(process: int) -> int:
    """Bytes of a process that are no file's."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("RssAnon:"))) << 10


def pools_of_threads(process: int) -> int:
    """Pools of memory that glibc made for single threads: it reserves 64 MB of addresses for each."""
    n = 0
    for line in Path(f"/proc/{process}/maps").read_text().splitlines():
        start, stop = (int(place, 16) for place in line.split()[0].split("-"))
        n += line.split()[1] == "---p" and stop % (64 << 20) == 0 and stop - start > 32 << 20
    return n


def test_memory_of_large_bodies_goes_back_to_the_system(path: Path) -> None:
    port = free_port()
    command = [sys.executable, "-m", "cellmd.cli.main", "serve", str(path), "--port", str(port), "--threads", "1"]
    with subprocess.Popen([*command, "--context", "2048"], stderr=subprocess.DEVNULL) as process:
        try:
            url = f"http://127.0.0.1:{port}"
            until(lambda: answers(url), 60)
            httpx.post(url + CHAT, json=HELLO, timeout=60)
            before = own_memory(process.pid)

            def ask() -> None:
                for _ in range(6):
                    assert httpx.post(url + CHAT, content=b" " * (5 << 20), timeout=60).status_code == 400

            threads = [threading.Thread(target=ask) for _ in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

            def is_back() -> bool:  # what refers to itself goes with later work
                httpx.post(url + CHAT, json=HELLO, timeout=60)
                return own_memory(process.pid) - before < 24 << 20  # one body that stays for each thread would be 40

            until(is_back, 30)
            assert pools_of_threads(process.pid) == 0
        finally:
            process.kill()


def test_pages_between_others_go_back_to_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_TRIM_SECONDS", 0.05)
    library = ctypes.CDLL(None)
    library.malloc.restype = ctypes.c_void_p
    blocks = [ctypes.c_void_p(library.malloc(ctypes.c_size_t(64 << 10))) for _ in range(2000)]
    for block in blocks:
        ctypes.memset(block, 1, 64 << 10)
    kept = blocks[::50]
    for block in blocks:
        if block not in kept:
            library.free(block)
    before = own_memory(os.getpid())
    with memory.memory_given_back():
        until(lambda: own_memory(os.getpid()) < before - (64 << 20))
    for block in kept:
        library.free(block)


# ---- the end --------------------------------------------------------------------------------------------


def test_sigterm_lets_answers_end(path: Path) -> None:
    port = free_port()
    command = [sys.executable, "-m", "cellmd.cli.main", "serve", str(path), "--port", str(port), "--threads", "1"]
    with subprocess.Popen([*command, "--context", "2048"], stderr=subprocess.PIPE) as process:
        try:
            url = f"http://127.0.0.1:{port}"
            until(lambda: answers(url), 60)
            with httpx.stream("POST", url + CHAT, json={**LONG, "stream": True}, timeout=60) as stream:
                lines = stream.iter_lines()
                next(lines)
                process.send_signal(signal.SIGTERM)
                rest = [line for line in lines if line]
            assert rest[-1] == "data: [DONE]"
            assert process.wait(30) == 0
        finally:
            process.kill()
        assert b"Traceback" not in process.stderr.read()  # type: ignore[union-attr]
    assert not answers(url)


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health").status_code == 200
    except httpx.TransportError:
        return False


def test_a_port_in_use_is_said(path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from cellmd.cli.main import main

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert main(["serve", str(path), "--port", str(taken.getsockname()[1])]) == 1
    assert "in use" in capfd.readouterr().err
    assert main(["serve", str(path), "--host", "0.0.0.0"]) == 1
    assert "--api-key" in capfd.readouterr().err
