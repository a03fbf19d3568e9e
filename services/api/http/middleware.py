"""Around every request: its id, its language, its key, its log line, and one envelope for whatever goes wrong. Pure ASGI."""

from __future__ import annotations

import hmac
import logging
import re
import time
import uuid
from collections.abc import Sequence

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.api import logs, messages
from services.api.errors import ApiError, InvalidApiKey
from services.api.http.sse import error_body, internal_error
from services.api.memory.tenancy import ANONYMOUS, tenant_of
from services.api.metrics import Metrics

log = logging.getLogger("medthink.access")

_ID = re.compile(r"[A-Za-z0-9._:\-]{1,128}")
_QUIET = ("/livez", "/readyz", "/health", "/metrics")  # asked every few seconds: logged at debug level


class RequestContextMiddleware:
    """Sets the request id, answers with it, logs one line a request and turns what escapes into an error body."""

    def __init__(self, app: ASGIApp, metrics: Metrics, api_keys: Sequence[str]) -> None:
        self._app = app
        self._metrics = metrics
        self._keys = [key.encode() for key in api_keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        asked = Headers(scope=scope)
        given = asked.get("x-request-id", "")
        request_id = given if _ID.fullmatch(given) else f"req_{uuid.uuid4().hex}"
        token = logs.request_id.set(request_id)
        language = messages.preferred(",".join(asked.getlist("accept-language")))
        language_token = messages.language.set(language)
        begun, status = time.monotonic(), 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = request_id
                if status >= 400 and scope["path"] not in _QUIET:
                    headers["content-language"] = language
                    headers.add_vary_header("Accept-Language")
            await send(message)

        try:
            scope.setdefault("state", {})["tenant"] = self._tenant(scope)
            await self._app(scope, receive, send_with_id)
        except ClientDisconnect:  # left while it sent its request: nobody is there to be told
            pass
        except Exception as error:  # noqa: BLE001 - the outermost catcher: nothing may end in a stack trace on the wire
            known = error if isinstance(error, ApiError) else internal_error(error)
            self._metrics.errors.labels(code=known.code).inc()
            if status == 0:
                await _respond(send_with_id, known)
        finally:
            self._record(scope, status, time.monotonic() - begun)
            messages.language.reset(language_token)
            logs.request_id.reset(token)

    def _tenant(self, scope: Scope) -> str:
        """Who asks; raises `InvalidApiKey`."""
        if not self._keys or not scope["path"].startswith("/v1/"):
            return ANONYMOUS
        scheme, _, key = Headers(scope=scope).get("authorization", "").partition(" ")
        given = key.strip().encode() if scheme.lower() == "bearer" else b""
        # Every key is compared, in constant time: neither the match nor its place shows in the timing.
        if sum(hmac.compare_digest(given, known) for known in self._keys) == 0:
            raise InvalidApiKey("send a valid key as 'Authorization: Bearer KEY'; the server's operator hands them out")
        return tenant_of(given.decode())

    def _record(self, scope: Scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "other")
        self._metrics.requests.labels(route=route, method=_method(scope["method"]), status=str(status)).inc()
        level = logging.DEBUG if scope["path"] in _QUIET else logging.INFO
        line = f"{scope['method']} {scope['path'][:200]} {status or 'closed'}"
        log.log(level, line, extra=logs.fields(seconds=round(seconds, 4), status=status))


def _method(method: str) -> str:
    """A label value from a small set: clients may send any word."""
    return method if method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS") else "other"


async def _respond(send: Send, error: ApiError) -> None:
    body = error_body(error)
    headers = {"content-type": "application/json", "content-length": str(len(body)), **error.headers()}
    raw = [(k.encode(), v.encode()) for k, v in headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": raw})
    await send({"type": "http.response.body", "body": body})
