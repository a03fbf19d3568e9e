"""What is raised before a turn has begun, as errors in the one envelope; and what the router refuses by itself."""

from __future__ import annotations

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from services.api.audit import trail as trails
from services.api.errors import ApiError, InvalidRequest, MethodNotAllowed, NotFound
from services.api.http.session_errors import to_api_error
from services.api.http.sse import error_body
from services.api.memory.errors import SessionError
from services.api.metrics import Metrics


def add_error_handlers(app: FastAPI, metrics: Metrics) -> None:
    """Errors that are raised before a turn has begun: counted, and in the one envelope."""

    async def on_api_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, ApiError)
        metrics.errors.labels(code=error.code).inc()
        trails.current().error = error.code
        return Response(error_body(error), error.status, error.headers(), "application/json")

    async def on_http_exception(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return await on_api_error(request, _known(request, error))

    async def on_session_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, SessionError)
        return await on_api_error(request, to_api_error(error))

    app.add_exception_handler(ApiError, on_api_error)
    app.add_exception_handler(SessionError, on_session_error)
    app.add_exception_handler(HTTPException, on_http_exception)


def _known(request: Request, error: HTTPException) -> ApiError:
    """Starlette's own refusals: no such route, wrong method."""
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "")
        return MethodNotAllowed(
            f"{request.method[:20]} is not possible here, {allowed or 'another method'} is", allowed
        )
    if error.status_code == 404:
        return NotFound(f"there is nothing at {request.url.path[:200]}: GET / lists the routes")
    return InvalidRequest(str(error.detail)[:200])
