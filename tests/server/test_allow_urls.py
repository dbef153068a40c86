"""Media by URL through the server, which fetches only if it was told to."""

from __future__ import annotations

import asyncio
import contextlib
import io
import threading
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

import cellmd
from cellmd.server.fetch import Fetcher
from live_server import Live
from public_hosts import PUBLIC


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
