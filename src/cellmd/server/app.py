"""The application: which path does what."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from cellmd.errors import CellmdError
from cellmd.server.audio import transcriptions, translations
from cellmd.server.chat import chat_completions
from cellmd.server.completions import completions
from cellmd.server.engine import Engine
from cellmd.server.errors import ApiError, as_api_error
from cellmd.server.guard import App, Guard
from cellmd.server.metrics import CONTENT_TYPE, Metrics
from cellmd.server.openapi import document
from cellmd.server.replies import Health, Modality, ModelList, ModelReply
from cellmd.server.responses import responses, stored_response

PAGE_FILES = {
    "index.html": "text/html",
    "style.css": "text/css",
    "app.js": "text/javascript",
    "chat.js": "text/javascript",
    "elements.js": "text/javascript",
    "media.js": "text/javascript",
    "markdown.js": "text/javascript",
    "store.js": "text/javascript",
    "view.js": "text/javascript",
}


def application(engine: Engine) -> App:
    """The ASGI application of an engine."""
    routes = [
        Route("/", _page, methods=["GET"]),
        Route("/page/{name}", _page, methods=["GET"]),
        Route("/health", _health, methods=["GET"]),
        Route("/metrics", _metrics, methods=["GET"]),
        Route("/openapi.json", _openapi, methods=["GET"]),
        Route("/v1/models", _models, methods=["GET"]),
        Route("/v1/models/{name:path}", _model, methods=["GET"]),
        Route("/v1/chat/completions", chat_completions, methods=["POST"]),
        Route("/v1/completions", completions, methods=["POST"]),
        Route("/v1/responses", responses, methods=["POST"]),
        Route("/v1/responses/{name}", stored_response, methods=["GET", "DELETE"]),
        Route("/v1/audio/transcriptions", transcriptions, methods=["POST"]),
        Route("/v1/audio/translations", translations, methods=["POST"]),
    ]
    app = Starlette(routes=routes, exception_handlers=_HANDLERS)
    app.router.redirect_slashes = False  # the guard leaves none at the end
    app.state.engine = engine
    app.state.metrics = Metrics(frozenset(route.path for route in routes))
    app.state.openapi = json.dumps(document(engine.settings))
    return Guard(app, engine.settings, app.state.metrics)


async def _http_error(http: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message, code = f"{http.method} {http.url.path}: {error.detail}", None
    if error.status_code == 404:
        code, path = "not_found", http.url.path
        known = http.app.state.metrics.known_paths
        instead = f"/v1{path} is what is meant?" if f"/v1{path}" in known else "/openapi.json says what there is"
        message = f"this server has nothing at {path[:200]}; {instead}"
    response = ApiError(error.status_code, message, code=code).response()
    response.headers.update(error.headers or {})
    return response


async def _any_error(http: HttpRequest, error: Exception) -> Response:
    return as_api_error(error).response()


_HANDLERS: dict[Any, Any] = {
    HTTPException: _http_error,
    ApiError: _any_error,
    CellmdError: _any_error,
    Exception: _any_error,
}
"""The first three are answers like others; what nobody foresaw is logged with its traceback as well."""


async def _health(http: HttpRequest) -> Response:
    health: Health = {"status": "ok"}
    return JSONResponse(health)


async def _metrics(http: HttpRequest) -> Response:
    engine: Engine = http.app.state.engine
    text = http.app.state.metrics.text(engine.scheduler.counts, engine.scheduler.n_slots)
    return PlainTextResponse(text, headers={"Content-Type": CONTENT_TYPE})


async def _openapi(http: HttpRequest) -> Response:
    return Response(http.app.state.openapi, media_type="application/json")


async def _models(http: HttpRequest) -> Response:
    models: ModelList = {"object": "list", "data": [_described(http.app.state.engine)]}
    return JSONResponse(models)


async def _model(http: HttpRequest) -> Response:
    engine: Engine = http.app.state.engine
    if http.path_params["name"] != engine.settings.name:
        name = http.path_params["name"]
        raise ApiError(404, f"no model {name!r}; this server has {engine.settings.name!r}", code="model_not_found")
    return JSONResponse(_described(engine))


def _described(engine: Engine) -> ModelReply:
    config = engine.model.config
    inputs: list[Modality] = ["text"]
    inputs += ["image", "video"] if config.vision else []
    inputs += ["audio"] if config.audio else []
    return {
        "id": engine.settings.name,
        "object": "model",
        "created": engine.created,
        "owned_by": "cellmd",
        "context_length": engine.model.context,
        "input_modalities": inputs,
    }


async def _page(http: HttpRequest) -> Response:
    name = http.path_params.get("name", "index.html")
    if name not in PAGE_FILES:
        raise ApiError(404, f"no page {name!r}", code="not_found")
    content = files("cellmd.server").joinpath("page", name).read_bytes()
    return Response(content, media_type=f"{PAGE_FILES[name]}; charset=utf-8", headers={"Cache-Control": "no-cache"})
