"""Every error that a client can see, as one tree.

ApiError
|-- InvalidRequest                400 invalid_request         a field has a wrong type or value
|   |-- InvalidJson               400 invalid_json
|   |-- ContradictoryParameters   400 contradictory_parameters
|   |-- UnsupportedParameter      400 unsupported_parameter
|   |-- ContextLengthExceeded     400 context_length_exceeded
|   |-- InvalidSessionId          400 invalid_session_id
|   |-- InvalidMetadata           400 invalid_metadata
|   |-- InvalidTtl                400 invalid_ttl
|   |-- InvalidCursor             400 invalid_cursor
|   |-- InvalidIdempotencyKey     400 invalid_idempotency_key
|   |-- NothingNew                400 nothing_new             only messages that are stored already
|   `-- RequestTooLarge           413 request_too_large
|       `-- MetadataTooLarge      413 metadata_too_large
|-- InvalidApiKey                 401 invalid_api_key         no key, an unknown one, an expired or revoked one
|-- InsufficientScope             403 insufficient_scope      a valid key that may not do this
|-- NotFound                      404 not_found
|   |-- ModelNotFound             404 model_not_found
|   |-- SessionNotFound           404 session_not_found       also another tenant's
|   `-- ResponseNotFound          404 response_not_found
|-- MethodNotAllowed              405 method_not_allowed
|-- Conflict                      409
|   |-- SessionExists             409 session_exists
|   |-- SessionBusy               409 session_busy            with Retry-After
|   |-- HistoryConflict           409 history_conflict        what was sent contradicts what is stored
|   |-- IdempotencyConflict       409 idempotency_conflict
|   `-- TurnLost                  409 turn_lost               answered, but another replica took the turn's place
|-- UnsupportedMediaType          415 unsupported_media_type
|-- RateLimited                   429 rate_limit_exceeded     with Retry-After
|-- ConcurrencyLimited            429 concurrency_limit_exceeded
|-- HeadersTooLarge               431 headers_too_large
|-- InternalError                 500 internal_error
|   `-- MemoryUnreadable          500 memory_unreadable       stored under another key, or altered
|-- RequestTimedOut               504 request_timed_out       longer than the server lets a request take
`-- Unavailable                   503, with Retry-After
    |-- Overloaded                503 server_overloaded       the queue is full
    |-- ShuttingDown              503 shutting_down
    |-- AuditUnavailable          503 audit_unavailable       the audit trail cannot be written, and must be
    |-- EngineUnavailable         503 engine_unavailable      starting, or restarting after a crash
    `-- MemoryUnavailable         503 memory_unavailable      the database is locked, full or gone

`code` is stable: clients may branch on it. `message` is for people and names the next step; it is English here, and
`messages.py` has the Chinese of every code.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class ApiError(Exception):
    """An error with OpenAI's envelope: status, type, param, code."""

    status = 500
    type = "server_error"
    code = "internal_error"
    retry_after_s: int | None = None

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param

    def envelope(self, request_id: str, message: str) -> dict[str, Any]:
        """The response body; `request_id` finds the log lines, `message` is ours in the reader's language."""
        error = {"message": message, "type": self.type, "param": self.param, "code": self.code}
        return {"error": {**error, "request_id": request_id}}

    def headers(self) -> dict[str, str]:
        return {"retry-after": str(self.retry_after_s)} if self.retry_after_s is not None else {}


class InvalidRequest(ApiError):
    status = 400
    type = "invalid_request_error"
    code = "invalid_request"


class InvalidJson(InvalidRequest):
    code = "invalid_json"


class ContradictoryParameters(InvalidRequest):
    code = "contradictory_parameters"


class UnsupportedParameter(InvalidRequest):
    code = "unsupported_parameter"


class ContextLengthExceeded(InvalidRequest):
    code = "context_length_exceeded"


class RequestTooLarge(InvalidRequest):
    status = 413
    code = "request_too_large"


class InvalidSessionId(InvalidRequest):
    code = "invalid_session_id"


class InvalidMetadata(InvalidRequest):
    code = "invalid_metadata"


class MetadataTooLarge(RequestTooLarge):
    code = "metadata_too_large"


class InvalidTtl(InvalidRequest):
    code = "invalid_ttl"


class InvalidCursor(InvalidRequest):
    code = "invalid_cursor"


class InvalidIdempotencyKey(InvalidRequest):
    code = "invalid_idempotency_key"


class NothingNew(InvalidRequest):
    code = "nothing_new"


class InvalidApiKey(ApiError):
    status = 401
    type = "authentication_error"
    code = "invalid_api_key"

    def headers(self) -> dict[str, str]:
        return {"www-authenticate": "Bearer"}


class NotFound(ApiError):
    status = 404
    type = "invalid_request_error"
    code = "not_found"


class ModelNotFound(NotFound):
    code = "model_not_found"


class SessionNotFound(NotFound):
    code = "session_not_found"


class ResponseNotFound(NotFound):
    code = "response_not_found"


class MethodNotAllowed(ApiError):
    status = 405
    type = "invalid_request_error"
    code = "method_not_allowed"

    def __init__(self, message: str, allowed: str = "") -> None:
        super().__init__(message)
        self.allowed = allowed

    def headers(self) -> dict[str, str]:
        return {"allow": self.allowed} if self.allowed else {}


class Conflict(ApiError):
    status = 409
    type = "invalid_request_error"
    code = "conflict"


class SessionExists(Conflict):
    code = "session_exists"


class SessionBusy(Conflict):
    code = "session_busy"
    retry_after_s = 2


class HistoryConflict(Conflict):
    code = "history_conflict"


class IdempotencyConflict(Conflict):
    code = "idempotency_conflict"


class TurnLost(Conflict):
    code = "turn_lost"


class UnsupportedMediaType(ApiError):
    status = 415
    type = "invalid_request_error"
    code = "unsupported_media_type"


class InsufficientScope(ApiError):
    status = 403
    type = "permission_error"
    code = "insufficient_scope"


class RateLimited(ApiError):
    """One key's own limit; others are served."""

    status = 429
    type = "rate_limit_error"
    code = "rate_limit_exceeded"
    retry_after_s = 1

    def __init__(
        self, message: str, *, retry_after_s: int | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        if retry_after_s is not None:
            self.retry_after_s = max(1, retry_after_s)
        self._more = dict(headers or {})

    def headers(self) -> dict[str, str]:
        return super().headers() | self._more


class ConcurrencyLimited(RateLimited):
    code = "concurrency_limit_exceeded"


class HeadersTooLarge(ApiError):
    status = 431
    type = "invalid_request_error"
    code = "headers_too_large"


class RequestTimedOut(ApiError):
    status = 504
    type = "timeout_error"
    code = "request_timed_out"


class InternalError(ApiError):
    """Ours to mend. The message names the request id, never the cause."""


class MemoryUnreadable(InternalError):
    code = "memory_unreadable"


class Unavailable(ApiError):
    status = 503
    type = "service_unavailable_error"
    code = "unavailable"
    retry_after_s = 5


class Overloaded(Unavailable):
    code = "server_overloaded"
    retry_after_s = 1


class ShuttingDown(Unavailable):
    code = "shutting_down"


class AuditUnavailable(Unavailable):
    code = "audit_unavailable"


class EngineUnavailable(Unavailable):
    code = "engine_unavailable"
    retry_after_s = 10


class MemoryUnavailable(Unavailable):
    code = "memory_unavailable"
