"""Errors as clients of OpenAI's API expect them. The middleware here is the one place that turns exceptions into responses."""

import logging
from collections.abc import Mapping
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Handler

from specdec.errors import RequestError
from specdec.server.events import event, open_events

MAX_BODY_BYTES = 32 * 1024 * 1024

_INVALID, _SERVER, _LIMIT = "invalid_request_error", "server_error", "rate_limit_error"
_log = logging.getLogger(__name__)


class ApiError(Exception):
    """An error response: HTTP status and the fields of OpenAI's error object."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """The JSON object that clients read."""
        kind = _SERVER if self.status >= 500 else _LIMIT if self.status == 429 else _INVALID
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> web.Response:
        """The error as a whole response."""
        return web.json_response(self.body(), status=self.status, headers=self.headers)


@web.middleware
async def shape_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer every exception in OpenAI's shape: as a response, or as a last event where a stream has begun."""
    try:
        return await handler(request)
    except ConnectionResetError:
        raise  # the client is gone, nobody is left to tell
    except Exception as error:
        problem = _to_api_error(request, error)
    events = open_events(request)
    if events is None:
        return problem.response()
    await events.send(event(problem.body()))
    return await events.end()


def _to_api_error(request: web.Request, error: Exception) -> ApiError:
    if isinstance(error, ApiError):
        return error
    if isinstance(error, RequestError):
        return ApiError(400, error.message, param=error.param, code=error.code)
    if isinstance(error, web.HTTPException):
        return _from_http(request, error)
    _log.error("%s %s failed.", request.method, request.path, exc_info=error)
    return ApiError(500, "The server failed on this request; its log says why.", code="internal_error")


def _from_http(request: web.Request, error: web.HTTPException) -> ApiError:
    """aiohttp's own errors: an unknown route, a wrong method, a body that is too large."""
    if isinstance(error, web.HTTPMethodNotAllowed):
        allowed = ", ".join(sorted(error.allowed_methods))
        message = f"{request.path} does not take {request.method}; use {allowed}."
        return ApiError(405, message, code="method_not_allowed", headers={"Allow": allowed})
    if error.status == 404:
        return ApiError(404, f"There is no {request.method} {request.path} on this server.", code="not_found")
    if error.status == 413:
        return too_large()
    return ApiError(error.status, error.text or error.reason)


def too_large() -> ApiError:
    """The refusal of a body with too many bytes."""
    return ApiError(413, f"The request's body is larger than {MAX_BODY_BYTES >> 20} MB.", code="request_too_large")
