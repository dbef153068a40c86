"""The document that describes the server: valid, complete, and true of what the server takes and answers.

`Live` holds everything that any test asks and is answered against the document; here stands what that leaves open.
"""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import httpx
import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

import cellmd
from cellmd.server.openapi import document
from cellmd.server.settings import ServerSettings
from live_server import Live
from openapi_check import METHODS, Checker, Exchange

HELLO: Any = [{"role": "user", "content": "hello world"}]
TOOL: Any = {"name": "look", "parameters": {"type": "object", "properties": {"place": {"enum": ["a"]}}}}
SENTENCE = (files("cellmd.demo") / "media" / "sentence.wav").read_bytes()


@pytest.fixture(scope="module")
def published(live: Live) -> dict[str, Any]:
    found: dict[str, Any] = httpx.get(f"{live.url}/openapi.json").json()
    return found


@pytest.fixture(scope="module")
def asked(live: Live) -> Live:
    """A server that has been asked for everything it can do."""

    def post(path: str, **body: Any) -> None:
        answer = httpx.post(live.url + path, json=body, timeout=60)
        assert answer.status_code == 200, answer.text

    for stream in (False, True):
        chat = {"messages": HELLO, "max_tokens": 40, "stream": stream, "stream_options": {"include_usage": stream}}
        post("/v1/chat/completions", **chat, logprobs=True, top_logprobs=2, n=2)
        post("/v1/chat/completions", **chat, tools=[{"type": "function", "function": TOOL}], tool_choice="required")
        post("/v1/chat/completions", **chat, reasoning_effort="low", seed=1, temperature=1.0)
        post("/v1/completions", prompt="hello", echo=True, logprobs=1, stream=stream)
        response = {"input": "hello", "max_output_tokens": 40, "stream": stream}
        post("/v1/responses", **response, top_logprobs=1, metadata={"a": "b"}, instructions="say one")
        post("/v1/responses", **response, tools=[{"type": "function", **TOOL}], tool_choice="required")
        post("/v1/responses", **response, reasoning={"effort": "low"})
        for path in ("/v1/audio/transcriptions", "/v1/audio/translations"):
            for form in ("json", "verbose_json", "text", "srt", "vtt"):
                fields = {"response_format": form, "stream": str(stream).lower()}
                answer = httpx.post(live.url + path, data=fields, files={"file": ("x.wav", SENTENCE)}, timeout=60)
                assert answer.status_code == 200, answer.text
    kept = httpx.post(f"{live.url}/v1/responses", json={"input": "x", "max_output_tokens": 1}, timeout=60).json()["id"]
    for method in ("get", "delete"):
        assert httpx.request(method, f"{live.url}/v1/responses/{kept}").is_success
    for path in ("/", "/page/index.html", "/page/app.js", "/page/style.css", "/health", "/metrics", "/openapi.json"):
        assert httpx.get(live.url + path).is_success
    for path in ("/v1/models", "/v1/models/tiny"):
        assert httpx.get(live.url + path).is_success
    for name in ("/v1/responses/no-such", "/v1/models/no-such", "/page/no-such"):
        assert httpx.get(live.url + name).status_code == 404
    assert httpx.post(f"{live.url}/v1/chat/completions", json={}).status_code == 400
    return live


def test_it_is_valid_whatever_the_settings(published: dict[str, Any]) -> None:
    OpenAPIV31SpecValidator(published).validate()
    keyed = document(ServerSettings(api_key="secret"))
    OpenAPIV31SpecValidator(keyed).validate()
    for path, methods in keyed["paths"].items():
        for about in methods.values():
            assert ("401" in about["responses"]) == ("security" in about) == path.startswith(("/v1/", "/metrics"))


def test_it_has_every_path(live: Live, published: dict[str, Any]) -> None:
    routes = {
        (route.path.replace(":path", ""), method.lower())
        for route in live.routes
        for method in route.methods
        if method != "HEAD"
    }
    assert {(path, method) for path, about in published["paths"].items() for method in about} == routes


def test_every_answer_has_a_schema(published: dict[str, Any]) -> None:
    for path, methods in published["paths"].items():
        for method, about in methods.items():
            for status, answer in about["responses"].items():
                assert answer["content"], (method, path, status)
                for kind, content in answer["content"].items():
                    assert content["schema"], (method, path, status, kind)


def test_what_it_describes_is_answered(asked: Live, published: dict[str, Any]) -> None:
    checker = Checker(published)
    assert checker.untrue(asked.exchanges) == []
    described = {
        (method, path, kind)
        for path, methods in published["paths"].items()
        for method, about in methods.items()
        for kind in about["responses"]["200"]["content"]
    }
    seen = set()
    for exchange in asked.exchanges:
        if exchange.status == 200:
            for path in published["paths"]:
                if checker.is_of(exchange, path):
                    seen.add((exchange.method, path, exchange.headers["content-type"].partition(";")[0]))
    assert seen >= described


def test_a_lie_would_be_seen(asked: Live, published: dict[str, Any]) -> None:
    """Of every answer of the kinds that are JSON: a property more, a property less, another status, another type."""
    checker = Checker(published)
    plain = {"content-type": "application/json"}
    for exchange in asked.exchanges:
        if exchange.status != 200 or exchange.headers["content-type"] != "application/json":
            continue
        if exchange.path == "/openapi.json":
            continue
        true = json.loads(exchange.answered)
        first = next(iter(true))
        for false in ({**true, "more": 1}, {k: v for k, v in true.items() if k != first}, {**true, first: [[]]}):
            lie = Exchange(exchange.method, exchange.path, None, 200, plain, json.dumps(false).encode(), True)
            assert checker.untrue([lie])
        assert checker.untrue([Exchange(exchange.method, exchange.path, None, 418, plain, exchange.answered, True)])
    chunk = b'data: {"id":"x","created":1,"model":"m","object":"chat.completion.chunk","choices":[{"index":"0"}]}\n\n'
    stream = {"content-type": "text/event-stream"}
    assert checker.untrue([Exchange("post", "/v1/chat/completions", None, 200, stream, chunk, True)])


def test_errors_are_as_it_says(path: Path) -> None:
    """With a key and narrow bounds; `Live` checks the answers when it closes."""
    key = {"Authorization": "Bearer secret"}
    with cellmd.load(path, threads=1, context=2048) as model:
        live = Live(model, api_key="secret", max_body_bytes=1000)
        statuses = [
            httpx.get(f"{live.url}/v1/models").status_code,
            httpx.get(f"{live.url}/v1/models", headers={**key, "Origin": "http://elsewhere.example"}).status_code,
            httpx.post(f"{live.url}/v1/responses", headers=key, content=bytes(2000)).status_code,
            httpx.post(f"{live.url}/v1/completions", headers=key, content=b"{").status_code,
            httpx.get(f"{live.url}/v1/chat/completions", headers=key).status_code,
            httpx.get(f"{live.url}/health").status_code,
        ]
        live.close()
    assert statuses == [401, 403, 413, 400, 405, 200]


@pytest.mark.parametrize("method", METHODS)
def test_unknown_paths_have_errors_of_the_same_shape(live: Live, published: dict[str, Any], method: str) -> None:
    answer = httpx.request(method, f"{live.url}/v1/no-such-path")
    assert answer.status_code == 404
    assert answer.json().keys() == {"error"}
