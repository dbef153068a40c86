"""The OpenAPI document, made of the forms that requests are checked with."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from cellmd.server.audio import AudioRequest
from cellmd.server.schemas import ChatRequest, CompletionRequest, ResponsesRequest
from cellmd.server.settings import ServerSettings

_BODIES: dict[str, tuple[type[BaseModel], str, str]] = {
    "/v1/chat/completions": (ChatRequest, "application/json", "The next turn of a conversation"),
    "/v1/completions": (CompletionRequest, "application/json", "What follows a text"),
    "/v1/responses": (ResponsesRequest, "application/json", "The next turn, in the form of OpenAI's Responses"),
    "/v1/audio/transcriptions": (AudioRequest, "multipart/form-data", "What is said in a recording"),
    "/v1/audio/translations": (AudioRequest, "multipart/form-data", "What is said in a recording, in English"),
}
_STREAMED = ("/v1/chat/completions", "/v1/completions", "/v1/responses")
_READ: dict[str, tuple[str, str]] = {
    "/": ("text/html", "A page to talk with the model"),
    "/page/{name}": ("*/*", "The page's own files"),
    "/health": ("application/json", "Whether the server runs"),
    "/metrics": ("text/plain", "What the server did, for Prometheus"),
    "/openapi.json": ("application/json", "This document"),
    "/v1/models": ("application/json", "The model"),
    "/v1/models/{name}": ("application/json", "The model, by its name"),
    "/v1/responses/{name}": ("application/json", "A response that is kept, by its id"),
}
_DELETED = {"/v1/responses/{name}": ("application/json", "Forget a response that is kept")}
_ERRORS = {
    "400": "the request is wrong",
    "401": "the API key is missing or wrong",
    "403": "the request comes from a page or by a name that may not use the server",
    "408": "the request did not arrive in time",
    "413": "the request is too large",
    "429": "too many requests are waiting; Retry-After says when to ask again",
    "500": "the model failed",
    "503": "too many requests are running",
    "504": "the answer took too long",
}


def document(settings: ServerSettings) -> dict[str, Any]:
    """OpenAPI 3.1."""
    forms = sorted({form for form, _, _ in _BODIES.values()}, key=lambda form: form.__name__)
    wanted: list[tuple[type[BaseModel], Literal["validation"]]] = [(form, "validation") for form in forms]
    _, schemas = models_json_schema(wanted, ref_template="#/components/schemas/{model}")
    error = {"type": ["string", "null"]}
    properties = {"message": {"type": "string"}, "type": {"type": "string"}, "param": error, "code": error}
    shown = {"type": "object", "required": list(properties), "properties": properties}
    components = {
        **schemas["$defs"],
        "Error": {"type": "object", "required": ["error"], "properties": {"error": shown}},
    }
    paths: dict[str, Any] = {path: {"get": _reading(path, *about)} for path, about in _READ.items()}
    for path, about in _DELETED.items():
        paths[path]["delete"] = _reading(path, *about)
    paths |= {path: {"post": _asking(path, *about)} for path, about in _BODIES.items()}
    schemes: dict[str, Any] = {}
    security: dict[str, Any] = {}
    if settings.api_key is not None:
        schemes = {"key": {"type": "http", "scheme": "bearer"}}
        security = {"security": [{"key": []}]}
    return {
        "openapi": "3.1.0",
        "info": {"title": "cellmd", "version": "1", "description": "One model, behind OpenAI's interfaces."},
        "paths": paths,
        "components": {"schemas": components, "securitySchemes": schemes},
        **security,
    }


def _reading(path: str, media_type: str, summary: str) -> dict[str, Any]:
    answer = {"description": "done", "content": {media_type: {}}}
    named = [{"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}] if "{" in path else []
    return {
        "summary": summary,
        "parameters": named,
        "responses": {"200": answer, **({"404": _error("no such")} if named else {})},
    }


def _asking(path: str, form: type[BaseModel], media_type: str, summary: str) -> dict[str, Any]:
    schema = {"$ref": f"#/components/schemas/{form.__name__}"}
    content: dict[str, Any] = {"application/json": {}}
    if path in _STREAMED:
        content["text/event-stream"] = {}
    elif media_type.startswith("multipart"):
        content |= {kind: {} for kind in ("text/plain", "text/vtt", "application/x-subrip", "text/event-stream")}
    return {
        "summary": summary,
        "requestBody": {"required": True, "content": {media_type: {"schema": schema}}},
        "responses": {
            "200": {"description": "done", "content": content},
            **{status: _error(about) for status, about in _ERRORS.items()},
        },
    }


def _error(about: str) -> dict[str, Any]:
    schema = {"$ref": "#/components/schemas/Error"}
    return {"description": about, "content": {"application/json": {"schema": schema}}}
