"""/cds-services: discovery, calls, feedback. An answer is cards or an OperationOutcome; a client that leaves aborts its call."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

import orjson
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from services.api import messages
from services.api.ehr.audit import AuditTrail
from services.api.ehr.calls import Calls
from services.api.ehr.feedback import FeedbackFile, read_feedback
from services.api.ehr.hooks import Call, discovery, read_call, read_json, require_service
from services.api.ehr.outcomes import HookError, error_response
from services.api.ehr.review import Caller, Reviewed, Reviewer
from services.api.ehr.tokens import Trusted, Verifier
from services.api.errors import ApiError
from services.api.http.body import read_bytes
from services.api.http.sse import ClientGone, internal_error, until_client_leaves
from services.api.logs import fields
from services.api.messages import Language
from services.api.metrics import Metrics

log = logging.getLogger(__name__)

MOST_BYTES: Final = 2 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Hooks:
    """What the routes need. `verifier` `None`: nobody is asked for a token, which settings allow on loopback alone."""

    reviewer: Reviewer
    calls: Calls[Reviewed]
    verifier: Verifier | None
    feedback: FeedbackFile
    audit: AuditTrail
    metrics: Metrics
    base_url: str
    language: Language

    def language_of(self, request: Request) -> Language:
        asked = request.headers.get("accept-language")
        return messages.preferred(asked) if asked and asked.strip() not in ("", "*") else self.language

    async def caller(self, request: Request) -> Caller:
        """Who calls; raises `HookError` 401."""
        base = self.base_url or str(request.base_url).rstrip("/")
        trusted = Trusted("anonymous", "", "")
        if self.verifier is not None:
            path = request.url.path
            service = path.removesuffix("/feedback")
            # EHRs differ in what they call the endpoint: the call's own address, the service's, or the list of services.
            audience = {f"{self.base_url}{p}" for p in (path, service, "/cds-services")} | {self.base_url}
            trusted = await self.verifier.verify(request.headers.get("authorization", ""), audience)
        return Caller(trusted.issuer, base, self.language_of(request), trusted.tenant, trusted.jti)


class _Answer(Response):
    """Computes a response while watching for the client, and puts every error into an OperationOutcome."""

    def __init__(self, hooks: Hooks, compute: Callable[[], Awaitable[Response]]) -> None:
        super().__init__()
        self._hooks = hooks
        self._compute = compute

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def work() -> None:
            response = await answer(self._hooks, self._compute)
            await response(scope, receive, send)

        try:
            await until_client_leaves(receive, work())
        except ClientGone:
            self._hooks.metrics.disconnects.inc()
            log.info("client left, call aborted")


async def answer(hooks: Hooks, compute: Callable[[], Awaitable[Response]]) -> Response:
    """What `compute` returns, or what it raises as an OperationOutcome."""
    try:
        return await compute()
    except HookError as error:
        hooks.metrics.errors.labels(code=f"cds_hooks_{error.status}").inc()
        return error_response(error)
    except ApiError as error:
        hooks.metrics.errors.labels(code=error.code).inc()
        return error_response(error)
    except Exception as error:  # noqa: BLE001 - nothing may end in a stack trace on the wire
        known = internal_error(error)
        hooks.metrics.errors.labels(code=known.code).inc()
        return error_response(known)


def hooks_router(hooks: Hooks) -> APIRouter:
    # Not in the OpenAPI document, whose errors are OpenAI's: HL7 describes these routes, and discovery their services.
    router = APIRouter(include_in_schema=False)

    @router.get("/cds-services", summary="CDS Hooks: which services there are", operation_id="cds_services")
    async def services(request: Request) -> Response:
        async def compute() -> Response:
            await hooks.caller(request)
            return _json(discovery(hooks.language_of(request)))

        return await answer(hooks, compute)

    @router.post("/cds-services/{service_id}", summary="CDS Hooks: a call", operation_id="cds_call")
    async def call(request: Request, service_id: str) -> Response:
        begun = time.monotonic()
        body: bytes | HookError | ApiError
        try:
            body = await _body(request)
        except (HookError, ApiError) as error:
            body = error

        async def compute() -> Response:
            caller = await hooks.caller(request)
            require_service(service_id)
            if not isinstance(body, bytes):
                raise body
            return await _review(hooks, read_call(service_id, body), caller, begun)

        return _Answer(hooks, compute)

    @router.post(
        "/cds-services/{service_id}/feedback", summary="CDS Hooks: what became of cards", operation_id="cds_feedback"
    )
    async def feedback(request: Request, service_id: str) -> Response:
        async def compute() -> Response:
            caller = await hooks.caller(request)
            require_service(service_id)
            entries = read_feedback(read_json(await _body(request)))
            new = hooks.feedback.add(service_id, caller.issuer, entries)
            log.info("feedback", extra=fields(service=service_id, outcomes=len(entries), new=new))
            return Response(status_code=200)

        return await answer(hooks, compute)

    return router


async def _body(request: Request) -> bytes:
    kind = request.headers.get("content-type", "application/json").split(";")[0].strip().lower()
    if kind != "application/json" and not kind.endswith("+json"):
        raise HookError(415, "The body must be JSON: send the header 'Content-Type: application/json'.")
    return await read_bytes(request, MOST_BYTES)


async def _review(hooks: Hooks, call: Call, caller: Caller, begun: float) -> Response:
    reviewed: Reviewed | None = None
    status = 500
    joined = False
    key = "\0".join((caller.issuer, caller.tenant, call.service, call.instance, call.digest, caller.language))
    try:
        reviewed, joined = await hooks.calls.once(key, lambda: hooks.reviewer.review(call, caller, begun))
        status = 200
    except HookError as error:
        status = error.status
        raise
    except ApiError as error:
        status = error.status
        raise
    finally:
        hooks.audit.write(call, caller, status, reviewed)
        log.info(
            "cds call",
            extra=fields(
                service=call.service,
                hook=call.hook,
                instance=call.instance,
                iss=caller.issuer,
                tenant=caller.tenant or None,
                jti=caller.jti or None,
                joined=joined,
                status=status,
                in_time=reviewed.in_time if reviewed else None,
                findings=len(reviewed.findings) if reviewed else None,
                other_patients=reviewed.foreign if reviewed else None,
                case=reviewed.case.id if reviewed and reviewed.case else None,
                seconds=round(time.monotonic() - begun, 3),
            ),
        )
    return _json({"cards": reviewed.cards})


def _json(value: Any) -> Response:
    return Response(orjson.dumps(value), media_type="application/json")
