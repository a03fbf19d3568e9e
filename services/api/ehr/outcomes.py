"""Errors as CDS Hooks clients expect them: an HTTP status and a FHIR OperationOutcome, which never quotes what was sent."""

from __future__ import annotations

from typing import Any, Final

import orjson
from starlette.responses import Response

from services.api import logs, messages
from services.api.errors import ApiError

# https://hl7.org/fhir/R4/valueset-issue-type.html
_ISSUES: Final = {400: "invalid", 401: "login", 404: "not-found", 405: "not-supported", 410: "not-found", 412: "required",
                  413: "too-long", 415: "not-supported", 429: "throttled", 503: "transient"}  # fmt: skip


class HookError(Exception):
    """A call that is refused. `text` names the next step; a 401 has none, as the specification's best practices ask."""

    def __init__(self, status: int, text: str = "", *, expression: str = "", issue: str = "") -> None:
        """`expression`: the field at fault, as a FHIRPath; `issue`: the FHIR issue type, else the one of the status."""
        super().__init__(text or str(status))
        self.status = status
        self.text = text
        self.expression = expression
        self.issue = issue or _ISSUES.get(status, "exception")
        self.headers: dict[str, str] = {"www-authenticate": "Bearer"} if status == 401 else {}


def outcome(issue: str, text: str = "", expression: str = "", diagnostics: str = "") -> dict[str, Any]:
    """An OperationOutcome with one issue; nothing in it is empty."""
    found: dict[str, Any] = {"severity": "error", "code": issue}
    if text:
        found["details"] = {"text": text}
    if diagnostics:
        found["diagnostics"] = diagnostics
    if expression:
        found["expression"] = [expression]
    return {"resourceType": "OperationOutcome", "issue": [found]}


def error_response(error: HookError | ApiError) -> Response:
    """The response to a call that failed. The request id leads to the log line."""
    request_id = logs.request_id.get()
    if isinstance(error, HookError):
        diagnostics = "" if error.status == 401 else f"request id {request_id}"
        body = outcome(error.issue, error.text, error.expression, diagnostics)
        return Response(orjson.dumps(body), error.status, error.headers, "application/fhir+json")
    issue = "throttled" if error.code == "server_overloaded" else _ISSUES.get(error.status, "exception")
    body = outcome(issue, messages.text_of(error, request_id), "", f"code {error.code}, request id {request_id}")
    return Response(orjson.dumps(body), error.status, error.headers(), "application/fhir+json")
