"""The OpenAPI document, made of the forms that requests are checked with and of the types that answers are made in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import TypeAdapter

from cellmd.server import replies
from cellmd.server.audio import AudioRequest
from cellmd.server.guard import needs_key
from cellmd.server.replies import ErrorReply
from cellmd.server.schemas import ChatRequest, CompletionRequest, ResponsesRequest
from cellmd.server.settings import ServerSettings

_JSON, _EVENTS, _FORM = "application/json", "text/event-stream", "multipart/form-data"
_TRANSCRIPTS: dict[str, Any] = {
    _JSON: replies.Transcription | replies.VerboseTranscription,
    "text/plain": str,
    "text/vtt": str,
    "application/x-subrip": str,
    _EVENTS: replies.TranscriptDelta | replies.TranscriptDone | ErrorReply,
}


@dataclass(frozen=True)
class _Operation:
    """answers: types by media type; of event streams that of one event's data. body: a form, and its media type.
    named_events: events have names, and none says [DONE]."""

    summary: str
    answers: Mapping[str, Any]
    body: tuple[Any, str] | None = None
    not_found: str = ""
    named_events: bool = False


_KEPT = "no response of this id is kept"
_OPERATIONS: dict[tuple[str, str], _Operation] = {
    ("post", "/v1/chat/completions"): _Operation(
        "The next turn of a conversation",
        {_JSON: replies.ChatCompletion, _EVENTS: replies.ChatChunk | ErrorReply},
        (ChatRequest, _JSON),
    ),
    ("post", "/v1/completions"): _Operation(
        "What follows a text",
        {_JSON: replies.TextCompletion, _EVENTS: replies.TextChunk | ErrorReply},
        (CompletionRequest, _JSON),
    ),
    ("post", "/v1/responses"): _Operation(
        "The next turn, in the form of OpenAI's Responses",
        {_JSON: replies.ResponseReply, _EVENTS: replies.ResponseEvent | ErrorReply},
        (ResponsesRequest, _JSON),
        named_events=True,
    ),
    ("get", "/v1/responses/{name}"): _Operation(
        "A response that is kept, by its id", {_JSON: replies.ResponseReply}, not_found=_KEPT
    ),
    ("delete", "/v1/responses/{name}"): _Operation(
        "Forget a response that is kept", {_JSON: replies.DeletedResponse}, not_found=_KEPT
    ),
    ("post", "/v1/audio/transcriptions"): _Operation(
        "What is said in a recording", _TRANSCRIPTS, (AudioRequest, _FORM)
    ),
    ("post", "/v1/audio/translations"): _Operation(
        "What is said in a recording, in English", _TRANSCRIPTS, (AudioRequest, _FORM)
    ),
    ("get", "/v1/models"): _Operation("The model", {_JSON: replies.ModelList}),
    ("get", "/v1/models/{name}"): _Operation(
        "The model, by its name", {_JSON: replies.ModelReply}, not_found="the server has no model of this name"
    ),
    ("get", "/health"): _Operation("Whether the server runs", {_JSON: replies.Health}),
    ("get", "/metrics"): _Operation("What the server did, for Prometheus", {"text/plain": str}),
    ("get", "/openapi.json"): _Operation("This document", {_JSON: dict[str, Any]}),
    ("get", "/"): _Operation("A page to talk with the model", {"text/html": str}),
    ("get", "/page/{name}"): _Operation(
        "The page's own files",
        {"text/html": str, "text/css": str, "text/javascript": str},
        not_found="the page has no such file",
    ),
}
_ERRORS = {
    "400": "the request is wrong",
    "401": "the API key is missing or wrong",
    "403": "the request comes from a page or by a name that may not use the server",
    "408": "the request did not arrive in time",
    "413": "the request is too large",
    "429": "too many requests are waiting; Retry-After says when to ask again",
    "500": "the server failed",
    "503": "too many requests are running; Retry-After says when to ask again",
    "504": "the answer took too long",
}
_OF_ANSWERS = ("400", "429", "504")
"""Errors of what the model answers; the others are what any request may meet."""

_SECONDS = {"type": "integer", "minimum": 1}
_HEADERS: dict[str, tuple[str, Any]] = {
    "401": ("WWW-Authenticate", {"type": "string"}),
    "429": ("Retry-After", _SECONDS),
    "503": ("Retry-After", _SECONDS),
}
_BODY, _DONE = "body", "[DONE]"


def document(settings: ServerSettings) -> dict[str, Any]:
    """OpenAPI 3.1."""
    schemas, definitions = _schemas()
    keyed = settings.api_key is not None
    paths: dict[str, Any] = {}
    for (method, path), operation in _OPERATIONS.items():
        about = paths.setdefault(path, {})[method] = _described(method, path, operation, schemas)
        if needs_key(path) and keyed:
            about["responses"]["401"] = _error("401")
            about["security"] = [{"key": []}]
    components: dict[str, Any] = {"schemas": definitions}
    if keyed:
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "cellmd", "version": "1", "description": "One model, behind OpenAI's interfaces."},
        "paths": paths,
        "components": components,
    }


def _schemas() -> tuple[dict[Any, Any], dict[str, Any]]:
    """Schemas of all bodies and answers, by operation and media type, and what they refer to, by name."""
    wanted: list[tuple[Any, Literal["validation", "serialization"], TypeAdapter[Any]]] = []
    for key, operation in _OPERATIONS.items():
        if operation.body is not None:
            wanted.append(((key, _BODY), "validation", TypeAdapter(operation.body[0])))
        wanted += [((key, kind), "serialization", TypeAdapter(made)) for kind, made in operation.answers.items()]
    made, rest = TypeAdapter.json_schemas(wanted, ref_template="#/components/schemas/{model}")
    return {key: schema for (key, _), schema in made.items()}, rest["$defs"]


def _described(method: str, path: str, operation: _Operation, schemas: Mapping[Any, Any]) -> dict[str, Any]:
    key = (method, path)
    content = {kind: {"schema": schemas[key, kind]} for kind in operation.answers}
    if _EVENTS in content:
        content[_EVENTS] = {"schema": _one_event(content[_EVENTS]["schema"], named=operation.named_events)}
    statuses = [status for status in _ERRORS if status not in ("401", *_OF_ANSWERS)]
    about: dict[str, Any] = {
        "summary": operation.summary,
        "responses": {"200": {"description": "done", "content": content}},
    }
    if operation.body is not None:
        statuses = sorted([*statuses, *_OF_ANSWERS])
        body = {"schema": schemas[key, _BODY]}
        about["requestBody"] = {"required": True, "content": {operation.body[1]: body}}
    if operation.not_found:
        about["parameters"] = [{"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}]
        about["responses"]["404"] = _error("404", operation.not_found)
    about["responses"] |= {status: _error(status) for status in statuses}
    return about


def _one_event(data: Mapping[str, Any], *, named: bool) -> dict[str, Any]:
    """One event of a stream as OpenAPI 3.2 describes it; 3.1 says nothing of streams."""
    properties: dict[str, Any] = {
        "data": {"type": "string", "contentMediaType": "application/json", "contentSchema": data}
    }
    if named:
        properties["event"] = {"type": "string", "description": "the type that stands in the data"}
    else:
        properties["data"] = {"anyOf": [properties["data"], {"const": _DONE, "description": "at the end"}]}
    return {"description": "one event", "type": "object", "required": ["data"], "properties": properties}


def _error(status: str, description: str = "") -> dict[str, Any]:
    about: dict[str, Any] = {
        "description": description or _ERRORS[status],
        "content": {_JSON: {"schema": {"$ref": "#/components/schemas/ErrorReply"}}},
    }
    if status in _HEADERS:
        name, schema = _HEADERS[status]
        about["headers"] = {name: {"schema": schema}}
    return about
