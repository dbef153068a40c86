"""Errors as OpenAI's clients expect them: `{"error": {"message", "type", "param", "code"}}` with the right status."""

from __future__ import annotations

from starlette.responses import JSONResponse

from cellmd.errors import (
    ArgumentError,
    BackendError,
    BusyError,
    CellmdError,
    ContextLengthError,
    MediaError,
    PromptError,
)
from cellmd.server.replies import ErrorKind, ErrorReply

RETRY_AFTER_SECONDS = 2


class ApiError(Exception):
    """An error of the interface itself."""

    def __init__(self, status: int, message: str, *, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param

    @property
    def kind(self) -> ErrorKind:
        if self.status == 401:
            return "authentication_error"
        if self.status == 403:
            return "permission_error"
        if self.status == 429:
            return "rate_limit_error"
        return "invalid_request_error" if self.status < 500 else "server_error"

    def body(self) -> ErrorReply:
        return {"error": {"message": str(self), "type": self.kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        headers = {"Retry-After": str(RETRY_AFTER_SECONDS)} if self.status in (429, 503) else {}
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        if self.status in (408, 413):  # what is left of the request is not read
            headers["Connection"] = "close"
        return JSONResponse(self.body(), self.status, headers)


_OF_CELLMD: list[tuple[type[CellmdError], int, str]] = [
    (BusyError, 429, "queue_full"),
    (ContextLengthError, 400, "context_length_exceeded"),
    (MediaError, 400, "invalid_media"),
    (PromptError, 400, "invalid_prompt"),
    (ArgumentError, 400, "invalid_value"),
    (BackendError, 500, "model_failed"),
]


def as_api_error(error: Exception) -> ApiError:
    """Any error as one of the interface; of what nobody foresaw only the kind is told."""
    if isinstance(error, ApiError):
        return error
    for kind, status, code in _OF_CELLMD:
        if isinstance(error, kind):
            return ApiError(status, str(error), code=code)
    return ApiError(500, f"the server failed: {type(error).__name__}", code="internal_error")
