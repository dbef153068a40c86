"""Holds what a server was asked and what it answered against the OpenAPI document that it publishes.

A server that listens remembers; afterwards each exchange is checked: the status and the media type are declared, the
body is of its schema, each event of a stream of its own, and a body that was taken is one that the document allows.
Properties that the document does not know count as wrong: of answers it says all.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from jsonschema import Draft202012Validator

METHODS = ("get", "post", "delete")
_MOST_BYTES = 64 << 10  # larger bodies are not kept: tests measure the memory of the process that this runs in


_ANY_ERROR = {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorReply"}}}}


@dataclass
class Exchange:
    """One request and what was answered, as far as it came."""

    method: str
    path: str
    asked: bytes | None = b""
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    answered: bytes = b""
    complete: bool = False


class Listening:
    """An ASGI application that remembers what passes through it."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.exchanges: list[Exchange] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        exchange = Exchange(scope["method"].lower(), scope["path"].rstrip("/") or "/")

        async def heard() -> Any:
            message = await receive()
            more = message.get("body", b"")
            if exchange.asked is not None:
                exchange.asked = exchange.asked + more if len(exchange.asked) + len(more) <= _MOST_BYTES else None
            return message

        async def told(message: Any) -> None:
            if message["type"] == "http.response.start":
                exchange.status = message["status"]
                exchange.headers = {key.decode(): value.decode() for key, value in message["headers"]}
            else:
                exchange.answered += message.get("body", b"")
                exchange.complete = not message.get("more_body", False)
            await send(message)

        if exchange.method in METHODS:
            self.exchanges.append(exchange)
        await self.app(scope, heard, told)


class Checker:
    """document: what the server publishes."""

    def __init__(self, document: dict[str, Any]) -> None:
        self._document = document
        self._components = {True: document["components"], False: _closed(document["components"])}
        self._validators: dict[str, Draft202012Validator] = {}

    @staticmethod
    def is_of(exchange: Exchange, path: str) -> bool:
        """Whether it is of a path that the document names."""
        return re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", path), exchange.path) is not None

    def untrue(self, exchanges: list[Exchange]) -> list[str]:
        """What of these is not as the document says."""
        found = {}
        for exchange in exchanges:
            for what in self._untrue(exchange):
                found[f"{exchange.method} {exchange.path} {exchange.status}: {what}"] = None
        return list(found)

    def _untrue(self, exchange: Exchange) -> Iterator[str]:
        paths = self._document["paths"]
        about = next((about for path, about in paths.items() if self.is_of(exchange, path)), {})
        operation = about.get(exchange.method)
        kind = exchange.headers.get("content-type", "").partition(";")[0]
        if exchange.status in (0, 499):
            return  # nobody was there to hear it
        if operation is None:
            if exchange.status < 400:
                yield "the document knows no such operation"
            operation = {"responses": {str(exchange.status): _ANY_ERROR}}
        declared = operation["responses"].get(str(exchange.status))
        if declared is None:
            yield "the document knows no such status"
        elif kind not in declared["content"]:
            yield f"the document knows no such media type: {kind}"
        else:
            yield from self._wrong(exchange, kind, declared["content"][kind]["schema"])
            missing = [name for name in declared.get("headers", {}) if name.lower() not in exchange.headers]
            yield from (f"the header {name} is missing" for name in missing)
        asked = operation.get("requestBody", {}).get("content", {}).get("application/json")
        if asked is not None and exchange.asked is not None and exchange.status == 200:
            yield from self._errors(json.loads(exchange.asked), asked["schema"], more_allowed=True)

    def _wrong(self, exchange: Exchange, kind: str, schema: dict[str, Any]) -> Iterator[str]:
        if kind == "text/event-stream":
            for one in exchange.answered.decode(errors="replace").split("\n\n")[:-1]:
                yield from self._wrong_event(dict(line.split(": ", 1) for line in one.split("\n")), schema)
        elif not exchange.complete:
            return
        elif kind == "application/json":
            yield from self._errors(json.loads(exchange.answered), schema)
        else:
            yield from self._errors(exchange.answered.decode(), schema)

    def _wrong_event(self, event: dict[str, str], schema: dict[str, Any]) -> Iterator[str]:
        yield from self._errors(event, schema)
        data = schema["properties"]["data"]
        text = data["anyOf"][0] if "anyOf" in data else data
        if "anyOf" not in data or event["data"] != data["anyOf"][1]["const"]:
            content = json.loads(event["data"])
            yield from self._errors(content, text["contentSchema"])
            if "event" in event and event["event"] != content["type"]:
                yield f"an event called {event['event']} says it is {content['type']}"

    def _errors(self, value: Any, schema: dict[str, Any], *, more_allowed: bool = False) -> Iterator[str]:
        key = json.dumps([schema, more_allowed])
        if key not in self._validators:
            whole = {**schema, "components": self._components[more_allowed]}
            self._validators[key] = Draft202012Validator(whole)
        for error in self._validators[key].iter_errors(value):
            yield f"{error.json_path}: {error.message[:500]}"


def _closed(schema: Any) -> Any:
    """The schema, of which no object may have other properties than those it names."""
    if isinstance(schema, list):
        return [_closed(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: _closed(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object":
        closed["additionalProperties"] = False
    return closed
