"""Errors as OpenAI's API has them."""

import logging
from typing import Any

import grpc
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ramify.client import (
    AlreadyExists,
    ClientError,
    InvalidRequest,
    NotFound,
    Overloaded,
    PermissionDenied,
    QuotaExceeded,
    Unavailable,
)

log = logging.getLogger(__name__)

CLOSED = 499  # the client has gone: nobody reads the answer


class HttpError(Exception):
    """What a request is answered with, instead."""

    def __init__(self, status: int, message: str, kind: str, code: str | None = None, parameter: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.kind, self.code, self.parameter = status, message, kind, code, parameter

    @property
    def body(self) -> dict[str, Any]:
        """In OpenAI's shape."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.parameter, "code": self.code}}


def bad_request(message: str, parameter: str | None = None, code: str | None = None) -> HttpError:
    """The caller's fault."""
    return HttpError(400, message, "invalid_request_error", code, parameter)


def of_client(error: ClientError) -> HttpError:
    """What the gateway has said."""
    message = str(error)
    match error:
        case InvalidRequest():
            return bad_request(message)
        case NotFound():
            return HttpError(404, message, "invalid_request_error", "not_found")
        case AlreadyExists():
            return HttpError(409, message, "invalid_request_error", "already_exists")
        case PermissionDenied():
            cause = error.__cause__
            if isinstance(cause, grpc.RpcError) and cause.code() is grpc.StatusCode.UNAUTHENTICATED:
                return HttpError(401, message, "authentication_error", "invalid_api_key")
            return HttpError(403, message, "permission_error")
        case QuotaExceeded():
            return HttpError(429, message, "insufficient_quota", "insufficient_quota")
        case Overloaded():
            return HttpError(429, message, "rate_limit_error", "rate_limit_exceeded")
        case Unavailable():
            return HttpError(503, message, "server_error", "unavailable")
        case _:
            return HttpError(502, message, "server_error")


async def answer_client_error(request: Request, error: Exception) -> Response:
    """A handler of Starlette's."""
    assert isinstance(error, ClientError)
    found = of_client(error)
    headers = {}
    if isinstance(error, QuotaExceeded) and error.retry_after_s is not None:
        headers["Retry-After"] = str(max(1, round(error.retry_after_s)))
    return _response(request, found, headers)


async def answer_http_error(request: Request, error: Exception) -> Response:
    """A handler of Starlette's."""
    assert isinstance(error, HttpError)
    return _response(request, error, {})


async def answer_anything(request: Request, error: Exception) -> Response:
    """A handler of Starlette's, for what is our fault."""
    log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return _response(request, HttpError(500, "the server has failed; its log tells how", "server_error"), {})


def _response(request: Request, error: HttpError, headers: dict[str, str]) -> Response:
    if error.status == 401:  # a browser asks for a name, which may be anything, and the key as the password
        page = "text/html" in request.headers.get("accept", "")
        headers["WWW-Authenticate"] = 'Basic realm="Ramify: the API key is the password"' if page else "Bearer"
    if error.status == 504:
        headers["x-should-retry"] = "false"  # else OpenAI's clients would begin the same search again
    return JSONResponse(error.body, error.status, headers)
