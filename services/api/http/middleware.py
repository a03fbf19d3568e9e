"""Around every request: its id, its language, its key and limits, its log line, audit entry and trace, and one envelope for
whatever goes wrong. Pure ASGI; what costs something per frame is there only when it was switched on.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import re
import time
import uuid
from dataclasses import dataclass

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.api import logs, messages
from services.api.access.door import AccessDoor
from services.api.access.limits import Ticket
from services.api.audit import trail as trails
from services.api.audit.file import AuditTrail
from services.api.audit.trail import Trail
from services.api.errors import ApiError, AuditUnavailable, HeadersTooLarge, RequestTimedOut
from services.api.http.sse import error_body, internal_error, timed_out_frames
from services.api.memory.tenancy import ANONYMOUS
from services.api.metrics import Metrics
from services.api.tracing import Tracing

log = logging.getLogger("medthink.access")

_ID = re.compile(r"[A-Za-z0-9._:\-]{1,128}")
_QUIET = ("/livez", "/readyz", "/health", "/metrics")  # asked every few seconds: logged at debug level
_AUDITED = ("/v1/", "/cds-services", "/cases/")
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the middleware works with, built once by the app. `request_limit_s` 0: a request may take any time."""

    access: AccessDoor
    metrics: Metrics
    audit: AuditTrail | None = None
    audit_required: bool = False
    tracing: Tracing | None = None
    request_limit_s: float = 0.0
    max_header_bytes: int = 65536


class RequestContextMiddleware:
    """Sets the request id, answers with it, logs one line a request and turns what escapes into an error body."""

    def __init__(self, app: ASGIApp, surroundings: Surroundings) -> None:
        self._app = app
        self._around = surroundings

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
        trail = Trail(request_id, _method(scope["method"]))
        trails.follow(trail)
        begun = time.monotonic()
        answer = _Answer(send, trail, language, scope["path"] not in _QUIET)
        hashes = self._hash(scope, receive, answer)
        ticket: Ticket | None = None
        try:
            self._check(scope, asked)
            path = scope["path"]
            caller = self._around.access.caller(path, asked.get("authorization", ""))
            scope.setdefault("state", {})["tenant"] = caller.owner if caller else ANONYMOUS
            trail.caller = caller.id if caller else None
            ticket = self._around.access.enter(path, caller)
            answer.more = ticket.headers if ticket else ()
            await self._serve(scope, hashes.receive if hashes else receive, answer)
        except ClientDisconnect:  # left while it sent its request: nobody is there to be told
            pass
        except Exception as error:  # noqa: BLE001 - the outermost catcher: nothing may end in a stack trace on the wire
            known = error if isinstance(error, ApiError) else internal_error(error)
            trail.error = known.code
            self._around.metrics.errors.labels(code=known.code).inc()
            await answer.fail(known, scope["path"])
        finally:
            if ticket is not None:
                ticket.leave()
            trail.seconds = time.monotonic() - begun
            trail.route = getattr(scope.get("route"), "path", "other")
            trail.client = (scope.get("client") or (None,))[0]
            if hashes is not None:
                trail.request_hash, trail.response_hash = hashes.received.hexdigest(), hashes.sent.hexdigest()
            self._record(scope, trail, asked)
            messages.language.reset(language_token)
            logs.request_id.reset(token)

    def _check(self, scope: Scope, asked: Headers) -> None:
        """Raises `HeadersTooLarge`; `AuditUnavailable` while what must be recorded cannot be."""
        limit = self._around.max_header_bytes
        if sum(len(name) + len(value) for name, value in asked.raw) > limit:
            raise HeadersTooLarge(f"the request's headers are larger than {limit} bytes: send fewer or shorter ones")
        unwritten = self._around.audit is None or self._around.audit.is_broken
        if unwritten and self._around.audit_required and scope["path"].startswith(_AUDITED):
            raise AuditUnavailable("the audit trail cannot be written, so nothing is answered: retry in a moment")

    async def _serve(self, scope: Scope, receive: Receive, answer: _Answer) -> None:
        limit_s = self._around.request_limit_s
        if not limit_s:
            await self._app(scope, receive, answer.send)
            return
        timer = asyncio.timeout(limit_s)
        try:
            async with timer:
                await self._app(scope, receive, answer.send)
        except TimeoutError:
            if not timer.expired():
                raise
            raise RequestTimedOut(
                f"the request took longer than {limit_s:g} s and was stopped: ask for less, or with a smaller max_tokens"
            ) from None

    def _hash(self, scope: Scope, receive: Receive, answer: _Answer) -> _Hashes | None:
        audit = self._around.audit
        if audit is None or not scope["path"].startswith(_AUDITED):
            return None
        answer.hashes = _Hashes(receive, audit)
        return answer.hashes

    def _record(self, scope: Scope, trail: Trail, asked: Headers) -> None:
        """Counts, logs, audits, traces. The log has the route and not the path: people write names into paths."""
        around = self._around
        around.metrics.requests.labels(route=trail.route, method=trail.method, status=str(trail.status)).inc()
        level = logging.DEBUG if scope["path"] in _QUIET else logging.INFO
        line = f"{trail.method} {trail.route} {trail.status or 'closed'}"
        values = {"seconds": round(trail.seconds, 4), "status": trail.status} | (
            {"key": trail.caller} if trail.caller else {}
        )
        log.log(level, line, extra=logs.fields(**values))
        if around.audit is not None and scope["path"].startswith(_AUDITED):
            around.audit.add(trail)
        if around.tracing is not None and scope["path"] not in _QUIET:
            with contextlib.suppress(Exception):  # a trace is never worth a request
                around.tracing.record(trail, asked.get("traceparent", ""))


class _Hashes:
    """Keyed hashes of the body received and the body sent, fed as they pass."""

    def __init__(self, receive: Receive, audit: AuditTrail) -> None:
        self._receive = receive
        self.received: hmac.HMAC = audit.hasher()
        self.sent: hmac.HMAC = audit.hasher()

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.request":
            self.received.update(message.get("body", b""))
        return message


class _Answer:
    """The way out: adds our headers, and notes how the answer began and whether it ended."""

    def __init__(self, send: Send, trail: Trail, language: str, tells_language: bool) -> None:
        self._send = send
        self._trail = trail
        self._language = language
        self._tells_language = tells_language
        self._streams = False
        self.more: tuple[tuple[str, str], ...] = ()
        self.hashes: _Hashes | None = None

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._begin(message)
        elif message["type"] == "http.response.body":
            if self.hashes is not None:
                self.hashes.sent.update(message.get("body", b""))
            if not message.get("more_body", False):
                self._trail.complete = True
        await self._send(message)

    def _begin(self, message: Message) -> None:
        self._trail.status = status = message["status"]
        headers = MutableHeaders(scope=message)
        headers["x-request-id"] = self._trail.request_id
        for name, value in self.more:
            headers[name] = value
        self._streams = headers.get("content-type", "").startswith("text/event-stream")
        if status >= 400 and self._tells_language:
            headers["content-language"] = self._language
            headers.add_vary_header("Accept-Language")

    async def fail(self, error: ApiError, path: str) -> None:
        """The error as an answer, or as the last frames of a stream that has begun."""
        if self._trail.status == 0:
            await _respond(self.send, error)
        elif self._streams and not self._trail.complete:
            frames = timed_out_frames(error, of_responses=path.startswith("/v1/responses"))
            await self.send({"type": "http.response.body", "body": frames})


def _method(method: str) -> str:
    """A label value from a small set: clients may send any word."""
    return method if method in _METHODS else "other"


async def _respond(send: Send, error: ApiError) -> None:
    body = error_body(error)
    headers = {"content-type": "application/json", "content-length": str(len(body)), **error.headers()}
    raw = [(k.encode(), v.encode()) for k, v in headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": raw})
    await send({"type": "http.response.body", "body": body})
